"""Examples of clips for the report: a video that a browser plays, four frames, a waveform, a spectrogram.

A clip without media in the set (every dropped clip, every clip of an encoded set) is decoded from its source, if the
source still exists. All files are embedded in the page. A clip that is large, or in a codec that browsers do not play,
is shown as a small copy of its first seconds.
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

# A clip's file is embedded if it has at most this many bytes; otherwise a copy of at most these seconds and pixels.
EMBED_BYTES, PREVIEW_S, PREVIEW_WIDTH = 600_000, 5.0, 320
# Seconds to wait for an example. The first example of a process includes its imports.
TIMEOUT_S = 40.0
PLAYABLE_CODECS = {"h264", "vp8", "vp9", "av1"}


@dataclass
class Example:
    """A clip as the report shows it.

    Attributes:
        title: the file name of the source.
        uri: the source.
        span: the clip's start and end, as text.
        sound_class: the clip's class.
        error: the error of a failed clip, or why there is no preview.
        caption: the caption's text.
        heard: the best sound events with their scores, as text.
        video: the video as a data: URI, or "".
        is_copy: whether `video` is a small copy of the clip's first seconds.
        sheet: four frames as a data: URI, or "".
        wave: the waveform as a data: URI, or "".
        spectrogram: the spectrogram as a data: URI, or "".
    """

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
        """Return the video, the frames and the spectrogram as (file name, bytes); missing ones are left out."""
        named = (("clip.mp4", self.video), ("contact_sheet.png", self.sheet), ("spectrogram.png", self.spectrogram))
        return [(name, base64.b64decode(uri.split(",", 1)[1])) for name, uri in named if uri]


class ExampleDrawer:
    """A process that draws examples, so that a codec that crashes or hangs costs one preview, not the report.

    Use it as a context manager.

    Args:
        root: the folder of the set.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = str(root)
        self._pool = None

    def __enter__(self) -> "ExampleDrawer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def example(self, row: dict) -> Example:
        """Make the example of a clip: its texts from the manifest, and its previews from the media.

        Args:
            row: a row of the manifest, with `scores`, `info` and `caption` as dicts.

        Returns:
            The example; without previews, and with `error`, when the clip cannot be decoded.
        """
        example = Example(
            title=os.path.basename(row["uri"]),
            uri=row["uri"],
            span=_span_text(row["start_s"], row["end_s"]),
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
            return self._pool.apply_async(_draw, (example, self._root, row)).get(TIMEOUT_S)
        except multiprocessing.TimeoutError:
            self._stop()
            example.error = example.error or f"no preview: its decoder crashed, or hung for {TIMEOUT_S:.0f} s"
            return example

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


def _draw(example: Example, root: str, row: dict) -> Example:
    """Return the example with its previews; when they cannot be made, with the reason in `error`."""
    try:
        _add_previews(example, root, row)
    except Exception as error:  # a clip that cannot be drawn must not end the report
        example.error = example.error or f"no preview: {describe(error)}"
    return example


def _add_previews(example: Example, root: str, row: dict) -> None:
    """Decode at most the first `PREVIEW_S` seconds of a clip and fill the example's video, sheet, wave and spectrogram.

    The media come from the set if it has them, otherwise from the source.
    """
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
    example.wave = _data_uri("image/png", waveform(sound, 24000))
    example.spectrogram = _data_uri("image/png", spectrogram(sound, 24000))
    if not len(frames):
        return
    example.sheet = _data_uri("image/png", contact_sheet(frames, columns=4, rows=1))
    small = isinstance(media, bytes) and len(media) <= EMBED_BYTES
    if small and row["media_suffix"] == "mp4" and info.get("video_codec") in PLAYABLE_CODECS:
        assert isinstance(media, bytes)
        video = media
    else:
        copy = io.BytesIO()
        write_mp4(copy, _small(frames), 12, sound, 24000, crf=26)
        video, example.is_copy = copy.getvalue(), True
    example.video = _data_uri("video/mp4", video)


def _small(frames: np.ndarray) -> np.ndarray:
    """Skip pixels of frames (F, H, W, 3) until they are at most `PREVIEW_WIDTH` wide, and crop to even H and W."""
    step = -(-frames.shape[2] // PREVIEW_WIDTH)
    frames = frames[:, ::step, ::step]
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def _best_labels(tags: list[dict]) -> list[str]:
    """Return the four sound events with the highest scores, each as "LABEL SCORE"."""
    best: dict[str, float] = {}
    for tag in tags:
        best[tag["label"]] = max(best.get(tag["label"], 0.0), tag["score"])
    return [f"{label} {score:.2f}" for label, score in sorted(best.items(), key=lambda item: -item[1])[:4]]


def _span_text(start_s: float, end_s: float) -> str:
    return f"{start_s:.1f} – {end_s:.1f} s" if math.isfinite(end_s) else f"from {start_s:.1f} s"


def _data_uri(mime_type: str, data: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"
