"""A curated set for tests of the tasks that read media: clips of 50 frames at 24 fps with sound."""

from pathlib import Path

import numpy as np

from data_prep.clip import Clip, Segment
from data_prep.ledger import Ledger
from data_prep.mp4 import write_mp4
from data_prep.shards import write_segment


def write_curated_set(
    root: Path, sizes: list[tuple[int, int]], dropped: frozenset[int] = frozenset(), frames: int = 50
) -> Path:
    """A clip of each size (width, height): two halves of brightness, a moving line, a tone in the left channel.

    Args:
        dropped: numbers of the clips that are not kept.
    """
    root.mkdir(parents=True, exist_ok=True)
    clips = []
    for n, (width, height) in enumerate(sizes):
        pixels = np.zeros((frames, height, width, 3), np.uint8)
        pixels[:, :, : width // 2] = 40 + (60 * n) % 200
        pixels[np.arange(frames), :, np.arange(frames) % (width - 20) + 20] = 255  # moves by a pixel a frame
        t = np.arange(frames * 2000) / 48_000
        sound = np.stack([0.2 * np.sin(2 * np.pi * 300 * (n + 1) * t), 0 * t]).astype(np.float32)
        path = root / f"{n}.mp4"
        write_mp4(path, pixels, 24.0, sound, 48_000)
        info = {"width": width, "height": height, "fps": 24.0, "in_s": 0.0, "out_s": frames / 24}
        clip = Clip(f"clip{n}", 0.0, frames / 24, media=path.read_bytes(), info=info)
        clips.append(clip.dropped("noise") if n in dropped else clip)
    segment = Segment("segment", "memory", 0.0, frames / 24, size=1, content_key="key", clips=clips)
    Ledger(root / "set").commit(write_segment(root / "set", segment))
    return root / "set"
