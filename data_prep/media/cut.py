"""Cut a clip: copy the source's packets into a file with exact in and out points. Nothing is encoded again.

Pictures can only be decoded from a key frame on, and sound needs the packets before it, so the file holds a little more
than the clip. In mp4 an *edit list* (ISO 14496-12 §8.6.6) tells every player where the clip begins and how long it is.
The muxer derives the in point from negative timestamps. It does not know the out point, so that is written into `elst`,
`tkhd` and `mvhd` afterwards. A codec that mp4 cannot hold goes into Matroska, which has no edit list: `Cut.in_s` and
`Cut.out_s` tell the caller where the clip is.

The bytes are a function of the source and the span: no creation time, no muxer version, packets in a fixed order.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from data_prep.media.container import Media, Packets, choose_streams, clock, open_media, seconds_of, timestamp
from data_prep.media.mp4_boxes import index_first, set_out_point
from data_prep.media.timestamps import LEAP_S, runs

PREROLL_S = 0.25  # seconds of sound kept before the in point: the first output of a decoder is wrong
REORDER = 64  # stop reading after this many packets shown after the out point: no codec reorders more
MP4_VIDEO = frozenset(["h264", "hevc", "av1", "vp9", "mpeg4"])
MP4_AUDIO = frozenset(["aac", "mp3", "opus", "flac", "ac3", "eac3", "alac"])
MOVIE_TIMESCALE = 90_000  # ticks per second, at least, of the length of an edit in mp4


@dataclass(frozen=True)
class Cut:
    """A clip's file, and where the clip is in it.

    Attributes:
        data: the bytes of the file.
        suffix: "mp4" or "mkv".
        in_s, out_s: the clip's in and out point on the file's time line, seconds; (0, duration) for mp4.
    """

    data: bytes
    suffix: str
    in_s: float
    out_s: float


def cut(media: Media, start_s: float, end_s: float) -> Cut:
    """Copy the packets of a span into a new file.

    The first frame is the first one with a timestamp ≥ start_s. Sound starts at start_s, exact to the sample.

    Args:
        media: the source.
        start_s: in point, seconds on the source's time line.
        end_s: out point (exclusive), seconds on the source's time line.

    Raises:
        FFmpegError, OSError: the source cannot be opened, or no container can hold its codecs.
        ValueError: the span holds no packet.
    """
    with open_media(media) as container:
        streams = choose_streams(container)
        # Read one stream after the other: in a badly interleaved file packets of one time may lie far apart.
        tracks = [_Track(container, s, start_s, end_s) for s in (streams.video, streams.audio) if s is not None]
        tracks = [track for track in tracks if track.packets]
        if not tracks:
            raise ValueError(f"no packet between {start_s:.3f} s and {end_s:.3f} s")
        if {track.stream.codec_context.codec.canonical_name for track in tracks} <= MP4_VIDEO | MP4_AUDIO:
            return Cut(_mp4(tracks, start_s, end_s), "mp4", 0.0, end_s - start_s)
        # Round down to a millisecond, the unit of Matroska's timestamps, so that shifting does not round.
        origin = int(min(timestamp(packet) or 0.0 for track in tracks for packet in track.packets) * 1000 // 1) / 1000
        return Cut(_mux(tracks, "matroska", {}, origin), "mkv", start_s - origin, end_s - origin)


@dataclass
class _Track:
    """The packets of one stream that a clip needs, in decoding order."""

    container: InputContainer
    stream: VideoStream | AudioStream
    start_s: float
    end_s: float
    packets: list[av.Packet] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.packets = self._video() if isinstance(self.stream, VideoStream) else self._audio()

    def _video(self) -> list[av.Packet]:
        """Return the packets from the last key frame shown at or before the in point to the last one shown in the span.

        The list is empty if no packet is shown in the span.
        """
        half = float(self.stream.time_base or 0) / 2
        packets, needed, late, time_of = [], 0, 0, clock(self.stream)
        for packet in Packets(self.container, self.stream, self.start_s):
            time_s = time_of(packet)
            if time_s is None or not packet.size:
                continue
            if packet.is_keyframe and time_s <= self.start_s + half:
                packets.clear()
            packets.append(packet)
            if time_s < self.end_s - half:
                needed, late = len(packets), 0
            else:
                late += 1
                if late > REORDER:
                    break
        packets = packets[:needed]
        return packets if any((timestamp(packet) or 0.0) >= self.start_s - half for packet in packets) else []

    def _audio(self) -> list[av.Packet]:
        """Return the packets from `PREROLL_S` before the in point to the out point.

        The list is empty if the sound ends before the in point.
        """
        packets, expected, time_of = [], None, clock(self.stream)
        for packet in Packets(self.container, self.stream, self.start_s - PREROLL_S):
            time_s = time_of(packet)
            if time_s is None or not packet.size:
                continue
            if time_s >= self.end_s:
                break
            # A player counts samples to drop the sound before the in point, so a gap there would shift the sound.
            if expected is not None and time_s > expected + LEAP_S and expected <= self.start_s:
                packets.clear()
            if time_s >= self.start_s - PREROLL_S:
                packets.append(packet)
            length = self._samples(packet)
            expected = time_s + length / self._rate if length else None
        # Sound that ends before the in point is not part of the clip.
        return packets if packets and (expected or timestamp(packets[-1]) or 0.0) > self.start_s else []

    @property
    def _rate(self) -> int:
        """Samples per second of a stream of sound."""
        assert isinstance(self.stream, AudioStream)
        return self.stream.sample_rate

    def _samples(self, packet: av.Packet) -> int:
        """Return the number of samples that a packet of sound decodes to; 0 if it is unknown before decoding."""
        assert isinstance(self.stream, AudioStream)
        if size := self.stream.codec_context.frame_size:
            return size
        # Opus packets last a whole number of milliseconds; durations of other codecs are rounded in a coarse time base.
        if packet.time_base.denominator <= 1000 and self.stream.codec_context.codec.canonical_name != "opus":
            return 0
        return round(float((packet.duration or 0) * packet.time_base) * self._rate)

    def shifted(self, origin_s: float) -> Iterator[tuple[float, av.Packet]]:
        """Shift the packets in time so that `origin_s` becomes 0: pictures exact to a tick, sound to a sample.

        Yields:
            (decoding time in seconds, packet).
        """
        timed = self._sound_times() if isinstance(self.stream, AudioStream) else self._picture_times()
        last_dts = origin_base = None
        origin = 0
        for packet, base, pts, dts, duration in timed:
            if last_dts is not None and dts <= last_dts:
                dts = last_dts + 1  # the muxer refuses equal decoding times
            last_dts = dts
            if base is not origin_base:
                origin, origin_base = round(Fraction(origin_s) / base), base
            packet.time_base = base
            packet.pts, packet.dts, packet.duration = max(pts, dts) - origin, dts - origin, duration
            yield seconds_of(dts - origin, base), packet

    def _picture_times(self) -> Iterator[tuple[av.Packet, Fraction, int, int, int]]:
        """Yield (packet, time base, pts, dts, duration) of pictures; the times in ticks of the time base.

        Decoding times and durations are computed where the source does not store them.
        """
        stamps = [_pts(packet) for packet in self.packets]
        shown = sorted(stamps)
        steps = sorted(after - before for before, after in pairwise(shown) if after > before)
        usual = steps[len(steps) // 2] if steps else 0
        decoding = [packet.dts for packet in self.packets]
        if not _decodable(decoding, stamps):
            # Matroska stores no decoding times. Use the sorted presentation times, shifted early enough.
            early = max(time - stamp for time, stamp in zip(shown, stamps, strict=True))
            decoding = [time - early for time in shown]
        base = self.packets[0].time_base
        for packet, pts, dts in zip(self.packets, stamps, decoding, strict=True):
            assert dts is not None, "checked by _decodable"
            # WebM stores no durations: the last frame would have length 0 and fall outside the edit.
            yield packet, base, pts, dts, packet.duration or usual

    def _sound_times(self) -> Iterator[tuple[av.Packet, Fraction, int, int, int]]:
        """Yield (packet, time base, pts, dts, duration) of sound; the times in ticks of the time base.

        If all lengths are known, the time base is one sample, and in a run each packet begins where the last one ends.
        """
        lengths = [self._samples(packet) for packet in self.packets]
        if not all(lengths):
            base = self.packets[0].time_base
            for packet in self.packets:
                yield packet, base, _pts(packet), _pts(packet), packet.duration or 0
            return
        base = Fraction(1, self._rate)
        time_of = clock(self.stream)
        for run in runs([time_of(packet) or 0.0 for packet in self.packets], lengths, self._rate):
            stamp = round(run.begin_s * self._rate)
            for index in range(run.first, run.last):
                yield self.packets[index], base, stamp, stamp, lengths[index]
                stamp += lengths[index]


def _decodable(decoding: list[int | None], shown: list[int]) -> bool:
    """Return whether all decoding times are known, increase, and are at most the presentation times (`shown`)."""
    known = [time for time in decoding if time is not None]
    increasing = all(after > before for before, after in pairwise(known))
    return len(known) == len(shown) and increasing and all(d <= s for d, s in zip(known, shown, strict=True))


def _pts(packet: av.Packet) -> int:
    """Return a packet's presentation time in ticks, or its decoding time if it has no other."""
    stamp = packet.pts if packet.pts is not None else packet.dts
    assert stamp is not None, "packets without any timestamp were left out"
    return stamp


