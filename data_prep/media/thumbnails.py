"""Thumbnails: small frames, decoded cheaply, to detect whether the picture changes.

Work that cannot be seen at 32 × 18 pixels is left out: deblocking always, and frames that no other frame refers to
where a coarse sequence is enough. The frames that are returned are exact, because none depends on a skipped frame.

Key frames cost most, 9 ms each at 1080p. Scene cuts, fingerprints and the clip's record all use them, so everything
that any of these needs is computed when a key frame is first decoded, and kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from data_prep.media.container import Packets, clock, seconds_of
from data_prep.media.decode import Picture, picture

SMALL = (18, 32)  # height, width
MEANS = 32  # blocks of a key picture, across and down
APART_S = 0.4  # key frames closer together (in some files every frame is one) are kept only when requested
SHADES = 8  # levels per colour component in the histogram
_PLANAR = frozenset(["yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"])


@dataclass(frozen=True)
class Thumbnail:
    """A small frame.

    Attributes:
        time_s: seconds on the source's time line.
        light: brightness, (18, 32) float32 in [0, 1].
    """

    time_s: float
    light: np.ndarray

    def difference(self, other: "Thumbnail") -> float:
        """Mean absolute difference of the brightness, 0 to 1."""
        return float(np.abs(self.light - other.light).mean())


@dataclass(frozen=True)
class KeyThumbnail(Thumbnail):
    """A small key frame.

    Attributes:
        colours: share of the pixels with each colour, (512,).
        means: brightness (32, 32), 0 to 255, for the perceptual hash.
        shown: display size and rotation of the picture.
    """

    colours: np.ndarray
    means: np.ndarray
    shown: Picture

    def recoloured(self, other: "KeyThumbnail") -> float:
        """Distance of the colour histograms, 0 to 1: the share of the pixels that would need another colour."""
        return float(np.abs(self.colours - other.colours).sum() / 2)


class Thumbnails:
    """Thumbnails of one video stream. Holds its decoder, and the key frames that were decoded."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self._keys: dict[float, KeyThumbnail] = {}
        if not stream.codec_context.is_open:
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"skip_loop_filter": "all"}

    def keys(self, times_s: Sequence[float], within_s: float) -> dict[float, KeyThumbnail]:
        """Decode the key frames at the given times.

        Args:
            times_s: in ascending order, seconds.
            within_s: a key frame may differ from the given time by less than this, seconds.

        Returns:
            Thumbnails by time; key frames that cannot be decoded are missing.
        """
        new = np.array([time_s for time_s in times_s if time_s not in self._keys])
        self.stream.codec_context.skip_frame = "NONKEY"
        for time_s, frame in self._decoded(self._only(new, within_s)):
            nearest = float(new[np.abs(new - time_s).argmin()])
            if abs(nearest - time_s) < within_s:
                self._keys[nearest] = self._key(nearest, frame)
        return {time_s: self._keys[time_s] for time_s in times_s if time_s in self._keys}

    def before(self, start_s: float) -> KeyThumbnail | None:
        """Decode the key frame that a frame at `start_s` depends on; None if that fails."""
        self.stream.codec_context.skip_frame = "NONKEY"
        packets = (packet for packet in Packets(self.container, self.stream, start_s) if packet.is_keyframe)
        return next((self._key(*found) for found in self._decoded(islice(packets, 1))), None)

    def _key(self, time_s: float, frame: av.VideoFrame) -> KeyThumbnail:
        means = _means(brightness(frame, MEANS, MEANS), MEANS)
        return KeyThumbnail(time_s, _light(frame), _colours(frame), means, picture(frame, self.stream))

    def _only(self, times_s: np.ndarray, within_s: float) -> Iterator[av.Packet]:
        if not len(times_s):
            return
        time_of = clock(self.stream)
        for packet in Packets(self.container, self.stream, float(times_s[0])):
            time_s = time_of(packet)
            if time_s is None or not packet.is_keyframe:
                continue
            if time_s > times_s[-1] + within_s:
                return
            if np.abs(times_s - time_s).min() < within_s:
                yield packet

    def between(
        self, start_s: float, end_s: float, whole: Sequence[tuple[float, float]] | None = None
    ) -> list[Thumbnail]:
        """Decode thumbnails of [start_s, end_s).

        Args:
            start_s: seconds.
            end_s: seconds.
            whole: spans (first, last) in seconds. If given, decode every frame inside them and no other; else decode
                only frames that other frames refer to.
        """
        codec = self.stream.codec_context
        half = float(self.stream.time_base or 0) / 2

        def packets() -> Iterator[av.Packet]:
            late, time_of = 0, clock(self.stream)
            for packet in Packets(self.container, self.stream, start_s):
                time_s = time_of(packet)
                if time_s is None or not packet.size:
                    continue
                late = late + 1 if time_s >= end_s else 0
                if late > 16 or (packet.is_keyframe and time_s >= end_s):
                    return
                inside = whole is not None and any(low <= time_s <= high for low, high in whole)
                codec.skip_frame = "DEFAULT" if inside else "NONREF"
                yield packet

        found, keyed_s = [], -np.inf
        for time_s, frame in self._decoded(packets()):
            if time_s >= end_s - half:
                break
            if time_s >= start_s - half and (whole is None or any(low <= time_s <= high for low, high in whole)):
                if frame.key_frame and time_s >= keyed_s + APART_S and time_s not in self._keys:
                    self._keys[time_s], keyed_s = self._key(time_s, frame), time_s
                found.append(self._keys.get(time_s) or Thumbnail(time_s, _light(frame)))
        return found

    def _decoded(self, packets: Iterator[av.Packet]) -> Iterator[tuple[float, av.VideoFrame]]:
        codec = self.stream.codec_context
        if codec.is_open:
            codec.flush_buffers()
        for packet in packets:
            try:
                frames = packet.decode()
            except (FFmpegError, ValueError):
                continue
            yield from self._timed(frames)
        try:
            left = self.stream.decode(None)
        except (FFmpegError, ValueError):
            left = []
        yield from self._timed(left)

    def _timed(self, frames: Sequence[av.VideoFrame]) -> Iterator[tuple[float, av.VideoFrame]]:
        for frame in frames:
            # Frames that the decoder returns at its end carry no time base.
            time_base = frame.time_base or self.stream.time_base
            if frame.pts is not None and time_base is not None:
                yield seconds_of(frame.pts, time_base), frame


