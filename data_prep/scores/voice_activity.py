"""Detect speech with the network Silero VAD: a probability for each 32 ms of sound, on one thread.

The `silero-vad` package contains the network. One of its files takes many frames in one call, but computes the Fourier
transform and the four small convolutions before its recurrent layer frame by frame. Here numpy and scipy compute these
for all frames at once, and onnxruntime runs the rest. The probabilities are the same, in 40 % of the time.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.utils import Extractor
from scipy.fft import rfft

from data_prep.curation.sandbox import beat
from data_prep.onnx_session import opened

RATE = 16_000  # Hz
FRAME = 512  # samples: 32 ms
_CONTEXT = 64  # samples of the preceding frame that are also part of the network's input
_BLOCK = 512  # frames per call of the network
_WINDOW, _HOP = 256, 128  # samples of the spectra: four per frame, the last one over the frame's mirrored end
_STRIDES = (1, 2, 2, 1)  # strides of the four convolutions, each with a kernel of 3
_RECURRENT = "/Transpose_output_0"  # name of the input of the recurrent layer, (frames, 1, 128)
_HANN = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)


@cache
def weights() -> Path:
    """Return the path of the network in the installed package `silero-vad`.

    Raises:
        ValueError: the package is not installed.
    """
    spec = find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the package silero-vad is not installed; run `make install`")
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "silero_vad_16k_sequence.onnx"


@cache
def _network() -> tuple[list[tuple[np.ndarray, np.ndarray]], onnxruntime.InferenceSession]:
    """Load the network in two pieces.

    Returns:
        (Weights (3 · channels in, channels out), bias) of each convolution, and a session that runs the layers after
        them.
    """
    model = onnx.load(str(weights()))
    values = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    kernels = [values[f"encoder.{layer}.weight"].transpose(2, 1, 0) for layer in range(len(_STRIDES))]
    layers = [
        (kernel.reshape(-1, kernel.shape[2]), values[f"encoder.{layer}.bias"]) for layer, kernel in enumerate(kernels)
    ]
    taken = onnx.helper.make_tensor_value_info(_RECURRENT, onnx.TensorProto.FLOAT, ["frames", 1, 128])
    model.graph.value_info.append(taken)
    recurrent = Extractor(model).extract_model([_RECURRENT, "h", "c"], ["speech_probs", "hn", "cn"])
    return layers, opened(recurrent.SerializeToString())


def voice_probability(samples: np.ndarray) -> np.ndarray:
    """Return the probability of speech in each 32 ms, (⌈N / 512⌉,) float32, of samples (N,) float32 at 16 kHz."""
    count = -(-len(samples) // FRAME)
    frames = np.zeros((count, FRAME), np.float32)
    frames.reshape(-1)[: len(samples)] = samples
    context = np.zeros((count, _CONTEXT), np.float32)
    context[1:] = frames[:-1, -_CONTEXT:]
    windows = np.concatenate([context, frames], axis=1)
    layers, network = _network()
    h = c = np.zeros((1, 1, 128), np.float32)
    found = []
    for start in range(0, count, _BLOCK):
        beat()
        encoded = _encoded(windows[start : start + _BLOCK], layers)
        probability, h, c = network.run(None, {_RECURRENT: encoded, "h": h, "c": c})
        found.append(np.asarray(probability).reshape(-1))
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def _encoded(windows: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Compute the input (F, 1, 128) of the recurrent layer from F frames of 64 + 512 samples, (F, 576).

    That is the magnitudes of four spectra per frame, and then the convolutions, as matrix products.
    """
    mirrored = np.pad(windows, ((0, 0), (0, _CONTEXT)), mode="reflect")
    pieces = np.lib.stride_tricks.sliding_window_view(mirrored, _WINDOW, axis=1)[:, ::_HOP]
    spectra = np.asarray(rfft(pieces * _HANN), np.complex64)
    values = np.sqrt(np.square(spectra.real) + np.square(spectra.imag))
    for (weight, bias), stride in zip(layers, _STRIDES, strict=True):
        padded = np.pad(values, ((0, 0), (1, 1), (0, 0)))
        places = range(0, values.shape[1], stride)
        neighbours = np.stack([padded[:, place : place + 3] for place in places], axis=1)
        values = neighbours.reshape(-1, len(weight)) @ weight + bias
        values = np.maximum(values, 0).reshape(len(windows), len(places), -1)
    return values
