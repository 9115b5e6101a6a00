"""One source segment → its clips, each judged once. Cheap first: a clip stops at the first gate that it fails.

The order, with what a second of media costs on one core: container and packets (0.3 ms), sound (1.6 ms), levels
(0.1 ms), spectra (0.8 ms), event tags and voice activity (0.6 ms each), the picture for scene cuts (3 ms), and last the
copying of packets (0.8 ms). A segment whose whole sound is uninformative is dropped before its picture is touched.
"""

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from statistics import median

import numpy as np
import xxhash
from av.container import InputContainer

from data_prep.clip import Clip, Segment, Tag, stable_id
from data_prep.curation import scenes
from data_prep.curation.kept_clip_scores import KeptClipScorer
from data_prep.curation.near_duplicates import picture_hashes
from data_prep.curation.policy import Judgement, as_one_clip, judge
from data_prep.curation.sandbox import beat
from data_prep.dataset import storage
from data_prep.media.container import Streams, choose_streams, open_for_sound, open_media
from data_prep.media.cut import cut
from data_prep.media.decode import Picture, Sound, read_sound
from data_prep.media.thumbnails import Thumbnails
from data_prep.scores import sound
from data_prep.scores.audio_tags import load_tagger
from data_prep.scores.voice_activity import FRAME as VOICE_FRAME
from data_prep.scores.voice_activity import RATE as VOICE_RATE
from data_prep.scores.voice_activity import voice_probability
from data_prep.settings import CurateSettings
from data_prep.sources.listing import divide

LATE_S = 0.1  # a track that starts or ends this much apart from the other is still whole
TRUSTED_LENGTH = 2.0  # segments' lengths, after which timestamps are not believed
HASH_WHOLE = 64 << 20  # bytes; of a larger file the content key covers head, tail and size


class Curator:
    """Judges segments; holds the settings, and in its process the networks."""

    def __init__(self, settings: CurateSettings) -> None:
        """Raises ValueError when the tagger's weights are not there."""
        if settings.clip_max_s < settings.clip_min_s:
            raise ValueError("clip_max_s is below clip_min_s; raise it")
        self.settings = settings
        self.tagger = load_tagger(settings.tagger)
        self.score_kept_clip = KeptClipScorer(settings.appraisal)

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """The segments with their clips and verdicts; kept clips bring their media. Bad media never raises."""
        return [segment.through(self.curate) for segment in segments]

    def curate(self, segment: Segment) -> Segment | list[Segment]:
        """One segment; or, of one that is too long to be read at once, its spans, to be curated one after the other.

        What fails as a whole is one `failed` clip that names the stage.
        """
        with ExitStack() as stack:
            return self._curate(segment, stack)

    def _curate(self, segment: Segment, stack: ExitStack) -> Segment | list[Segment]:
        stage = "read"
        try:
            if not segment.content_key:
                segment = replace(segment, content_key=content_key(segment.uri))
            if segment.parts > 1 or math.isfinite(segment.end_s):
                divided = divide(segment, self.settings.segment_s)
                if len(divided) > 1 or segment.parts > 1:
                    return divided
            opened = stack.enter_context(open_for_sound(segment.uri))
            # A span is `segment_s` long unless timestamps lie; then work and memory end here.
            end_s = min(segment.end_s, segment.start_s + TRUSTED_LENGTH * self.settings.segment_s)
            packets = scenes.read_packet_index(opened, segment.start_s, end_s)
            if packets is None:
                return segment.failed("read", "no video packet in the source")
            # Whether one to the end of its source is long, its packets have just told, and no second look at it.
            if math.isinf(segment.end_s) and packets.end - segment.start_s > self.settings.segment_s:
                divided = divide(segment, self.settings.segment_s)
                if len(divided) > 1:
                    return divided
            stage = "sound"
            heard = read_sound(opened, float(packets.times[0]), packets.end, sound.RATE, 2)
            if heard is not None and heard.errors and not heard.samples.size:
                raise ValueError(f"none of {heard.packets} packets of sound can be decoded")
            work = _Work(self, segment, stack, packets, heard)
            whole = work.clip(float(packets.times[0]), packets.end)
            judged = work.judge_cheaply(whole)
            if judged.verdict == "dropped":
                return replace(segment, clips=[work.with_scores(whole, judged).dropped(judged.reason)])
            stage = "scenes"
            spans = work.spans()
        except Exception as error:  # damaged media make libraries raise anything; that is a verdict
            return segment.failed(stage, error)
        return replace(segment, clips=[work.judged(*span) for span in spans])


def content_key(uri: str) -> str:
    """A hash (XXH3, 80 bits) of a source's bytes; of a large one, of its first and last MiB and its size."""
    digest = xxhash.xxh3_128()
    with storage.open_read(uri) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= HASH_WHOLE:
            while block := file.read(1 << 20):
                beat()
                digest.update(block)
        else:
            digest.update(f"{size}".encode() + file.read(1 << 20))
            file.seek(-(1 << 20), os.SEEK_END)
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:20]


