"""Open a container with PyAV, choose its streams, and read packets, starting at any time.

Trust packets, not headers: durations, frame counts and rates in headers may be wrong. Reading a damaged container ends
at the damage, and `Packets.error` says why.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import dropwhile
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from data_prep.curation.sandbox import beat
from data_prep.dataset import storage

SEEK_BACK_S = (0.0, 2.0, 10.0)  # seek this much earlier than wanted; try the next if a seek lands too late
BEFORE_ALL_S = 10  # seconds; no stream begins this long before the container's start time

# PyAV raises IndexError when a new stream appears in the middle of a damaged file.
_BROKEN = (FFmpegError, OSError, IndexError)

Media = str | Path | bytes | InputContainer

# Probing a file decodes pictures, up to 20 of H.264. Skip deblocking there; decoders opened later are not affected.
_OPTIONS = {"skip_loop_filter": "all"}

# To read only packets and sound, probe without decoding pictures, if the headers describe the streams.
_GLANCE = {"skip_frame": "all", "probesize": str(64 << 10)}
_MATROSKA, _MP4 = b"\x1a\x45\xdf\xa3", b"ftyp"  # first bytes of a file; mp4's follow four other bytes

# id() of each open container from which something was read, so that it is no longer at its start.
_READ: set[int] = set()


@dataclass(frozen=True)
class Streams:
    """The video and the audio stream chosen from a container.

    Attributes:
        video, audio: the chosen streams, None where there is none.
        record: number of streams of each kind, and the index of the chosen ones, for the clip's info.
    """

    video: VideoStream | None
    audio: AudioStream | None
    record: dict[str, int] = field(default_factory=dict)


@contextmanager
def open_media(media: Media) -> Iterator[InputContainer]:
    """Open a path, an fsspec URI, or the bytes of a file.

    An open container is passed through and stays open, because probing a file costs as much as decoding a second of it.

    Raises:
        FFmpegError, OSError: the file cannot be opened.
    """
    if isinstance(media, InputContainer):
        yield media
        return
    with _opened(media) as container:
        _READ.discard(id(container))
        yield container


@contextmanager
def open_for_sound(uri: str) -> Iterator[InputContainer]:
    """Open a source to read packets and decode sound. Its pictures cannot be decoded.

    A file whose headers describe its streams (Matroska, mp4) is opened without probing its pictures, in a fifth of the
    time that `open_media` takes.
    """
    with storage.open_read(uri.removeprefix("file://")) as file:
        begins = file.read(8)
    headed = begins.startswith(_MATROSKA) or begins.endswith(_MP4)
    with _opened(uri, _GLANCE if headed else _OPTIONS) as container:
        _READ.discard(id(container))
        yield container


@contextmanager
def _opened(media: str | Path | bytes, options: dict[str, str] = _OPTIONS) -> Iterator[InputContainer]:
    """Open a path, an fsspec URI or the bytes of a file with PyAV. `options` are FFmpeg's, for probing the file."""
    if isinstance(media, bytes):
        with av.open(io.BytesIO(media), "r", metadata_errors="ignore", options=options) as container:
            yield container
    elif storage.is_remote(str(media)):
        with (
            storage.open_read(str(media)) as file,
            av.open(file, "r", metadata_errors="ignore", options=options) as container,
        ):
            yield container
    else:
        path = str(media).removeprefix("file://")
        with av.open(path, "r", metadata_errors="ignore", options=options, timeout=30.0) as container:
            yield container


def choose_streams(container: InputContainer) -> Streams:
    """Choose the video and the audio stream to read: prefer a stream marked as default, then the best one.

    The best video has the largest picture (cover art excluded); the best audio has the highest sample rate, then the
    most channels. Among equal ones take the longest, then the first.
    """

    def seconds(stream) -> float:
        return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0

    def default(stream) -> bool:
        return bool(stream.disposition & Disposition.default)

    videos = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None
    ]
    audios = [stream for stream in container.streams.audio if stream.codec_context is not None]
    video = max(videos, key=lambda s: (default(s), s.width * s.height, seconds(s), -s.index), default=None)
    audio = max(audios, key=lambda s: (default(s), s.sample_rate, s.channels, seconds(s), -s.index), default=None)
    record = {"video_streams": len(videos), "audio_streams": len(audios)}
    if video is not None:
        record["video_stream"] = video.index
    if audio is not None:
        record["audio_stream"] = audio.index
    return Streams(video, audio, record)