def _mp4(tracks: list[_Track], start_s: float, end_s: float) -> bytes:
    """Return an mp4 file of the tracks that shows exactly [start_s, end_s) of the source; its index is at the front."""
    # With a multiple of the picture's time base the length of the edit is exact for a whole number of frames.
    base = tracks[0].stream.time_base or Fraction(1, MOVIE_TIMESCALE)
    scale = base.denominator * max(1, -(-MOVIE_TIMESCALE // base.denominator))
    made = _mux(tracks, "mp4", {"movie_timescale": str(scale)}, start_s)
    return index_first(set_out_point(made, end_s - start_s))


def _mux(tracks: list[_Track], name: str, options: dict[str, str], origin_s: float) -> bytes:
    """Return a file with the packets of the tracks, shifted so that `origin_s` becomes 0, in order of decoding.

    `name` is FFmpeg's name of the container format, and `options` are the options of its muxer.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=name, options={"fflags": "+bitexact", **options}) as output:
        queue = []
        for order, track in enumerate(tracks):
            stream = output.add_stream_from_template(track.stream, opaque=True)
            stream.metadata.clear()
            for time_s, packet in track.shifted(origin_s):
                packet.stream = stream
                queue.append((time_s, order, packet))
        queue.sort(key=lambda item: item[:2])
        for _, _, packet in queue:
            output.mux_one(packet)
    return file.getvalue()