@dataclass
class _Measured:
    """What is known of a span, and by which stages."""

    scores: dict[str, float]
    tags: list[Tag] = field(default_factory=list)
    stages: set[str] = field(default_factory=set)


class _Work:
    """A segment in work: its packets, its sound, and what was measured of it."""

    def __init__(
        self, curator: Curator, segment: Segment, stack: ExitStack, packets: scenes.PacketIndex, heard: Sound | None
    ) -> None:
        self.settings, self.tagger, self.score_kept_clip = curator.settings, curator.tagger, curator.score_kept_clip
        self.segment, self.packets, self.heard, self._stack = segment, packets, heard, stack
        self.measured: dict[str, _Measured] = {}

    def clip(self, start_s: float, end_s: float) -> Clip:
        # Microseconds: finer than any frame, and the same in every run.
        span = round(start_s, 6), round(end_s, 6)
        return Clip(stable_id(self.segment.content_key, *span), *span)

    # -- measuring, stage by stage; what was measured of a span stays

    def judge_cheaply(self, clip: Clip) -> Judgement:
        """The whole segment's sound, up to the point where it is known that no clip of it will be kept, or not known.

        A share of the segment is taken for a share of one clip, into which all that happens might fall: a minute of
        talk in an hour of hiss is not to be lost.
        """
        if clip.end_s - clip.start_s > self.settings.clip_max_s and self._begins_informative(clip):
            return Judgement("kept", "", "")
        length = max(clip.end_s - clip.start_s, self.settings.clip_max_s) / self.settings.clip_max_s
        found = self._run(clip, [self._levels, self._spectra], length)
        steady = found.scores.get("stationarity", 0.0) >= self.settings.policy.stationary_min
        # Only a steady sound is uninformative as a whole for more than its level; the rest is judged clip by clip.
        if (self._judge(found, length).verdict == "kept" and steady) or self.settings.measure_all:
            self._run(clip, [self._tags, self._voice], length)
        return self._judge(found, length)

    def _begins_informative(self, clip: Clip) -> bool:
        """Whether a clip's length of the segment's sound is enough to know that not all of it is uninformative."""
        first = self.clip(clip.start_s, clip.start_s + self.settings.clip_max_s)
        found = self._run(first, [self._levels, self._spectra])
        unsteady = found.scores.get("stationarity", 1.0) < self.settings.policy.stationary_min
        return unsteady and self._judge(found).verdict == "kept"

    def judge_fully(self, clip: Clip) -> Judgement:
        return self._judge(self._run(clip, [self._levels, self._spectra, self._tags, self._voice]))

    def _run(self, clip: Clip, stages: list[Callable], length: float = 1.0) -> _Measured:
        found = self.measured.setdefault(clip.clip_id, _Measured({"has_audio": float(self.heard is not None)}))
        for stage in stages:
            if self._judge(found, length).verdict == "dropped" and not (self.settings.measure_all and self.heard):
                break
            if stage.__name__ not in found.stages:
                beat()
                stage(clip, found)
                found.stages.add(stage.__name__)
        return found

    def _judge(self, found: _Measured, length: float = 1.0) -> Judgement:
        return judge(as_one_clip(found.scores, length), self.settings.policy)

    def _samples(self, clip: Clip) -> np.ndarray:
        assert self.heard is not None, "only a clip with an audio stream is listened to"
        return self.heard.between(clip.start_s, clip.end_s)

    def _levels(self, clip: Clip, found: _Measured) -> None:
        found.scores |= sound.level_scores(self._samples(clip), self.settings.policy.silence_db)

    def _spectra(self, clip: Clip, found: _Measured) -> None:
        found.scores |= sound.spectral_scores(self._samples(clip))

    def _voice(self, clip: Clip, found: _Measured) -> None:
        low, high = self._voice_frames(clip)
        found.scores |= sound.voice_scores(self.voiced[low:high])

    def _voice_frames(self, clip: Clip) -> tuple[int, int]:
        """First and end of the clip's frames of `voiced`."""
        low, high = (round((edge - self.start_s) * VOICE_RATE / VOICE_FRAME) for edge in (clip.start_s, clip.end_s))
        return max(0, low), max(0, high)

    def _tags(self, clip: Clip, found: _Measured) -> None:
        low, high = (round((edge - self.start_s) * VOICE_RATE) for edge in (clip.start_s, clip.end_s))
        scores, found.tags = sound.tag_scores(self.mono[low:high], self.tagger)
        found.scores |= scores

    @property
    def start_s(self) -> float:
        return float(self.packets.times[0])

    @cached_property
    def mono(self) -> np.ndarray:
        """The segment's sound, (N,) at 16 kHz from `start_s` on."""
        assert self.heard is not None, "only a segment with an audio stream is listened to"
        return sound.for_networks(self.heard.between(self.start_s, self.packets.end))

    @cached_property
    def voiced(self) -> np.ndarray:
        """The probability of speech per 32 ms from `start_s` on."""
        return voice_probability(sound.turned_up(self.mono))

    def with_scores(self, clip: Clip, judgement: Judgement) -> Clip:
        """The clip with what was measured of it."""
        found = self.measured[clip.clip_id]
        return replace(clip, scores=_rounded(found.scores), tags=found.tags, sound_class=judgement.sound_class)

    # -- cutting

    def spans(self) -> list[tuple[float, float]]:
        """The segment's clips: its scenes, and where its sound begins and ends, divided to at most the longest clip.

        Only divisions are placed, and they fall into pauses in speech. A hard cut stays where the picture changes,
        also in the middle of a sentence: a clip across it would show two scenes.
        """
        assert self.heard is not None, "a segment without an audio stream was dropped"
        edges = {self.start_s, self.packets.end, *scenes.scene_cuts(self.thumbnails, self.packets)}
        times = self.packets.times
        if self.heard.first_s > self.start_s + LATE_S:
            edges.add(float(times[min(np.searchsorted(times, self.heard.first_s), len(times) - 1)]))
        if self.heard.last_s < self.packets.end - LATE_S:
            edges.add(float(times[max(0, np.searchsorted(times, self.heard.last_s, side="right") - 1)]))
        ordered = sorted(edges)
        found = []
        for first, last in pairwise(ordered):
            longest = self.settings.clip_max_s
            voiced = self.voiced if last - first > longest else np.zeros(0, np.float32)
            found += scenes.divide_scene(first, last, longest, self.packets, voiced, self.start_s)
        return found

    def judged(self, start_s: float, end_s: float) -> Clip:
        """A span as a clip with its verdict and, if it is kept, its file."""
        clip = self.clip(start_s, end_s)
        if clip.end_s - clip.start_s < self.settings.clip_min_s - self.packets.step / 2:
            return clip.dropped("too_short")
        stage = "sound"
        try:
            judgement = self.judge_fully(clip)
            clip = self.with_scores(clip, judgement)
            if judgement.verdict == "dropped":
                return clip.dropped(judgement.reason)
            stage = "cut"
            return self._cut(clip)
        except Exception as error:  # as in `curate`
            return clip.failed(stage, error)

    def _cut(self, clip: Clip) -> Clip:
        made = cut(self.opened, clip.start_s, clip.end_s)
        info = self._info(clip) | {"in_s": made.in_s, "out_s": made.out_s}
        clip = replace(clip, media=made.data, media_suffix=made.suffix, info=info)
        low, high = self._voice_frames(clip)
        mono, voiced = self.mono[low * VOICE_FRAME : high * VOICE_FRAME], self.voiced[low:high]
        self.score_kept_clip(clip, self._pictures(clip), self._samples(clip), mono, voiced)
        return replace(clip, scores=_rounded(clip.scores))

    def _pictures(self, clip: Clip) -> list[int]:
        """Hashes of the clip's key pictures, out of the source, which is open."""
        packets, half = self.packets, self.packets.step / 2
        inside = packets.key & (packets.times >= clip.start_s - half) & (packets.times < clip.end_s - half)
        return picture_hashes(self.thumbnails, packets.times[inside].tolist(), half)

    @cached_property
    def opened(self) -> InputContainer:
        """The source, for its pictures."""
        return self._stack.enter_context(open_media(self.segment.uri))

    @cached_property
    def streams(self) -> Streams:
        return choose_streams(self.opened)

    @cached_property
    def thumbnails(self) -> Thumbnails:
        assert self.streams.video is not None, "the track was read from a video stream"
        return Thumbnails(self.opened, self.streams.video)

    @cached_property
    def shown(self) -> Picture:
        """What the segment's picture looks like, by its first key frame that can be decoded; a span may hold none."""
        keys, half = self.packets.times[self.packets.key].tolist(), self.packets.step / 2
        found = self.thumbnails.keys(keys[:1], half) or self.thumbnails.keys(keys, half)
        first = found[min(found)] if found else self.thumbnails.before(self.start_s)
        if first is None:
            raise ValueError("no picture can be decoded")
        return first.shown

    def _info(self, clip: Clip) -> dict:
        assert self.heard is not None, "a kept clip has sound"
        assert self.streams.video is not None, "the track was read from a video stream"
        shown = self.shown
        inside = self.packets.times[
            (self.packets.times >= clip.start_s - 1e-6) & (self.packets.times < clip.end_s - self.packets.step / 2)
        ]
        steps = np.diff(inside)
        return {
            "width": shown.width,
            "height": shown.height,
            "rotation": shown.rotation,
            "fps": round(1 / float(steps.mean()), 6) if len(steps) else round(1 / self.packets.step, 6),
            "frames": len(inside),
            "constant_rate": bool(len(steps) and np.abs(steps - median(steps)).max() < 0.002),
            "sample_rate": self.heard.native_rate,
            "channels": self.heard.native_channels,
            "duration": round(clip.end_s - clip.start_s, 6),
            "video_codec": self.streams.video.codec_context.codec.canonical_name,
            "audio_errors": self.heard.errors,
            **self.streams.record,
            **({"source_caption": self.segment.caption} if self.segment.caption else {}),
        }


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    """Six significant digits: what a float32 carries, and the same on every machine as far as its arithmetic is."""
    return {name: float(f"{value:.6g}") for name, value in scores.items()}