class Packets:
    """An iterable over the packets of one stream, from the one where decoding must begin to reach `start_s`.

    Damage in the container ends the iteration without an exception. Each iteration seeks first, so a container may be
    read several times, one after the other.

    Attributes:
        container, stream: the open container, and the stream in it.
        start_s: seconds on the source's time line.
        error: the error that ended the stream early, "" if there was none.
    """

    def __init__(self, container: InputContainer, stream: VideoStream | AudioStream, start_s: float) -> None:
        self.container, self.stream, self.start_s = container, stream, start_s
        self.error = ""

    def __iter__(self) -> Iterator[av.Packet]:
        for other in self.container.streams:
            # A demuxer with an index does not even read the discarded streams.
            other.discard = Discard.default if other.index == self.stream.index else Discard.all
        # Close to the start, reading from the start is cheaper than seeking and needs no index.
        begin = max(0.0, (self.container.start_time or 0) / av.time_base)
        if self.start_s <= begin + 1.0 or not any(self._seek(self.start_s - back) for back in SEEK_BACK_S):
            self._seek(None)
        packets = self._read()
        if isinstance(self.stream, VideoStream):
            # Without an index a seek lands anywhere. Frames before the first key frame cannot be decoded.
            return dropwhile(lambda packet: not packet.is_keyframe, packets)
        return packets

    def _seek(self, time_s: float | None) -> bool:
        """Seek to `time_s` seconds. None is the start, which needs no seek if nothing was read yet.

        Returns:
            Whether decoding from there reaches `start_s`: the next key frame is shown at `start_s` or before.
        """
        if time_s is None and id(self.container) not in _READ:
            return True
        try:
            _READ.add(id(self.container))
            if time_s is None:
                self._rewind()
                return True
            offset = int(time_s / (self.stream.time_base or 1))
            self.container.seek(offset, stream=self.stream, backward=True)
            for packet in self.container.demux(self.stream):
                stamp = timestamp(packet)
                if stamp is None:
                    continue
                if stamp > self.start_s:
                    return False
                if packet.is_keyframe:
                    self.container.seek(offset, stream=self.stream, backward=True)
                    return True
        except _BROKEN:
            pass  # cannot seek there: the caller tries an earlier time, and finally the start
        return False

    def _rewind(self) -> None:
        """Seek to the start: to a place before the first packet of every stream."""
        begin = self.container.start_time or 0
        try:
            # A transport stream has no index, and a seek to the start of one stream may land after the first key frame
            # of the other. So seek to a time before the first packet of any stream.
            self.container.seek(begin - BEFORE_ALL_S * av.time_base, backward=True)
        except _BROKEN:
            try:
                self.container.seek(begin, backward=True)  # AVI cannot seek before its first packet
            except _BROKEN:
                self.container.seek(begin, backward=False)  # in FLV, the picture may begin after the sound

    def _read(self) -> Iterator[av.Packet]:
        """Yield packets until the end or a damaged place, which `error` describes. Report progress to the sandbox."""
        _READ.add(id(self.container))
        try:
            for packet in self.container.demux(self.stream):
                beat()
                yield packet
        except _BROKEN as error:
            self.error = f"{type(error).__name__}: {error}"


def timestamp(packet: av.Packet) -> float | None:
    """Return a packet's presentation time in seconds; its decoding time if it has no other; None if it has neither."""
    stamp = packet.pts if packet.pts is not None else packet.dts
    return None if stamp is None else seconds_of(stamp, packet.time_base)


def clock(stream: VideoStream | AudioStream) -> Callable[[av.Packet], float | None]:
    """Return a function like `timestamp` for the packets of one stream. It reads the time base once: twice as fast."""
    if stream.time_base is None:
        return timestamp
    ticks, second = stream.time_base.numerator, stream.time_base.denominator

    def time_s(packet: av.Packet) -> float | None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        return None if stamp is None else stamp * ticks / second

    return time_s


def seconds_of(stamp: int, base: Fraction) -> float:
    """Return a timestamp in seconds: ticks × time base. Makes no fraction, because it is called millions of times."""
    return stamp * base.numerator / base.denominator


def last_timestamp(media: Media) -> float:
    """Return the time of the last packet. Read it from the end of the file, as the duration in a header may be wrong.

    Returns:
        Seconds; 0.0 when nothing can be read.
    """
    try:
        with open_media(media) as container:
            streams = choose_streams(container)
            stream = streams.video or streams.audio
            if stream is None:
                return 0.0
            claimed = (container.duration or 0) / av.time_base
            last = 0.0
            for packet in Packets(container, stream, max(0.0, claimed - 5.0)):
                last = max(last, timestamp(packet) or 0.0)
            return last
    except (*_BROKEN, ValueError):
        return 0.0  # curation opens the file again and gives the verdict
