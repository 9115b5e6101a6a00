"""Sound and frames of a span, decoded at exact times.

Facts this file stands on:
- Times are seconds on the source's own time line: timestamp × time base, as the packets carry them. A transport
  stream starts at 1.5 s; a track may start 60 ms after the other. Nothing is ever aligned by counting samples or
  frames from a stream's start.
- Reading sound from the middle needs packets from before (AAC overlaps its neighbours, Opus settles in 80 ms, MP3
  borrows bits), so decoding starts `PREROLL_S` early and what came before is thrown away.
- A packet that cannot be decoded is counted and skipped: sound is silent there, a picture is missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.video.stream import VideoStream

from data_prep.clip import Clip
from data_prep.media.container import Media, Packets, choose_streams, clock, open_media, seconds_of
from data_prep.media.timestamps import runs

PREROLL_S = 0.25
RESAMPLE_BLOCK = 1 << 16  # samples that stay in the processor's cache: the same result in less than half the time
ROOM = 1 << 21  # samples that a track is given room for at first
FULLEST = 4.0  # no sound is louder, of full scale
FILTER_S = 0.05  # further than the rate converter's filter reaches
INF = float("inf")


def span(clip: Clip) -> tuple[float, float]:
    """In and out point of a kept clip inside its own media, seconds: give them to `decode_audio`, `decode_video`.

    An mp4 clip starts at 0 by its edit list. An mkv clip starts at its first key frame, and its in point lies later.
    """
    return clip.info["in_s"], clip.info["out_s"]


@dataclass
class Sound:
    """Samples on a time line: sample k of `samples` (rows, N) float32 is at `start_s + k / sample_rate`.

    Attributes:
        samples: a row per channel; one row where all are the same to the bit (a mono or a silent track).
        channels: that were asked for.
        first_s, last_s: where the track's own sound begins and ends inside the span; outside it is padding.
        errors: packets that could not be decoded.
        packets: packets read.
        native_rate, native_channels: what the track held.
    """

    samples: np.ndarray
    channels: int
    sample_rate: int
    start_s: float
    first_s: float
    last_s: float
    errors: int = 0
    packets: int = 0
    native_rate: int = 0
    native_channels: int = 0

    def between(self, start_s: float, end_s: float) -> np.ndarray:
        """(channels, round((end_s − start_s) · sample_rate)) samples, silence where there is none.

        Not to be written to: channels that are the same are one place in memory.
        """
        offset = round((start_s - self.start_s) * self.sample_rate)
        count = round((end_s - start_s) * self.sample_rate)
        found = padded(self.samples, offset, count)
        return found if len(found) == self.channels else np.broadcast_to(found, (self.channels, count))


def distinct(samples: np.ndarray) -> np.ndarray:
    """(channels, N) → the channels that differ: one, where all are one place in memory."""
    return samples if samples.strides[0] else samples[:1]


def padded(samples: np.ndarray, offset: int, count: int) -> np.ndarray:
    """`samples[:, offset : offset + count]` with zeros where that reaches outside; a view where it does not."""
    if offset >= 0 and offset + count <= samples.shape[1]:
        return samples[:, offset : offset + count]
    out = np.zeros((samples.shape[0], count), np.float32)
    low, high = max(offset, 0), min(offset + count, samples.shape[1])
    if high > low:
        out[:, low - offset : high - offset] = samples[:, low:high]
    return out


def decode_audio(media: Media, start_s: float, end_s: float, sample_rate: int, channels: int) -> np.ndarray:
    """Sound of a span, aligned on timestamps.

    Args:
        media: path, URI or bytes.
        start_s, end_s: the span, seconds on the source's time line; `end_s` may be inf.
        sample_rate: Hz. channels: 1 or 2; more are mixed down.

    Returns:
        (channels, N) float32, N = round((end_s − start_s) · sample_rate), silence-padded where the track starts late,
        has a hole or ends early; without an audio stream, silence (N = 0 if `end_s` is inf).

    Raises:
        FFmpegError, OSError: the file cannot be opened.
    """
    sound = read_sound(media, start_s, end_s, sample_rate, channels)
    if sound is None:
        return np.zeros((channels, 0 if end_s == INF else round((end_s - start_s) * sample_rate)), np.float32)
    # A copy where channels are one place in memory: what is decoded for others is theirs to write to.
    return np.require(sound.between(start_s, sound.last_s if end_s == INF else end_s), requirements="W")


def read_sound(media: Media, start_s: float, end_s: float, sample_rate: int, channels: int) -> Sound | None:
    """As `decode_audio`, with what was found out on the way; None without an audio stream."""
    with open_media(media) as container:
        stream = choose_streams(container).audio
        if stream is None:
            return None
        _begin(stream)
        layout = "mono" if channels == 1 else "stereo"
        buffer = _SoundBuffer(layout, stream.time_base)
        packets, time_of = Packets(container, stream, start_s - PREROLL_S), clock(stream)
        for packet in packets:
            stamp = time_of(packet)
            if stamp is not None and stamp >= end_s:
                break
            buffer.packets += bool(packet.size)
            try:
                for frame in packet.decode():
                    buffer.add(frame)
            except (FFmpegError, ValueError):
                buffer.errors += 1
        buffer.errors += bool(packets.error)
    return buffer.sound(start_s, end_s, sample_rate)


def _begin(stream: AudioStream | VideoStream) -> None:
    """Make a stream's decoder ready: one thread, and nothing left of what it decoded before."""
    if stream.codec_context.is_open:
        stream.codec_context.flush_buffers()
    else:
        stream.codec_context.thread_count = 1


