"""Choose the few pictures of a clip that an engine is shown, so that they cover every shot and every change."""

import io
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from captioning.look.picture_statistics import find_cuts

_MIN_CHANGE = 0.08  # mean change of grey level (0 to 1), summed over time, that is worth one more picture
_IDLE_PER_S = 0.004  # change added per second, so that the pictures of a still shot are evenly spaced
_QUALITY = 90  # JPEG quality


@dataclass(frozen=True)
class Frame:
    """One picture for an engine: its time in seconds from the clip's start, and its JPEG file."""

    time_s: float
    jpeg: bytes


def choose_frames(small: np.ndarray, times_s: np.ndarray, max_frames: int) -> list[int]:
    """Choose frames that show every shot and every change.

    Each shot gets at least one frame; if there are more than `max_frames` shots, only the longest do. Further frames
    go to the shots that change most. A shot's frames divide its summed change into equal parts and lie in the middle
    of each part.

    Args:
        small: Small frames (F, H, W, 3) uint8.
        times_s: Their times (F,) in seconds.
        max_frames: The most frames to choose.

    Returns:
        Indices of the chosen frames, sorted.
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
        # Give a frame to the shot with the most change per frame, until no shot has enough change.
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
    """Encode a picture (H, W, 3) uint8 RGB as a JPEG file; equal pictures give equal bytes."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def from_jpeg(file: bytes) -> Image.Image:
    """Decode a JPEG file to an RGB image."""
    return Image.open(io.BytesIO(file)).convert("RGB")


def shrink(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink a picture (H, W, 3) uint8 to `size` (height, width); each pixel is the mean of those that it covers."""
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX))
