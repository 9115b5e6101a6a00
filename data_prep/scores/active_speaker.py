"""Load and run a network that scores whether a voice belongs to a visible face, such as SyncNet or Synchformer.

Kinotone contains no such network, because each has its own loader and licence. So the settings name a function as
`module:factory`, and a path of weights. `factory(path)` returns a *scorer*, a callable `(frames, sound) → {name:
score}`, where frames are (F, H, W, 3) uint8 RGB at 25 per second and sound is (N,) float32 at 16 kHz, of the same
interval of time. The scores are stored with the clip. The scorer runs only on kept clips in which somebody speaks, and
no rule drops a clip for its scores: a narrator is not visible, and is still informative.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

FPS = 25.0
SIZE = (224, 224)  # height, width of the frames
LEAST_VOICE = 0.25  # the scorer runs only on clips in which somebody speaks for at least this share of the time

Scorer = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]


def load_scorer(name: str, weights: str) -> Scorer:
    """Import `name` ("module:factory"), call it with the path of the weights, and return the scorer that it makes.

    Raises:
        ValueError: the name is no `module:factory`, or the module, the factory or the weights do not exist.
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
    """Return the scores by name of frames (F, H, W, 3), 25 per second, and sound (N,) at 16 kHz of the same interval.

    Raises:
        ValueError: a score is not a finite number.
    """
    found = {name: float(value) for name, value in scorer(frames, sound).items()}
    wrong = [name for name, value in found.items() if not math.isfinite(value)]
    if wrong:
        raise ValueError(f"the active-speaker scorer gave {wrong[0]} = {found[wrong[0]]}")
    return found
