"""Decode the sound and the frames of a span at exact times.

- Times are seconds on the source's time line: timestamp × time base, as the packets store them. A transport stream
  starts at 1.5 s; one stream may start 60 ms after the other. So picture and sound are aligned by these times, never by
  counting frames or samples from the start of a stream.
- To decode sound from the middle, a decoder needs earlier packets (AAC frames overlap, Opus settles in 80 ms, MP3 uses
  bits of earlier frames). So decoding starts `PREROLL_S` early, and the sound before the span is discarded.
- A packet that cannot be decoded is counted and skipped: the sound is silent there, or the picture is missing.
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
RESAMPLE_BLOCK = 1 << 16  # samples that fit in the processor's cache: the same result in less than half the time
ROOM = 1 << 21  # capacity of a stream's first buffer, samples
FULLEST = 4.0  # largest magnitude of a sample, relative to full scale: louder samples come from damage
FILTER_S = 0.05  # seconds; longer than the rate converter's filter
INF = float("inf")


def span(clip: Clip) -> tuple[float, float]:
    """Return the in and the out point of a kept clip in its own file, seconds: the span to decode.

    An mp4 clip starts at 0, by its edit list. An mkv file starts at a key frame, and the clip's in point comes later.
    """
    return clip.info["in_s"], clip.info["out_s"]


@dataclass
class Sound:
    """Samples on a time line: sample k is at `start_s + k / sample_rate` seconds.

    Attributes:
        samples: (rows, N) float32, a row per channel; one row if all channels are identical (mono or silence).
        channels: the requested number of channels.
        sample_rate: Hz.
        start_s: time of the first sample, seconds.
        first_s, last_s: where the stream's sound begins and ends inside the span; outside is padding.
        errors: number of packets that could not be decoded.
        packets: number of packets read.
        native_rate, native_channels: sample rate and channels of the stream.
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
        """Return the samples from `start_s` to `end_s` on the time line, with silence where the stream has no sound.

        Returns:
            (channels, round((end_s − start_s) · sample_rate)) float32. Do not write to it: equal channels may share
            their memory.
        """
        offset = round((start_s - self.start_s) * self.sample_rate)
        count = round((end_s - start_s) * self.sample_rate)
        found = padded(self.samples, offset, count)
        return found if len(found) == self.channels else np.broadcast_to(found, (self.channels, count))


def distinct(samples: np.ndarray) -> np.ndarray:
    """Return (1, N) samples if the channels of (channels, N) share their memory, else `samples` as they are.

    `Sound.between` returns such channels if they are equal. The caller then does its work only once.
    """
    return samples if samples.strides[0] else samples[:1]


def padded(samples: np.ndarray, offset: int, count: int) -> np.ndarray:
    """Return `samples[:, offset : offset + count]`, with zeros where this range lies outside of the array.

    The result, (rows, count), is a view if nothing lies outside.
    """
    if offset >= 0 and offset + count <= samples.shape[1]:
        return samples[:, offset : offset + count]
    out = np.zeros((samples.shape[0], count), np.float32)
    low, high = max(offset, 0), min(offset + count, samples.shape[1])
    if high > low:
        out[:, low - offset : high - offset] = samples[:, low:high]
    return out


def decode_audio(media: Media, start_s: float, end_s: float, sample_rate: int, channels: int) -> np.ndarray:
    """Decode the sound of a span, aligned by timestamps.

    Args:
        media: path, URI or bytes.
        start_s: start of the span, seconds on the source's time line.
        end_s: end of the span, seconds; may be inf.
        sample_rate: of the result, Hz.
        channels: of the result, 1 or 2; more channels are mixed down.

    Returns:
        (channels, N) float32 with N = round((end_s − start_s) · sample_rate), padded with silence where the stream
        starts late, has a gap or ends early. Without an audio stream, silence (N = 0 if `end_s` is inf).

    Raises:
        FFmpegError, OSError: the file cannot be opened.
    """
    sound = read_sound(media, start_s, end_s, sample_rate, channels)
    if sound is None:
        return np.zeros((channels, 0 if end_s == INF else round((end_s - start_s) * sample_rate)), np.float32)
    # Copy if channels share their memory: callers may write to the result.
    return np.require(sound.between(start_s, sound.last_s if end_s == INF else end_s), requirements="W")


def read_sound(media: Media, start_s: float, end_s: float, sample_rate: int, channels: int) -> Sound | None:
    """Decode the sound of a span like `decode_audio`, and also return the errors, times and format of the stream.

    Returns None if there is no audio stream.
    """
    with open_media(media) as container:
        stream = choose_streams(container).audio
        if stream is None:
            return None
        _prepare_decoder(stream)
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


