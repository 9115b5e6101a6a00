"""Clips to look at and listen to: a film that a browser plays, four frames, a waveform, a spectrogram.

Clips that hold no media in the set (dropped ones; all of an encoded set) are cut from their source again, while it is
still there. Everything is embedded; a clip that is large or in a codec that browsers do not play is shown as a small
copy of its first seconds.
"""

import base64
import io
import math
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.clip import describe
from data_prep.dataset.shards import read_member
from data_prep.media.decode import decode_audio, decode_video
from data_prep.media.write_mp4 import write_mp4
from pipelines.report.previews import contact_sheet, spectrogram, waveform

# A clip's own file is embedded up to this size, bytes; a preview lasts this long, seconds, and is this wide, pixels.
EMBED_BYTES, PREVIEW_S, PREVIEW_WIDTH = 600_000, 5.0, 320
# The first drawing of a process waits for its imports.
PATIENCE_S = 40.0
PLAYABLE_CODECS = {"h264", "vp8", "vp9", "av1"}


@dataclass
class Example:
    """A clip to look at: data: URIs of its film and pictures, "" where there is none."""

    title: str
    uri: str
    span: str
    sound_class: str
    error: str = ""
    caption: str = ""
    heard: str = ""
    video: str = ""
    is_copy: bool = False
    sheet: str = ""
    wave: str = ""
    spectrogram: str = ""

    def files(self) -> list[tuple[str, bytes]]:
        """What is embedded, as files (name, bytes)."""
        named = (("clip.mp4", self.video), ("contact_sheet.png", self.sheet), ("spectrogram.png", self.spectrogram))
        return [(name, base64.b64decode(uri.split(",", 1)[1])) for name, uri in named if uri]


class Drawing:
    """A process that draws examples: a codec that crashes or hangs costs its picture, not the report."""

    def __init__(self, root: str | Path) -> None:
        self._root = str(root)
        self._pool = None

    def __enter__(self) -> "Drawing":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def example(self, row: dict) -> Example:
        """A row of the manifest (`scores`, `info` and `caption` as dicts) as something to look at."""
        example = Example(
            title=os.path.basename(row["uri"]),
            uri=row["uri"],
            span=_span(row["start_s"], row["end_s"]),
            sound_class=row["sound_class"],
            error=row["error"],
            caption=row["caption"].get("text", ""),
            heard=", ".join(_best_labels(row["tags"])),
        )
        if row["verdict"] == "failed" and not row["caption"]:
            return example
        if self._pool is None:
            self._pool = multiprocessing.get_context("spawn").Pool(1)
        try:
            return self._pool.apply_async(_filled, (example, self._root, row)).get(PATIENCE_S)
        except multiprocessing.TimeoutError:
            self._end()
            example.error = example.error or f"no preview: its decoder crashed, or hung for {PATIENCE_S:.0f} s"
            return example

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


def _filled(example: Example, root: str, row: dict) -> Example:
    try:
        _fill(example, root, row)
    except Exception as error:  # the page is about the set; a picture that cannot be drawn is said on it
        example.error = example.error or f"no preview: {describe(error)}"
    return example


def _fill(example: Example, root: str, row: dict) -> None:
    """The example's film and pictures."""
    info = row["info"]
    media: bytes | str
    if row["media_size"]:
        media = read_member(root, row["shard"], row["media_offset"], row["media_size"])
        start_s, end_s = info["in_s"], info["out_s"]
    else:
        media, start_s, end_s = row["uri"], row["start_s"], row["end_s"]
    end_s = min(end_s, start_s + PREVIEW_S)
    width, height = info.get("width", 0), info.get("height", 0)
    size = None
    if width and height:
        scale = min(1.0, PREVIEW_WIDTH / width)
        size = 2 * round(height * scale / 2), 2 * round(width * scale / 2)
    frames, _ = decode_video(media, start_s, end_s, fps=12, size=size)
    sound = decode_audio(media, start_s, end_s, 24000, 2)
    example.wave = _data("image/png", waveform(sound, 24000))
    example.spectrogram = _data("image/png", spectrogram(sound, 24000))
    if not len(frames):
        return
    example.sheet = _data("image/png", contact_sheet(frames, columns=4, rows=1))
    own = isinstance(media, bytes) and len(media) <= EMBED_BYTES
    if own and row["media_suffix"] == "mp4" and info.get("video_codec") in PLAYABLE_CODECS:
        assert isinstance(media, bytes)
        film = media
    else:
        copy = io.BytesIO()
        even = _small(frames)
        write_mp4(copy, even, 12, sound, 24000, crf=26)
        film, example.is_copy = copy.getvalue(), True
    example.video = _data("video/mp4", film)


def _small(frames: np.ndarray) -> np.ndarray:
    """Frames at most `PREVIEW_WIDTH` wide, by leaving pixels out, with even sides."""
    step = -(-frames.shape[2] // PREVIEW_WIDTH)
    frames = frames[:, ::step, ::step]
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def _best_labels(tags: list[dict]) -> list[str]:
    """The four best-scored sound events, by name."""
    best: dict[str, float] = {}
    for tag in tags:
        best[tag["label"]] = max(best.get(tag["label"], 0.0), tag["score"])
    return [f"{label} {score:.2f}" for label, score in sorted(best.items(), key=lambda item: -item[1])[:4]]


def _span(start_s: float, end_s: float) -> str:
    return f"{start_s:.1f} – {end_s:.1f} s" if math.isfinite(end_s) else f"from {start_s:.1f} s"


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
