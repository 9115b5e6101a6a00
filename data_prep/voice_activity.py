"""Where somebody speaks: Silero VAD through onnxruntime, on one thread, a probability per 32 ms.

The `silero-vad` package carries the network; its sequence form runs many frames in one call.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data_prep.guarded import beat
from data_prep.onnx_session import session

RATE = 16_000  # Hz
FRAME = 512  # samples: 32 ms
_CONTEXT = 64  # samples of the frame before that the network sees again
_BLOCK = 512  # frames a call


@cache
def _network() -> str:
    spec = find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the package silero-vad is not installed; run `make install`")
    return str(Path(next(iter(spec.submodule_search_locations))) / "data" / "silero_vad_16k_sequence.onnx")


def voice_probability(samples: np.ndarray) -> np.ndarray:
    """(N,) float32 at 16 kHz → (⌈N / 512⌉,) float32, the probability of speech in each 32 ms."""
    count = -(-len(samples) // FRAME)
    frames = np.zeros((count, FRAME), np.float32)
    frames.reshape(-1)[: len(samples)] = samples
    context = np.zeros((count, _CONTEXT), np.float32)
    context[1:] = frames[:-1, -_CONTEXT:]
    windows = np.concatenate([context, frames], axis=1)
    network = session(_network())
    h = c = np.zeros((1, 1, 128), np.float32)
    found = []
    for start in range(0, count, _BLOCK):
        beat()
        probability, h, c = network.run(None, {"input": windows[start : start + _BLOCK], "h": h, "c": c})
        found.append(np.asarray(probability).reshape(-1))
    return np.concatenate(found) if found else np.zeros(0, np.float32)
