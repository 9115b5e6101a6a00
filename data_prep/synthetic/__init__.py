"""A labelled audio-video corpus made from nothing: what is seen and what is heard happen together, and are known."""

from data_prep.synthetic.corpus import generate

__all__ = ["generate"]
