"""A labelled synthetic audio-video corpus: what is seen and what is heard happen together, and the labels are exact."""

from data_prep.synthetic.corpus import generate

__all__ = ["generate"]
