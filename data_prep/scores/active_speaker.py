"""The place for a network that sees whether the voice belongs to a face: SyncNet, Synchformer, an active-speaker model.

No such weights can be shipped, and each network has its own loader and licence. So a scorer is named in the settings as
`module:factory` with a path of weights. `factory(path)` gives a callable `(frames, sound) → {name: score}`, where
frames are (F, H, W, 3) uint8 RGB at 25 per second and sound is (N,) float32 at 16 kHz of the same span. What it gives
is stored with the clip. It is asked only about kept clips in which somebody speaks, and no rule drops a clip for it: a
narrator has no lips, and is still worth hearing.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

FPS = 25.0
SIZE = (224, 224)  # height, width of the frames
LEAST_VOICE = 0.25  # share of the time

Scorer = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]


def load_scorer(name: str, weights: str) -> Scorer:
    """The scorer `name` ("module:factory") made from the weights at a path.

    Raises:
        ValueError: the name, its module or the weights are not there; says which.
    """
    module, _, factory = name.partition(":")
    if not module or not factory:
        raise ValueError(f"active_speaker {name!r}: name it as module:factory, where factory(path) gives the scorer")
    if not weights or not Path(weights).exists():
        raise ValueError(f"active_speaker_weights {weights!r}: nothing is there; give the path of the weights")
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"active_speaker {name!r}: {error}; install it, or put its folder on PYTHONPATH") from error
    scorer: Scorer = make(Path(weights))
    if not callable(scorer):
        raise ValueError(f"active_speaker {name!r}: the factory gave a {type(scorer).__name__}, which cannot be called")
    return scorer


def speaker_scores(scorer: Scorer, frames: np.ndarray, sound: np.ndarray) -> dict[str, float]:
    """What the scorer says of a span, as floats.

    Raises:
        ValueError: a score is no finite number.
    """
    found = {name: float(value) for name, value in scorer(frames, sound).items()}
    wrong = [name for name, value in found.items() if not math.isfinite(value)]
    if wrong:
        raise ValueError(f"the active-speaker scorer gave {wrong[0]} = {found[wrong[0]]}")
    return found
