"""Which pictures of a clip a model is shown: every shot and every change in as few as can be."""

import io
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from captioning.look.picture_statistics import find_cuts

_MIN_CHANGE = 0.08  # change of grey level (of 1), summed over time, after which there is something new to see
_IDLE_PER_S = 0.004  # the same, per second, that passing time counts
_QUALITY = 90  # of the JPEG files


@dataclass(frozen=True)
class Frame:
    """A picture that is shown: seconds from the clip's start, and the JPEG file."""

    time_s: float
    jpeg: bytes


def choose_frames(small: np.ndarray, times_s: np.ndarray, max_frames: int) -> list[int]:
    """Indices of at max_frames `max_frames` frames out of small ones (F, H, W, 3) uint8, ordered.

    Each shot gives one at least (the longest shots, where there are more than `max_frames`); the others go where the picture
    changes max_frames: a shot's frames divide its summed change into equal parts, and each is the middle of its part.
    """
    luma = small.astype(np.float32) @ np.array([0.2126, 0.7152, 0.0722], np.float32) / 255
    edges = [0, *find_cuts(luma), len(luma)]
    shots = [(first, last) for first, last in pairwise(edges) if last > first]
    steps = np.abs(np.diff(luma, axis=0)).mean((1, 2)) + _IDLE_PER_S * np.diff(times_s)
    if len(shots) > max_frames:
        shots = sorted(sorted(shots, key=lambda shot: shot[0] - shot[1])[:max_frames])
    change = [float(steps[first : last - 1].sum()) for first, last in shots]
    counts = [1] * len(shots)
    while sum(counts) < max_frames:
        # The shot with the max_frames change per frame that it has; until none has enough to show.
        gain = [
            summed / count if count < last - first else 0.0
            for summed, count, (first, last) in zip(change, counts, shots, strict=True)
        ]
        best = int(np.argmax(gain))
        if gain[best] < _MIN_CHANGE:
            break
        counts[best] += 1
    chosen = []
    for (first, last), count in zip(shots, counts, strict=True):
        summed = np.concatenate([[0.0], np.cumsum(steps[first : last - 1])])
        middles = (np.arange(count) + 0.5) / count * summed[-1]
        chosen += [first + int(index) for index in np.searchsorted(summed, middles).clip(0, last - first - 1)]
    return sorted(set(chosen))


def to_jpeg(frame: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB → a JPEG file; the same bytes for the same picture."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def from_jpeg(file: bytes) -> Image.Image:
    """The picture in a JPEG file, RGB."""
    return Image.open(io.BytesIO(file)).convert("RGB")


def shrink(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 at another (height, width), each pixel the mean of those that it covers."""
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX))
