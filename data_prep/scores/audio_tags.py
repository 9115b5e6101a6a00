"""Tag sound events with YAMNet (MobileNet v1 over log-mel patches, 521 AudioSet classes), run by onnxruntime.

The input is computed as for the published network (tensorflow/models, research/audioset/yamnet, params.py and
features.py): 25 ms periodic Hann window every 10 ms, magnitude of a 512-point transform, 64 HTK mel bands from
125 to 7,500 Hz, log(x + 0.001), patches of 96 frames (0.96 s).
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from scipy.fft import rfft

from data_prep.clip import Tag
from data_prep.curation.sandbox import beat
from data_prep.onnx_session import opened
from data_prep.packaged_weights import resolve

RATE = 16_000  # Hz
WINDOW, HOP, FFT = 400, 160, 512  # samples
BANDS, PATCH = 64, 96  # number of mel bands, and frames of a patch
CHANNELS = 1024  # of the output of the network's last convolution
BATCH = 16  # patches per run of the network
LOW_HZ, HIGH_HZ = 125.0, 7500.0


@dataclass(frozen=True)
class Tagger:
    """A YAMNet network and its class names.

    Attributes:
        network: takes patches (P, 1, 96, 64) and returns logits (P, 521).
        names: the 521 AudioSet display names, in the order of the network's output.
        input_scale, input_zero, output_scale, output_zero: scales and zero points of the 8-bit input and output of a
            quantised network; the scales are 0 for a float network.
    """

    network: onnxruntime.InferenceSession
    names: tuple[str, ...]
    input_scale: float = 0.0
    input_zero: int = 0
    output_scale: float = 0.0
    output_zero: int = 0

    def scores(self, patches: np.ndarray) -> np.ndarray:
        """Return the probability of each class, (P, 521) in [0, 1], for log-mel patches (P, 96, 64).

        The classes are independent (sigmoid), so a row need not sum to 1.
        """
        name = self.network.get_inputs()[0].name
        data = patches[:, None]
        if self.input_scale:
            data = np.clip(np.round(data / self.input_scale) + self.input_zero, 0, 255).astype(np.uint8)
        found = np.zeros((len(data), len(self.names)), np.float32)
        for start in range(0, len(data), BATCH):
            beat()
            found[start : start + BATCH] = np.asarray(self.network.run(None, {name: data[start : start + BATCH]})[0])
        if self.output_scale:
            found = self.output_scale * (found - self.output_zero)
        return 1 / (1 + np.exp(-np.clip(found, -60, 60)))


@cache
def load_tagger(weights: str) -> Tagger:
    """Load YAMNet and its class names.

    Args:
        weights: `package:yamnet`, a folder with one .onnx file and `yamnet_class_map.csv`, or the path of the .onnx.

    Raises:
        ValueError: the network or the class map does not exist.
    """
    path = Path(resolve(weights))
    found = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
    if not found or not found[0].exists():
        raise ValueError(f"tagger {weights!r}: no .onnx file there; give package:yamnet or a folder with one")
    labels = found[0].parent / "yamnet_class_map.csv"
    if not labels.exists():
        raise ValueError(f"tagger {weights!r}: {labels.name} must lie beside the network")
    with labels.open(encoding="utf-8") as file:
        names = tuple(row["display_name"] for row in csv.DictReader(file))
    model = onnx.load(str(found[0]))
    _take_batches(model.graph)
    is_float = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    return Tagger(opened(model.SerializeToString()), names, **({} if is_float else _quantisation(model.graph)))


def _take_batches(graph: onnx.GraphProto) -> None:
    """Change a network that was exported for one patch, in place, so that it takes a batch of any size.

    A batch takes 0.40 ms per patch instead of 0.57 ms.
    """
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "patches"
    del graph.value_info[:]  # inner shapes, which are for one patch
    (flat,) = [node.input[1] for node in graph.node if node.op_type == "Reshape"]  # (P, 1024, 1, 1) → (P, 1024)
    for constant in graph.initializer:
        if constant.name == flat:
            constant.CopyFrom(numpy_helper.from_array(np.array([-1, CHANNELS]), flat))


def _quantisation(graph: onnx.GraphProto) -> dict:
    """Return scales and zero points of a network with 8-bit input and output, as arguments of `Tagger`."""
    constants = {constant.name: constant for constant in graph.initializer}

    def value(name: str):
        return numpy_helper.to_array(constants[name]).item()

    (taken,) = [node for node in graph.node if graph.input[0].name in node.input]
    (given,) = [node for node in graph.node if graph.output[0].name in node.output]
    return {
        "input_scale": value(taken.input[1]),
        "input_zero": value(taken.input[2]),
        "output_scale": value(given.input[1]),
        "output_zero": value(given.input[2]),
    }


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Compute a log-mel spectrogram: the natural logarithm of the magnitudes in mel bands.

    Args:
        samples: (N,) float32 at 16 kHz. Sound shorter than a patch is padded with silence.

    Returns:
        (T, 64), a row per 10 ms; T is at least 96, the frames of a patch.
    """
    shortest = WINDOW + (PATCH - 1) * HOP
    if len(samples) < shortest:
        samples = np.pad(samples, (0, shortest - len(samples)))
    count = 1 + (len(samples) - WINDOW) // HOP
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP][:count]
    bank = _mel_bank()
    mels = []
    for start in range(0, count, 4096):
        spectra = np.asarray(rfft(frames[start : start + 4096] * window, FFT), np.complex64)
        mels.append(np.sqrt(np.square(spectra.real) + np.square(spectra.imag)) @ bank)
    return np.log(np.concatenate(mels) + 0.001)