def brightness(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """The brightness of a frame, reduced by leaving out pixels.

    Args:
        frame: of any pixel format.
        height: smallest useful height of the result is twice this; of a large frame it is about 8 times this.
        width: likewise.

    Returns:
        (≥ 2 · height, ≥ 2 · width) uint8.
    """
    if frame.format.name in _PLANAR and frame.height >= 2 * height and frame.width >= 2 * width:
        step = max(1, min(frame.height // height, frame.width // width) // 8)
        return _plane(frame, 0)[::step, ::step]  # pick pixels: true scaling costs as much as decoding
    return frame.reformat(width=4 * width, height=4 * height, format="gray").to_ndarray()


def _light(frame: av.VideoFrame) -> np.ndarray:
    """Mean brightness of 18 × 32 blocks: (18, 32) float32 in [0, 1]."""
    height, width = SMALL
    pixels = brightness(frame, height, width)
    tall, wide = pixels.shape[0] // height, pixels.shape[1] // width
    rows = pixels[: tall * height, : wide * width].reshape(height, tall, width * wide).sum(axis=1, dtype=np.uint16)
    return rows.reshape(height, width, wide).sum(axis=2, dtype=np.float32) / np.float32(255 * tall * wide)


def _means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Means of side × side blocks: (H, W), at least (side, side) → (side, side)."""
    tall, wide = (np.linspace(0, length, side + 1).astype(int) for length in pixels.shape)
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), tall[:-1], axis=0), wide[:-1], axis=1)
    return sums / np.outer(np.diff(tall), np.diff(wide))


def _colours(frame: av.VideoFrame) -> np.ndarray:
    """Histogram over 8 × 8 × 8 levels of brightness and both colour differences, as shares of the pixels: (512,)."""
    if frame.format.name not in _PLANAR:
        frame = frame.reformat(width=128, height=72, format="yuv444p")
    planes = [_plane(frame, index) for index in range(3)]
    # Sample each plane at the same positions in the picture, whatever its resolution.
    rows, columns = (np.arange(count) / count for count in (72, 128))
    shades = [
        plane[np.ix_((rows * plane.shape[0]).astype(int), (columns * plane.shape[1]).astype(int))] // (256 // SHADES)
        for plane in planes
    ]
    place = (shades[0].astype(int) * SHADES + shades[1]) * SHADES + shades[2]
    return np.bincount(place.ravel(), minlength=SHADES**3) / place.size


def _plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    plane = frame.planes[index]
    return np.asarray(memoryview(plane)).reshape(-1, plane.line_size)[: plane.height, : plane.width]