def _prepare_decoder(stream: AudioStream | VideoStream) -> None:
    """Set a new decoder to one thread, or clear the state that earlier decoding left in a used one."""
    if stream.codec_context.is_open:
        stream.codec_context.flush_buffers()
    else:
        stream.codec_context.thread_count = 1


class _SoundBuffer:
    """A collector of decoded audio frames and their times, which mixes them to mono or stereo.

    Frames wait in a queue and are mixed in large blocks, because mixing one by one costs twice as much. All samples are
    stored at `rate`, the sample rate of the first frame.
    """

    def __init__(self, layout: str, base: Fraction | None) -> None:
        self.layout, self.base = layout, base
        self.rate = self.channels = 0
        self.times: list[float] = []
        self.ends = [0]  # number of samples up to the end of each frame, at `rate`
        self.blocks: list[np.ndarray] = []  # (channels, samples) of each earlier format; one row if channels are equal
        self.block, self.count = np.empty((1, 0), np.float32), 0  # of the current format, with spare capacity
        self.form = ("", "", 0)  # sample format, layout and rate of the current block's frames
        self.waiting, self.before = av.AudioFifo(), 0  # frames to mix, and number of samples before this block
        self.mixer: av.AudioResampler | None = None
        self.errors = self.packets = 0

    def add(self, frame: av.AudioFrame) -> None:
        """Add a frame at its timestamp, or at the end of the last frame if it has none."""
        form = frame.format.name, frame.layout.name, frame.sample_rate
        if form != self.form:
            self._start_block(*form, frame.layout.nb_channels)
        if frame.pts is not None and self.base is not None:
            time_s = seconds_of(frame.pts, self.base)
        else:
            time_s = self.times[-1] + (self.ends[-1] - self.ends[-2]) / self.rate if self.times else 0.0
        frame.pts = None  # `times` has it, and the queue refuses timestamps with gaps
        self.waiting.write(frame)
        self.times.append(time_s)
        self.ends.append(self.before + round(self.waiting.samples_written * self.rate / frame.sample_rate))
        if self.waiting.samples >= RESAMPLE_BLOCK:
            self._mix()

    def _start_block(self, name: str, layout: str, rate: int, channels: int) -> None:
        """Start a new block: a frame differs in sample format, layout or rate from the last one, or is the first."""
        self._finish()
        if not self.rate:
            self.rate, self.channels = rate, channels
        self.form, self.waiting, self.before = (name, layout, rate), av.AudioFifo(), self.ends[-1]
        # In the common case nothing needs mixing. Mono is doubled at the end: a mixer would change its level.
        self.mixer = None
        if name != "fltp" or rate != self.rate or layout not in (self.layout, "mono"):
            target = "mono" if layout == "mono" else self.layout
            self.mixer = av.AudioResampler(format="fltp", layout=target, rate=self.rate)

    def _mix(self) -> None:
        """Mix the frames that wait in the queue, and append them to the current block."""
        frame = self.waiting.read()
        if frame is not None:
            frames = self.mixer.resample(frame) if self.mixer else [frame]
            for mixed in frames:
                self._append(mixed)

    def _finish(self) -> None:
        """End the current block: mix the frames in the queue, then cut or pad the block to its exact number of samples.

        A mixer that converts the sample rate rounds this number.
        """
        self._mix()
        if self.mixer is not None:
            for mixed in self.mixer.resample(None):
                self._append(mixed)
        if self.count or self.blocks:
            wanted = self.ends[-1] - sum(block.shape[1] for block in self.blocks)
            self.blocks.append(padded(self.block[:, : self.count], 0, max(0, wanted)))
            self.block, self.count = np.empty((1, 0), np.float32), 0

    def _append(self, frame: av.AudioFrame) -> None:
        """Copy a mixed frame to the end of the current block; enlarge the block if it is full."""
        if self.count + frame.samples > self.block.shape[1]:
            # Unused capacity costs nothing: the system provides memory when it is written to.
            more = np.empty((len(frame.planes), max(ROOM, 2 * (self.count + frame.samples))), np.float32)
            more[:, : self.count] = self.block[:, : self.count]
            self.block = more
        self.count = _put(frame, self.block, self.count)

    def sound(self, start_s: float, end_s: float, sample_rate: int) -> Sound:
        """Return the sound of [start_s, end_s) at `sample_rate` Hz. Call it once, after the last frame."""
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
        # Drop samples that are further outside the span than the rate converter's filter reaches.
        low_s, high_s = max(begin, start_s - FILTER_S), min(end, end_s + FILTER_S)
        count = max(0, round((high_s - low_s) * self.rate))
        if len(pieces) == 1:
            native = padded(whole, round((low_s - begin) * self.rate), count)
        else:
            native = np.zeros((rows, count), np.float32)
            for begin_s, first, last in pieces:  # where two overlap in time, the later one replaces the other
                position = round((begin_s - low_s) * self.rate)
                low, high = max(0, position), min(count, position + last - first)
                if high > low:
                    native[:, low:high] = whole[:, first + low - position : first + high - position]
        # A NaN or 1e30 from a damaged stream would spoil every later measurement.
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
    """Convert the sample rate; sample 0 stays at time 0.

    Args:
        samples: (channels, N) float32, 1 or 2 channels.
        rate: of the samples, Hz.
        target: of the result, Hz.

    Returns:
        (channels, ≈ N · target / rate) float32.
    """
    if rate == target or not samples.shape[1]:
        return samples
    if not samples.any():  # silence needs no filter
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
    """Copy a planar float frame into the columns of `out` (channels, N) from `first` on. Return the column after it."""
    last = first + frame.samples
    for row, plane in zip(out, frame.planes, strict=True):
        row[first:last] = np.frombuffer(memoryview(plane), np.float32, frame.samples)
    return last