@cache
def _mel_bank() -> np.ndarray:
    """Return the weights (257 frequencies, 64 bands) of triangular mel filters, as in TensorFlow.

    They have equal widths in mel = 1127 · ln(1 + f / 700).
    """

    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(LOW_HZ), mel(HIGH_HZ), BANDS + 2)
    bins = mel(np.linspace(0, RATE / 2, FFT // 2 + 1))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bank = np.maximum(0.0, np.minimum(rising, falling))
    bank[0] = 0.0  # the constant offset of the sound is in no band
    return bank.astype(np.float32)


def patches(samples: np.ndarray, hop_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Divide sound into log-mel patches of 0.96 s, the input of the network.

    Args:
        samples: (N,) float32 at 16 kHz.
        hop_s: from the start of a patch to the start of the next, seconds.

    Returns:
        Patches (P, 96, 64) and their starts (P,) in seconds. A last patch that would pass the end starts earlier.
    """
    mel = log_mel(samples)
    step = max(1, round(hop_s * RATE / HOP))
    starts = list(range(0, len(mel) - PATCH + 1, step))
    if starts[-1] + PATCH < len(mel) - step // 2:
        starts.append(len(mel) - PATCH)
    return np.stack([mel[start : start + PATCH] for start in starts]), np.array(starts) * HOP / RATE


def events(names: tuple[str, ...], scores: np.ndarray, begins_s: np.ndarray, end_s: float, least: float) -> list[Tag]:
    """Find sound events: classes whose score reaches `least` in consecutive patches.

    Args:
        names: names of the C classes.
        scores: probabilities of the classes in each patch, (P, C) in [0, 1].
        begins_s: starts of the patches, (P,) seconds.
        end_s: the end of the sound, seconds.
        least: the smallest score that counts, in [0, 1].

    Returns:
        A tag for each run of such patches, with the largest score in it; highest score first.
    """
    length = PATCH * HOP / RATE
    found = []
    for index in np.flatnonzero(scores.max(axis=0, initial=0.0) >= least):
        start = None
        for patch in range(len(scores) + 1):
            on = patch < len(scores) and scores[patch, index] >= least
            if on and start is None:
                start = patch
            elif not on and start is not None:
                end = min(float(begins_s[patch - 1]) + length, end_s)
                best = float(scores[start:patch, index].max())
                found.append(Tag(names[index], round(float(begins_s[start]), 3), round(end, 3), round(best, 4)))
                start = None
    return sorted(found, key=lambda tag: (-tag.score, tag.label, tag.start_s))
