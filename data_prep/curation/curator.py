"""Curate segments: divide each into clips and give each clip one verdict.

The steps for one segment:

1. `Curator.spans` divides it into spans that are short enough to be decoded at once; most segments are one span.
2. `Curator.curate_span` opens the source once, reads the video packets (without decoding) and decodes the sound.
3. The sound of the complete span is judged first. When it is uninformative, the span is dropped as one clip, and no
   frame is decoded.
4. Otherwise the span is divided into clips, at scene cuts and where the sound begins or ends; long scenes are divided
   at pauses in speech.
5. `_curate_clip` measures each clip gate by gate (`data_prep.curation.gates`), up to the first gate that drops it. A
   kept clip is cut from the source's packets, and gets further scores (`data_prep.curation.kept_clip_scores`).

The cheap steps come first. Time on one core per second of media: container and packets 0.3 ms, decoding the sound
1.6 ms, the gates 2.1 ms, decoding for scene cuts 3 ms, copying packets 0.8 ms.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from av.container import InputContainer

from data_prep.clip import Clip, Segment, stable_id
from data_prep.curation.gates import pass_gates, sound_gates
from data_prep.curation.kept_clip_scores import KeptClipScorer
from data_prep.curation.policy import Judgement
from data_prep.curation.scenes import PacketIndex, divide_scene, read_packet_index
from data_prep.curation.span_picture import SpanPicture
from data_prep.curation.span_sound import ClipSound, SpanSound, read_span_sound
from data_prep.curation.span_work import curate_segment
from data_prep.curation.spans import MAX_READ, spans, with_content_key
from data_prep.media.container import open_media
from data_prep.media.cut import cut
from data_prep.scores.audio_tags import load_tagger
from data_prep.settings import CurateSettings

LATE_S = 0.1  # sound may begin so much later than the picture, or end so much earlier, and count as complete


class Curator:
    """A stage of a dataflow that curates segments; it keeps the settings and the loaded networks.

    Args:
        settings: how sources are divided into clips, measured and judged.

    Raises:
        ValueError: a setting contradicts another, or weights that a setting names do not exist.
    """

    def __init__(self, settings: CurateSettings) -> None:
        if settings.clip_max_s < settings.clip_min_s:
            raise ValueError("clip_max_s is below clip_min_s; raise it")
        self.settings = settings
        self._gates = sound_gates(settings.policy, load_tagger(settings.tagger))
        self._score_kept_clip = KeptClipScorer(settings.appraisal)

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """Return the segments with their clips, which have verdicts and, if kept, media. Damaged media never raises."""
        return [curate_segment(self, segment) for segment in segments]

    def spans(self, segment: Segment) -> list[Segment]:
        """Return the spans of a segment: segments of at most about `segment_s` seconds, in order."""
        return spans(segment, self.settings.segment_s)

    def curate_span(self, span: Segment) -> Segment:
        """Return a span with its clips and verdicts; an unreadable span gets one `failed` clip that names the stage."""
        stage = "read"
        try:
            span = with_content_key(span)
            with open_media(span.uri) as source:
                # A span is longer than `segment_s` only if its timestamps are wrong. Then this limits work and memory.
                end_s = min(span.end_s, span.start_s + MAX_READ * self.settings.segment_s)
                packets = read_packet_index(source, span.start_s, end_s)
                if packets is None:
                    return span.failed(stage, "no video packet in the source")
                stage = "sound"
                sound = read_span_sound(source, packets)
                whole = _clip(span, sound.start_s, sound.end_s)
                judgement = self._judge_span(span, sound.of(whole))
                if judgement.dropped:
                    return replace(span, clips=[_scored(whole, sound.of(whole), judgement).dropped(judgement.reason)])
                stage = "scenes"
                picture = SpanPicture(source, packets)
                edges = clip_edges(packets, sound, picture.cuts(), self.settings.clip_max_s)
                clips = [_clip(span, *pair) for pair in edges]
                return replace(
                    span, clips=[self._curate_clip(span, clip, source, packets, sound, picture) for clip in clips]
                )
        except Exception as error:  # damaged media make libraries raise anything; that is a verdict
            return span.failed(stage, error)

    def _judge_span(self, span: Segment, whole: ClipSound) -> Judgement:
        """Judge the sound of a complete span, to find out cheaply whether any clip of it can be kept.

        The scores are computed as if all sound events of the span were in one clip (`as_one_clip`), so that a span
        with a minute of speech in an hour of hiss is not dropped.

        Args:
            span: the span.
            whole: the sound of the span; gets the scores and tags.

        Returns:
            A judgement that drops the span if no clip of it can be kept. Else the clips have to be judged one by one.
        """
        settings, policy = self.settings, self.settings.policy
        cheap = [gate for gate in self._gates if not gate.network]
        length = max(whole.end_s - whole.start_s, settings.clip_max_s) / settings.clip_max_s
        if whole.end_s - whole.start_s > settings.clip_max_s:
            # If the first `clip_max_s` seconds are informative, so is the span.
            first = whole.span.of(_clip(span, whole.start_s, whole.start_s + settings.clip_max_s))
            judgement = pass_gates(first, cheap, policy, measure_all=settings.measure_all)
            if not judgement.dropped and first.scores["stationarity"] < policy.stationary_min:
                return Judgement("kept", "", "")
        judgement = pass_gates(whole, cheap, policy, measure_all=settings.measure_all, length=length)
        # The networks process a complete span only if its sound is steady; otherwise they process its clips.
        steady = whole.scores.get("stationarity", 0.0) >= policy.stationary_min
        if (steady and not judgement.dropped) or settings.measure_all:
            judgement = pass_gates(whole, self._gates, policy, measure_all=settings.measure_all, length=length)
        return judgement

    def _curate_clip(
        self,
        span: Segment,
        clip: Clip,
        source: InputContainer,
        packets: PacketIndex,
        sound: SpanSound,
        picture: SpanPicture,
    ) -> Clip:
        """Return a clip with its scores and verdict; a kept clip also with its media, info and further scores.

        Args:
            span: the span that the clip belongs to.
            clip: a clip that has only its id and times.
            source: the open source, from which a kept clip is cut.
            packets: the video packets of the span.
            sound: the sound of the span.
            picture: the frames of the span.
        """
        settings = self.settings
        if clip.end_s - clip.start_s < settings.clip_min_s - packets.step / 2:
            return clip.dropped("too_short")
        stage = "sound"
        try:
            heard = sound.of(clip)
            judgement = pass_gates(heard, self._gates, settings.policy, measure_all=settings.measure_all)
            clip = _scored(clip, heard, judgement)
            if judgement.dropped:
                return clip.dropped(judgement.reason)
            stage = "cut"
            made = cut(source, clip.start_s, clip.end_s)
            info = {**picture.record(clip), **_record(span, clip, sound), "in_s": made.in_s, "out_s": made.out_s}
            clip = replace(clip, media=made.data, media_suffix=made.suffix, info=info)
            self._score_kept_clip(clip, picture.hashes(clip), heard.stereo, heard.voice_frames_mono, heard.voiced)
            return replace(clip, scores=_rounded(clip.scores))
        except Exception as error:  # as in `curate_span`
            return clip.failed(stage, error)


def clip_edges(
    packets: PacketIndex, sound: SpanSound, cuts: Sequence[float], clip_max_s: float
) -> list[tuple[float, float]]:
    """Divide a span at scene cuts and where its sound begins and ends; divide each scene further into clips.

    A cut is never moved, even in the middle of a sentence: a clip across it would show two scenes. Only the divisions
    inside a long scene are moved to pauses in speech.

    Args:
        packets: the video packets of the span.
        sound: the sound of the span, which has an audio stream.
        cuts: times of the first frames of new shots, seconds.
        clip_max_s: the longest clip, seconds.

    Returns:
        Start and end of each clip in seconds, in order and without a gap.
    """
    times, decoded = packets.times, sound.sound
    edges = {sound.start_s, sound.end_s, *cuts}
    if decoded.first_s > sound.start_s + LATE_S:
        edges.add(float(times[min(np.searchsorted(times, decoded.first_s), len(times) - 1)]))
    if decoded.last_s < sound.end_s - LATE_S:
        edges.add(float(times[max(0, np.searchsorted(times, decoded.last_s, side="right") - 1)]))
    found = []
    for first, last in pairwise(sorted(edges)):
        voiced = sound.voiced if last - first > clip_max_s else np.zeros(0, np.float32)
        found += divide_scene(first, last, clip_max_s, packets, voiced, sound.start_s)
    return found


def _clip(span: Segment, start_s: float, end_s: float) -> Clip:
    # Rounding to microseconds, far shorter than a frame, gives the same id in every run.
    edges = round(start_s, 6), round(end_s, 6)
    return Clip(stable_id(span.content_key, *edges), *edges)


def _scored(clip: Clip, heard: ClipSound, judgement: Judgement) -> Clip:
    """Return the clip with the scores and tags that the gates measured, and with the class of the judgement."""
    return replace(clip, scores=_rounded(heard.scores), tags=heard.tags, sound_class=judgement.sound_class)


def _record(span: Segment, clip: Clip, sound: SpanSound) -> dict[str, int | float | str]:
    """Return facts for the `info` of a kept clip: sample rate, channels, length in seconds, errors, source caption."""
    return {
        "sample_rate": sound.sound.native_rate,
        "channels": sound.sound.native_channels,
        "duration": round(clip.end_s - clip.start_s, 6),
        "audio_errors": sound.sound.errors,
        **({"source_caption": span.caption} if span.caption else {}),
    }


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores rounded to six significant digits (the precision of float32), so that machines agree."""
    return {name: float(f"{value:.6g}") for name, value in scores.items()}