@dataclass(frozen=True)
class Picture:
    """The size and the rotation with which a video frame is shown.

    Attributes:
        width, height: display size, pixels, after rotation and with square pixels.
        rotation: degrees to turn the frame counter-clockwise.
    """

    width: int
    height: int
    rotation: int


def picture(frame: av.VideoFrame, stream: VideoStream) -> Picture:
    """Return the display size and rotation of a frame; the stream gives the shape of its pixels."""
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
    """Decode the frames of a span one at a time, upright and with square pixels.

    Args:
        media: path, URI or bytes.
        start_s: start of the span, seconds on the source's time line.
        end_s: end of the span, seconds; may be inf.
        fps: constant rate, or None for the frames as they are.
        size: (height, width) to scale to.
        only: without `fps`, times of the frames to yield, as `frame_times` returns them; None for all frames.

    Yields:
        (time in seconds on the source's time line, (H, W, 3) uint8 RGB); nothing if there is no video stream.
    """
    with open_media(media) as container:
        stream = choose_streams(container).video
        if stream is None:
            return
        _prepare_decoder(stream)
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
    """Decode the frames of a span, upright and with square pixels.

    Args:
        media: path, URI or bytes.
        start_s: start of the span, seconds on the source's time line.
        end_s: end of the span, seconds; may be inf.
        fps: None for the frames as they are, with timestamps in [start_s, end_s). A number for a constant rate: frame k
            is the one on display at start_s + k / fps, for round((end_s − start_s) · fps) frames.
        max_frames: at most this many frames, spread evenly over the span; with `fps`, the first ones.
        size: (height, width) to scale to.

    Returns:
        frames (F, H, W, 3) uint8 RGB and their times (F,) float64 in seconds; F = 0 if there is no picture.

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
        # If the stream changes its size inside the span, scale later frames to the first size.
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
    """Read the presentation times in [start_s, end_s) of the video stream's packets, in order. Decodes nothing."""
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
            # Packets come in decoding order: some shown before the end follow others shown after it.
            late = late + 1 if time_s >= end_s else 0
            if late > 64:
                break
            if start_s - half <= time_s < end_s - half:
                times.append(time_s)
        return sorted(times)


def _shown(packets: Packets, stream: VideoStream, start_s: float, end_s: float, *, display: bool):
    """Yield (time, frame) in order of presentation for the frames with a time in [start_s, end_s).

    With `display`, and if the first of these comes after `start_s`, also yield the last frame before `start_s`, which
    is on display at that time.
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
    """Yield every frame that the packets decode to; skip packets that cannot be decoded."""
    for packet in packets:
        try:
            yield from packet.decode()
        except (FFmpegError, ValueError):
            continue


def _resampled(shown, stream: VideoStream, start_s: float, end_s: float, fps: float, size: tuple[int, int] | None):
    """Yield (time, (H, W, 3) uint8 pixels) at a constant rate: for each start_s + k / fps the frame on display.

    `shown` yields (time, frame), as `_shown` does. Before the first frame is on display, that frame is taken.
    """
    # A timestamp rounded to a millisecond is up to 1 ms off. A clip cut from Matroska keeps such timestamps, although
    # the time base of mp4 is finer.
    slack = min(max(float(stream.time_base or 0), 0.001) + 1e-6, 0.25 / fps)
    count = None if end_s == INF else round((end_s - start_s) * fps)
    index = 0
    last_s = start_s
    current: av.VideoFrame | None = None
    pixels: np.ndarray | None = None

    def due(until_s: float):
        """Yield the current frame for each remaining output time before `until_s`."""
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
    """Return a frame as (H, W, 3) uint8 RGB: upright, with square pixels, scaled to `size` (height, width) if given."""
    look = picture(frame, stream)
    height, width = size or (look.height, look.width)
    if look.rotation % 180:
        height, width = width, height
    pixels = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, look.rotation // 90)) if look.rotation else pixels
