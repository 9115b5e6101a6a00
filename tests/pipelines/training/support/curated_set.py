"""A small curated set for training tests: clips of a moving line and a tone."""

from pathlib import Path

import numpy as np

from data_prep.clip import Clip, Segment
from data_prep.dataset.ledger import Ledger
from data_prep.dataset.shards import commit_segment
from data_prep.media.write_mp4 import write_mp4


def write_curated_set(root: Path, sizes: list[tuple[int, int]], dropped: int | None = None) -> str:
    """Write one clip of 50 frames per (width, height), and return the set's path; clip `dropped` is not kept."""
    clips = []
    for n, (width, height) in enumerate(sizes):
        frames = np.zeros((50, height, width, 3), np.uint8)
        frames[:, :, : width // 2] = 40 + 60 * (n % 4)
        frames[np.arange(50), :, np.arange(50) + 20] = 255  # a line that moves one pixel per frame
        t = np.arange(100_000) / 48_000
        sound = np.stack([0.2 * np.sin(2 * np.pi * 300 * (n + 1) * t), 0 * t]).astype(np.float32)
        path = root / f"{n}.mp4"
        write_mp4(path, frames, 24.0, sound, 48_000)
        info = {"width": width, "height": height, "fps": 24.0, "in_s": 0.0, "out_s": 50 / 24}
        clip = Clip(f"clip{n}", 0.0, 50 / 24, media=path.read_bytes(), info=info)
        clips.append(clip.dropped("noise") if n == dropped else clip)
    segment = Segment("segment", "memory", 0.0, 50 / 24, size=1, content_key="key", clips=clips)
    Ledger(root / "set").commit(commit_segment(root / "set", segment).entry)
    return str(root / "set")
