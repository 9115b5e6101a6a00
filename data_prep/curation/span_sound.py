"""The sound of one span, decoded once, and the sound of each clip in it."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from av.container import InputContainer

from data_prep.clip import Clip, Tag
from data_prep.curation.scenes import PacketIndex
from data_prep.media.decode import Sound, read_sound
from data_prep.scores.sound import RATE, for_networks, turned_up
from data_prep.scores.voice_activity import FRAME as VOICE_FRAME
from data_prep.scores.voice_activity import RATE as VOICE_RATE
from data_prep.scores.voice_activity import voice_probability


class SpanSound:
    """The sound of a span. What the networks take is computed when it is first asked for.

    Args:
        decoded: the samples at 32 kHz with their place in time; None without an audio stream.
        start_s: when the picture of the span begins, seconds on the source's time line.
        end_s: when it ends.
    """

    def __init__(self, decoded: Sound | None, start_s: float, end_s: float) -> None:
        self.decoded, self.start_s, self.end_s = decoded, start_s, end_s
        self._clips: dict[tuple[float, float], ClipSound] = {}

    @property
    def sound(self) -> Sound:
        """The decoded sound of a span that has an audio stream."""
        assert self.decoded is not None, "a span without an audio stream is dropped by the first gate"
        return self.decoded

    @cached_property
    def mono(self) -> np.ndarray:
        """(M,) samples at 16 kHz from `start_s` on."""
        return for_networks(self.sound.between(self.start_s, self.end_s))

    @cached_property
    def voiced(self) -> np.ndarray:
        """The probability of speech per 32 ms from `start_s` on."""
        return voice_probability(turned_up(self.mono))

    def of(self, clip: Clip) -> "ClipSound":
        """Return the sound of a clip of this span, with what is measured of it; the same object each time."""
        edges = clip.start_s, clip.end_s
        return self._clips.setdefault(edges, ClipSound(self, *edges))


@dataclass
class ClipSound:
    """The sound of one clip, a view of its span's sound, and what is measured of it.

    Attributes:
        span: the sound that the clip is a part of.
        start_s, end_s: the clip, seconds on the source's time line.
        scores: what the gates have measured so far.
        tags: sound events, with times from the clip's start.
        passed: names of the gates that have measured the clip.
    """

    span: SpanSound
    start_s: float
    end_s: float
    scores: dict[str, float] = field(default_factory=dict)
    tags: list[Tag] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)

    @property
    def has_audio(self) -> bool:
        """Whether the source has an audio stream."""
        return self.span.decoded is not None

    @property
    def stereo(self) -> np.ndarray:
        """(2, N) samples at 32 kHz."""
        return self.span.sound.between(self.start_s, self.end_s)

    @property
    def mono(self) -> np.ndarray:
        """(M,) samples at 16 kHz."""
        low, high = (round((edge - self.span.start_s) * VOICE_RATE) for edge in (self.start_s, self.end_s))
        return self.span.mono[low:high]

    @property
    def voiced(self) -> np.ndarray:
        """The probability of speech in each of the clip's frames of 32 ms."""
        low, high = self._voice_frames()
        return self.span.voiced[low:high]

    @property
    def voice_frames_mono(self) -> np.ndarray:
        """(M,) samples at 16 kHz of the frames that `voiced` covers."""
        low, high = self._voice_frames()
        return self.span.mono[low * VOICE_FRAME : high * VOICE_FRAME]

    def _voice_frames(self) -> tuple[int, int]:
        """The first frame of `span.voiced` in the clip, and the first one after it."""
        edges = (self.start_s, self.end_s)
        low, high = (round((edge - self.span.start_s) * VOICE_RATE / VOICE_FRAME) for edge in edges)
        return max(0, low), max(0, high)


def read_span_sound(source: InputContainer, packets: PacketIndex) -> SpanSound:
    """Decode the sound that belongs to the picture packets of a span.

    Raises:
        FFmpegError, OSError: the source cannot be read.
        ValueError: there is an audio stream, and none of its packets can be decoded.
    """
    start_s, end_s = float(packets.times[0]), packets.end
    decoded = read_sound(source, start_s, end_s, RATE, 2)
    if decoded is not None and decoded.errors and not decoded.samples.size:
        raise ValueError(f"none of {decoded.packets} packets of sound can be decoded")
    return SpanSound(decoded, start_s, end_s)
