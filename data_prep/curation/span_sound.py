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
    """The sound of a span. The input of the networks (`mono`) and `voiced` are computed at their first use.

    Args:
        decoded: the stereo samples at 32 kHz with their times; None if the source has no audio stream.
        start_s: time at which the picture of the span begins, seconds on the source's time line.
        end_s: time at which it ends.
    """

    def __init__(self, decoded: Sound | None, start_s: float, end_s: float) -> None:
        self.decoded, self.start_s, self.end_s = decoded, start_s, end_s
        self._clips: dict[tuple[float, float], ClipSound] = {}

    @property
    def sound(self) -> Sound:
        """Return the decoded sound. Call it only if the source has an audio stream (asserted)."""
        assert self.decoded is not None, "a span without an audio stream is dropped by the first gate"
        return self.decoded

    @cached_property
    def mono(self) -> np.ndarray:
        """Return the sound of the complete span for the networks: (M,) samples at 16 kHz, from `start_s` on."""
        return for_networks(self.sound.between(self.start_s, self.end_s))

    @cached_property
    def voiced(self) -> np.ndarray:
        """Return the probability of speech in each 32 ms of the complete span, (⌈M / 512⌉,), from `start_s` on."""
        return voice_probability(turned_up(self.mono))

    def of(self, clip: Clip) -> "ClipSound":
        """Return the sound of a clip of this span. Equal times give the same object, which keeps its measurements."""
        edges = clip.start_s, clip.end_s
        return self._clips.setdefault(edges, ClipSound(self, *edges))


@dataclass
class ClipSound:
    """The sound of one clip, cut from the sound of its span without a copy, and the gates' measurements of it.

    Attributes:
        span: the sound of the span that contains the clip.
        start_s, end_s: start and end of the clip, seconds on the source's time line.
        scores: scores that the gates have measured so far, by name.
        tags: sound events, with times from the clip's start.
        passed: names of the gates that have already measured the clip.
    """

    span: SpanSound
    start_s: float
    end_s: float
    scores: dict[str, float] = field(default_factory=dict)
    tags: list[Tag] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)

    @property
    def has_audio(self) -> bool:
        """Return whether the source has an audio stream."""
        return self.span.decoded is not None

    @property
    def stereo(self) -> np.ndarray:
        """Return the clip's (2, N) samples at 32 kHz."""
        return self.span.sound.between(self.start_s, self.end_s)

    @property
    def mono(self) -> np.ndarray:
        """Return the clip's (M,) samples at 16 kHz, the input of the networks."""
        low, high = (round((edge - self.span.start_s) * VOICE_RATE) for edge in (self.start_s, self.end_s))
        return self.span.mono[low:high]

    @property
    def voiced(self) -> np.ndarray:
        """Return the probability of speech in each 32 ms of the clip, (V,)."""
        low, high = self._voice_frames()
        return self.span.voiced[low:high]

    @property
    def voice_frames_mono(self) -> np.ndarray:
        """Return the samples at 16 kHz for which `voiced` gives the probability, at most (512 · V,).

        They begin and end at limits of 32 ms, so they may differ from `mono` by up to 16 ms at each end.
        """
        low, high = self._voice_frames()
        return self.span.mono[low * VOICE_FRAME : high * VOICE_FRAME]

    def _voice_frames(self) -> tuple[int, int]:
        """Return the index in `span.voiced` of the clip's first frame, and of the first frame after the clip."""
        edges = (self.start_s, self.end_s)
        low, high = (round((edge - self.span.start_s) * VOICE_RATE / VOICE_FRAME) for edge in edges)
        return max(0, low), max(0, high)


def read_span_sound(source: InputContainer, packets: PacketIndex) -> SpanSound:
    """Decode the sound of a span, from the time of its first video packet to the end of its last one.

    Raises:
        FFmpegError, OSError: the source cannot be read.
        ValueError: there is an audio stream, and none of its packets can be decoded.
    """
    start_s, end_s = float(packets.times[0]), packets.end
    decoded = read_sound(source, start_s, end_s, RATE, 2)
    if decoded is not None and decoded.errors and not decoded.samples.size:
        raise ValueError(f"none of {decoded.packets} packets of sound can be decoded")
    return SpanSound(decoded, start_s, end_s)
