"""Thumbnails: small frames, decoded cheaply, to detect whether the picture changes.

Two things are skipped to save time: deblocking, whose effect cannot be seen at 32 × 18 pixels; and, where not every
frame is needed, the frames that no other frame refers to. No returned frame depends on a skipped one.

Key frames cost most, 9 ms each at 1080p. Scene cuts, fingerprints and the clip's record all use them. So everything
that any of these needs is computed when a key frame is first decoded, and stored.
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
MEANS = 32  # `KeyThumbnail.means` has this many rows and columns
# Seconds. `Thumbnails.between` stores no key frame that follows another sooner: in some files every frame is one.
APART_S = 0.4
SHADES = 8  # levels per colour component in the histogram
_PLANAR = frozenset(["yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"])


@dataclass(frozen=True)
class Thumbnail:
    """A small frame.

    Attributes:
        time_s: seconds on the source's time line.
        light: mean brightness of 18 × 32 blocks, (18, 32) float32 in [0, 1].
    """

    time_s: float
    light: np.ndarray

    def difference(self, other: "Thumbnail") -> float:
        """Return the mean absolute difference of the brightness of two thumbnails, 0 to 1."""
        return float(np.abs(self.light - other.light).mean())


@dataclass(frozen=True)
class KeyThumbnail(Thumbnail):
    """A small key frame.

    Attributes:
        colours: histogram, (512,): the share of the pixels in each of 8 × 8 × 8 ranges of colour.
        means: mean brightness of 32 × 32 blocks, (32, 32), 0 to 255, for the perceptual hash.
        shown: display size and rotation of the picture.
    """

    colours: np.ndarray
    means: np.ndarray
    shown: Picture

    def recoloured(self, other: "KeyThumbnail") -> float:
        """Return the share of the pixels, 0 to 1, that need another colour to make the two histograms equal."""
        return float(np.abs(self.colours - other.colours).sum() / 2)


class Thumbnails:
    """The thumbnails of one video stream. It sets up the decoder, and stores the key frames that it decodes."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self._keys: dict[float, KeyThumbnail] = {}
        if not stream.codec_context.is_open:
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"skip_loop_filter": "all"}

    def keys(self, times_s: Sequence[float], within_s: float) -> dict[float, KeyThumbnail]:
        """Return the key frames at the given times; decode those that are not stored.

        Args:
            times_s: in ascending order, seconds.
            within_s: a key frame may differ from the given time by less than this, seconds.

        Returns:
            Thumbnails by the given time; key frames that cannot be decoded are missing.
        """
        new = np.array([time_s for time_s in times_s if time_s not in self._keys])
        self.stream.codec_context.skip_frame = "NONKEY"
        for time_s, frame in self._decoded(self._only(new, within_s)):
            nearest = float(new[np.abs(new - time_s).argmin()])
            if abs(nearest - time_s) < within_s:
                self._keys[nearest] = self._key(nearest, frame)
        return {time_s: self._keys[time_s] for time_s in times_s if time_s in self._keys}

    def before(self, start_s: float) -> KeyThumbnail | None:
        """Decode the key frame from which a decoder reaches `start_s` (seconds); None if that fails."""
        self.stream.codec_context.skip_frame = "NONKEY"
        packets = (packet for packet in Packets(self.container, self.stream, start_s) if packet.is_keyframe)
        return next((self._key(*found) for found in self._decoded(islice(packets, 1))), None)

    def _key(self, time_s: float, frame: av.VideoFrame) -> KeyThumbnail:
        """Compute the thumbnail of a decoded key frame."""
        means = _means(brightness(frame, MEANS, MEANS), MEANS)
        return KeyThumbnail(time_s, _light(frame), _colours(frame), means, picture(frame, self.stream))

    def _only(self, times_s: np.ndarray, within_s: float) -> Iterator[av.Packet]:
        """Yield the packets of key frames less than `within_s` from one of `times_s` (seconds, ascending)."""
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
            start_s: seconds on the source's time line.
            end_s: likewise.
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
        """Yield (seconds, frame) of the frames that the packets decode to; skip packets that cannot be decoded."""
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
        """Yield (seconds, frame) of the frames that have a timestamp."""
        for frame in frames:
            # Frames that the decoder returns at its end carry no time base.
            time_base = frame.time_base or self.stream.time_base
            if frame.pts is not None and time_base is not None:
                yield seconds_of(frame.pts, time_base), frame


def brightness(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """Return the brightness of a frame, made smaller by leaving out pixels.

    Args:
        frame: of any pixel format.
        height: the result has at least twice as many rows, and about 8 times as many for a large frame.
        width: the same for columns.

    Returns:
        (≥ 2 · height, ≥ 2 · width) uint8.
    """
    if frame.format.name in _PLANAR and frame.height >= 2 * height and frame.width >= 2 * width:
        step = max(1, min(frame.height // height, frame.width // width) // 8)
        return _plane(frame, 0)[::step, ::step]  # pick pixels: true scaling costs as much as decoding
    return frame.reformat(width=4 * width, height=4 * height, format="gray").to_ndarray()


def _light(frame: av.VideoFrame) -> np.ndarray:
    """Return the mean brightness of 18 × 32 blocks of a frame: (18, 32) float32 in [0, 1]."""
    height, width = SMALL
    pixels = brightness(frame, height, width)
    tall, wide = pixels.shape[0] // height, pixels.shape[1] // width
    rows = pixels[: tall * height, : wide * width].reshape(height, tall, width * wide).sum(axis=1, dtype=np.uint16)
    return rows.reshape(height, width, wide).sum(axis=2, dtype=np.float32) / np.float32(255 * tall * wide)


def _means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Divide pixels (H, W), H and W at least `side`, into side × side blocks. Return their means, (side, side)."""
    tall, wide = (np.linspace(0, length, side + 1).astype(int) for length in pixels.shape)
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), tall[:-1], axis=0), wide[:-1], axis=1)
    return sums / np.outer(np.diff(tall), np.diff(wide))


def _colours(frame: av.VideoFrame) -> np.ndarray:
    """Return the colour histogram of a frame, (512,): the share of the pixels in each range.

    The ranges are 8 of brightness × 8 of each of the two colour differences.
    """
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
    """Return plane `index` of a frame as (H, W) uint8: a view without the padding at the end of each line."""
    plane = frame.planes[index]
    return np.asarray(memoryview(plane)).reshape(-1, plane.line_size)[: plane.height, : plane.width]
