"""A labelled audio-video corpus made from nothing: what is seen and what is heard happen together, and are known."""

from data_prep.synthetic.corpus import generate
from data_prep.synthetic.settings import Mix, SynthSettings

__all__ = ["Mix", "SynthSettings", "generate"]