class _SoundBuffer:
    """Decoded frames with their times, mixed to mono or stereo many at a time: each by itself costs twice as much."""

    def __init__(self, layout: str, base: Fraction | None) -> None:
        self.layout, self.base = layout, base
        self.rate = self.channels = 0
        self.times: list[float] = []
        self.ends = [0]  # samples after each frame, at `rate`
        self.blocks: list[np.ndarray] = []  # (channels, samples) of each form before; one row for all alike
        self.block, self.count = np.empty((1, 0), np.float32), 0  # of the running form, with room for more
        self.form = ("", "", 0)
        self.waiting, self.before = av.AudioFifo(), 0
        self.mixer: av.AudioResampler | None = None
        self.errors = self.packets = 0

    def add(self, frame: av.AudioFrame) -> None:
        form = frame.format.name, frame.layout.name, frame.sample_rate
        if form != self.form:
            self._begin(*form, frame.layout.nb_channels)
        if frame.pts is not None and self.base is not None:
            time_s = seconds_of(frame.pts, self.base)
        else:
            time_s = self.times[-1] + (self.ends[-1] - self.ends[-2]) / self.rate if self.times else 0.0
        frame.pts = None  # the queue is not to keep time; this does
        self.waiting.write(frame)
        self.times.append(time_s)
        self.ends.append(self.before + round(self.waiting.samples_written * self.rate / frame.sample_rate))
        if self.waiting.samples >= RESAMPLE_BLOCK:
            self._mix()

    def _begin(self, name: str, layout: str, rate: int, channels: int) -> None:
        """Frames of another form follow, or the first ones."""
        self._finish()
        if not self.rate:
            self.rate, self.channels = rate, channels
        self.form, self.waiting, self.before = (name, layout, rate), av.AudioFifo(), self.ends[-1]
        # In the common case nothing is to be mixed. Mono is doubled at the end: a mixer would change its level.
        self.mixer = None
        if name != "fltp" or rate != self.rate or layout not in (self.layout, "mono"):
            target = "mono" if layout == "mono" else self.layout
            self.mixer = av.AudioResampler(format="fltp", layout=target, rate=self.rate)

    def _mix(self) -> None:
        frame = self.waiting.read()
        if frame is not None:
            frames = self.mixer.resample(frame) if self.mixer else [frame]
            for mixed in frames:
                self._append(mixed)

    def _finish(self) -> None:
        """Mix what waits; what the mixer rounded at another rate is made good."""
        self._mix()
        if self.mixer is not None:
            for mixed in self.mixer.resample(None):
                self._append(mixed)
        if self.count or self.blocks:
            wanted = self.ends[-1] - sum(block.shape[1] for block in self.blocks)
            self.blocks.append(padded(self.block[:, : self.count], 0, max(0, wanted)))
            self.block, self.count = np.empty((1, 0), np.float32), 0

    def _append(self, frame: av.AudioFrame) -> None:
        if self.count + frame.samples > self.block.shape[1]:
            # Room that is never filled costs nothing: the system gives memory when it is written to.
            more = np.empty((len(frame.planes), max(ROOM, 2 * (self.count + frame.samples))), np.float32)
            more[:, : self.count] = self.block[:, : self.count]
            self.block = more
        self.count = _put(frame, self.block, self.count)

    def sound(self, start_s: float, end_s: float, sample_rate: int) -> Sound:
        self._finish()
        channels = 1 if self.layout == "mono" else 2
        lengths = [after - before for before, after in pairwise(self.ends)]
        found = [run for run in runs(self.times, lengths, self.rate) if run.begin_s < end_s] if any(lengths) else []
        if not found:
            empty = np.zeros((1, 0), np.float32)
            return Sound(empty, channels, sample_rate, start_s, start_s, start_s, self.errors, self.packets)
        rows = max(len(block) for block in self.blocks)
        wide = [np.broadcast_to(block, (rows, block.shape[1])) for block in self.blocks]
        whole = wide[0] if len(wide) == 1 else np.concatenate(wide, axis=1)
        self.blocks.clear()
        pieces = [(run.begin_s, self.ends[run.first], self.ends[run.last]) for run in found]
        begin = min(begin_s for begin_s, _, _ in pieces)
        end = max(begin_s + (last - first) / self.rate for begin_s, first, last in pieces)
        # What lies more than the rate filter's reach outside the span is dropped before the filter.
        low_s, high_s = max(begin, start_s - FILTER_S), min(end, end_s + FILTER_S)
        count = max(0, round((high_s - low_s) * self.rate))
        if len(pieces) == 1:
            native = padded(whole, round((low_s - begin) * self.rate), count)
        else:
            native = np.zeros((rows, count), np.float32)
            for begin_s, first, last in pieces:  # where two say the same time, the later one is heard
                position = round((begin_s - low_s) * self.rate)
                low, high = max(0, position), min(count, position + last - first)
                if high > low:
                    native[:, low:high] = whole[:, first + low - position : first + high - position]
        # A broken decoder's NaN or 1e30 would poison every measure after it.
        if not -FULLEST <= native.min(initial=0.0) <= native.max(initial=0.0) <= FULLEST:
            native = np.clip(np.nan_to_num(native, nan=0.0, posinf=0.0, neginf=0.0), -FULLEST, FULLEST)
        if len(native) > 1 and np.array_equal(native[0], native[1]):
            native = native[:1]
        samples = resample(native, self.rate, sample_rate)
        first, last = max(begin, start_s), max(begin, start_s, min(end, end_s))
        return Sound(
            *(samples, channels, sample_rate, low_s, first, last, self.errors, self.packets, self.rate, self.channels)
        )


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """(channels, N) float32 at `rate` Hz → (channels, ≈ N · target / rate) at `target` Hz; sample 0 stays at time 0."""
    if rate == target or not samples.shape[1]:
        return samples
    if not samples.any():  # a silent track is found out before it costs anything
        return np.zeros((samples.shape[0], round(samples.shape[1] * target / rate)), np.float32)
    layout = "mono" if samples.shape[0] == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=target)
    out = np.empty((samples.shape[0], samples.shape[1] * target // rate + RESAMPLE_BLOCK), np.float32)
    count = 0
    for start in range(0, samples.shape[1], RESAMPLE_BLOCK):
        piece = np.ascontiguousarray(samples[:, start : start + RESAMPLE_BLOCK], np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate = rate
        for done in resampler.resample(frame):
            count = _put(done, out, count)
    for done in resampler.resample(None):
        count = _put(done, out, count)
    return out[:, :count]


def _put(frame: av.AudioFrame, out: np.ndarray, first: int) -> int:
    """Copy a planar float frame into `out` (channels, N) from column `first`; where it ends there."""
    last = first + frame.samples
    for row, plane in zip(out, frame.planes, strict=True):
        row[first:last] = np.frombuffer(memoryview(plane), np.float32, frame.samples)
    return last


@dataclass(frozen=True)
class Picture:
    """What a video stream shows: display size (rotation and pixel shape applied), degrees to turn counter-clockwise."""

    width: int
    height: int
    rotation: int


def picture(frame: av.VideoFrame, stream: VideoStream) -> Picture:
    """How `frame` is to be shown."""
    turn = round(frame.rotation / 90) * 90 % 360
    shape = stream.sample_aspect_ratio
    width, height = frame.width, frame.height
    if shape and 0.1 < shape < 10 and shape != 1:
        width = max(2, round(width * float(shape) / 2) * 2)
    return Picture(height, width, turn) if turn % 180 else Picture(width, height, turn)


def iterate_video(
    media: Media,
    start_s: float,
    end_s: float,
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    only: set[float] | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """Frames of a span, one at a time: (time in seconds on the source's time line, (H, W, 3) uint8 RGB).

    Args as `decode_video`; `only` picks frames by their times, without `fps`. Gives nothing without a video stream.
    """
    with open_media(media) as container:
        stream = choose_streams(container).video
        if stream is None:
            return
        _begin(stream)
        shown = _shown(Packets(container, stream, start_s), stream, start_s, end_s, display=fps is not None)
        if fps is None:
            for time_s, frame in shown:
                if only is None or time_s in only:
                    yield time_s, _pixels(frame, stream, size)
        else:
            yield from _resampled(shown, stream, start_s, end_s, fps, size)


def decode_video(
    media: Media,
    start_s: float,
    end_s: float,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a span, upright and with square pixels.

    Args:
        media: path, URI or bytes.
        start_s, end_s: the span, seconds on the source's time line; `end_s` may be inf.
        fps: None for the frames as they are, those with a timestamp in [start_s, end_s). A number for a constant
            rate: frame k is what is on display at start_s + k / fps, for round((end_s − start_s) · fps) frames.
        max_frames: at most this many frames, spread evenly over the span. With `fps`, the first ones.
        size: (height, width) to scale to.

    Returns:
        frames (F, H, W, 3) uint8 RGB and their times (F,) float64 in seconds; F = 0 when there is no picture.

    Raises:
        FFmpegError, OSError: the file cannot be opened.
    """
    only = None
    if fps is None and max_frames is not None:
        stamps = frame_times(media, start_s, end_s)
        if len(stamps) > max_frames:
            only = {stamps[round(i)] for i in np.linspace(0, len(stamps) - 1, max_frames)}
    frames, times = [], []
    for time_s, pixels in iterate_video(media, start_s, end_s, fps=fps, size=size, only=only):
        if len(frames) == max_frames:
            break
        # A stream that changes its size inside the span is brought to the size it had first.
        if frames and pixels.shape != frames[0].shape:
            reshaped = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            height, width = frames[0].shape[:2]
            pixels = reshaped.reformat(width=width, height=height).to_ndarray()
        frames.append(pixels)
        times.append(time_s)
    height, width = size or (0, 0)
    stacked = np.stack(frames) if frames else np.zeros((0, height, width, 3), np.uint8)
    return stacked, np.array(times, np.float64)


def frame_times(media: Media, start_s: float, end_s: float) -> list[float]:
    """Presentation times in [start_s, end_s) of the chosen video stream's packets, ordered; nothing is decoded."""
    with open_media(media) as container:
        stream = choose_streams(container).video
        if stream is None:
            return []
        half = float(stream.time_base or 0) / 2
        times = []
        late, time_of = 0, clock(stream)
        for packet in Packets(container, stream, start_s):
            time_s = time_of(packet)
            if time_s is None or packet.is_discard or not packet.size:
                continue
            # Packets come in decoding order: some that are shown before the end follow ones shown after it.
            late = late + 1 if time_s >= end_s else 0
            if late > 64:
                break
            if start_s - half <= time_s < end_s - half:
                times.append(time_s)
        return sorted(times)


def _shown(packets: Packets, stream: VideoStream, start_s: float, end_s: float, *, display: bool):
    """(time, frame) in order of presentation for the frames with a time in [start_s, end_s).

    With `display`, also the last frame before `start_s` when the span does not begin with one of its own: it is what
    is on display there.
    """
    half = float(stream.time_base or 0) / 2
    before = None
    for frame in decoded(packets):
        if frame.pts is None or frame.time_base is None:
            continue
        time_s = seconds_of(frame.pts, frame.time_base)
        if time_s >= end_s - half:
            break
        if time_s < start_s - half:
            before = (time_s, frame)
            continue
        if display and before is not None and time_s > start_s + half:
            yield before
        before, display = None, False
        yield time_s, frame
    if display and before is not None:
        yield before


def decoded(packets: Packets) -> Iterator[av.VideoFrame]:
    """Every frame that can be decoded; packets that cannot are skipped."""
    for packet in packets:
        try:
            yield from packet.decode()
        except (FFmpegError, ValueError):
            continue


def _resampled(shown, stream: VideoStream, start_s: float, end_s: float, fps: float, size: tuple[int, int] | None):
    """The frame on display at each start_s + k / fps; before the first frame, that one."""
    # Timestamps in whole milliseconds put a frame up to 1 ms away from where its rate wants it. A clip cut from
    # Matroska keeps them, though mp4 counts more finely.
    slack = min(max(float(stream.time_base or 0), 0.001) + 1e-6, 0.25 / fps)
    count = None if end_s == INF else round((end_s - start_s) * fps)
    index = 0
    last_s = start_s
    current: av.VideoFrame | None = None
    pixels: np.ndarray | None = None

    def due(until_s: float):
        nonlocal index, pixels
        while (start_s + index / fps + slack < until_s) and (count is None or index < count):
            if pixels is None:
                assert current is not None, "a frame is on display before any time is due"
                pixels = _pixels(current, stream, size)
            yield start_s + index / fps, pixels
            index += 1

    for time_s, frame in shown:
        if current is not None:
            yield from due(time_s)
        current, pixels = frame, None
        last_s = time_s
    if current is not None:
        yield from due(last_s + 2 * slack if count is None else INF)


def _pixels(frame: av.VideoFrame, stream: VideoStream, size: tuple[int, int] | None) -> np.ndarray:
    look = picture(frame, stream)
    height, width = size or (look.height, look.width)
    if look.rotation % 180:
        height, width = width, height
    pixels = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, look.rotation // 90)) if look.rotation else pixels
