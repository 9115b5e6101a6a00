"""Clips → captions: decode once, measure, transcribe, look, compose, check.

A caption states what was measured and what the checks accept of an engine's answers, and nothing else. A clip that
fails at any step ends in `failed("caption", …)`; it never gets an empty or an invented caption.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from captioning.hear.levels import measure
from captioning.hear.onsets import refine_tags
from captioning.hear.transcribe import Transcriber, find_whisper
from captioning.hear.window import SAMPLE_RATE
from captioning.look.clip_scores import ClipScores
from captioning.look.engines import build_engine, check_engine
from captioning.look.frames import Frame, choose_frames, shrink, to_jpeg
from captioning.look.picture_statistics import describe
from captioning.look.vision_engine import NoAnswer, VisionEngine
from captioning.request import CaptionRequest
from captioning.settings import CaptionSettings
from data_prep.clip import Clip, Segment
from data_prep.media.decode import decode_audio, decode_video, iterate_video, span
from data_prep.scores.audio_tags import Tagger, load_tagger


def check_settings(settings: CaptionSettings) -> None:
    """Refuse settings that cannot run, before any stage starts.

    Send one request to an endpoint, and load no model but the tagger.

    Raises:
        ValueError: A weight, package or endpoint is missing. The message names the setting.
    """
    find_whisper(settings.transcribe.whisper)
    load_tagger(settings.tagger)
    check_engine(settings.seen)


class Measurer:
    """Measure clips, so that an engine can be asked about them or a caption composed.

    Hold Whisper and the tagger; make one per worker.

    Raises:
        ValueError: Weights named in the settings are missing.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        self.tagger = load_tagger(settings.tagger)
        self.transcriber = Transcriber(settings.transcribe)

    def measure(self, clips: Sequence[Clip]) -> list[CaptionRequest | Clip]:
        """Measure each clip, or fail it. Decode each clip once.

        Returns:
            In the order of `clips`, a request for each clip that was measured and a failed clip for each other one.
        """
        found = [self._measure_or_fail(clip) for clip in clips]
        ready = [item for item in found if isinstance(item, CaptionRequest)]
        heard = iter(self._transcribe(ready))
        return [_with_transcript(item, next(heard)) if isinstance(item, CaptionRequest) else item for item in found]

    def _measure_or_fail(self, clip: Clip) -> CaptionRequest | Clip:
        try:
            return _measure(clip, self.settings, self.tagger)
        except Exception as error:  # a file can break a decoder in any way; only this clip fails
            return clip.failed("caption", error)

    def _transcribe(self, ready: list[CaptionRequest]) -> list[dict] | list[dict | Exception]:
        voices = [item.voice for item in ready if item.voice is not None]
        try:
            return self.transcriber(voices)
        except Exception:  # one bad clip must not fail its batch: transcribe each clip again, alone
            return [self._transcribe_one(voice) for voice in voices]

    def _transcribe_one(self, voice: np.ndarray) -> dict | Exception:
        try:
            return self.transcriber([voice])[0]
        except Exception as error:
            return error


class AnswerHandler:
    """Turn an engine's answers into the next question or the caption. Hold the scorer of visual phrases.

    Raises:
        ValueError: The scorer's weights are missing.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        scorer = ClipScores(settings.seen) if settings.seen.clip else None
        self._score = scorer.scores if scorer and not scorer.untrained else None

    def handle(self, item: CaptionRequest, answer: str | NoAnswer, *, untrained: bool = False) -> CaptionRequest | Clip:
        """Read one answer.

        Args:
            item: The clip that the question was about.
            answer: The engine's text, or why there is none.
            untrained: The answer comes from random weights: store it, and state nothing of it.

        Returns:
            The request with its next question, or the clip with its caption or its failure.
        """
        try:
            following = item.answered(answer, self.settings, self._score, untrained=untrained)
            if isinstance(following, CaptionRequest) and not following.question:
                return following.captioned(self.settings)
            return following
        except Exception as error:  # an answer can break its reader in any way; only this clip fails
            return item.clip.failed("caption", error)


class Captioner:
    """The caption stage. Hold its models; make one per worker.

    Raises:
        ValueError: Weights or an endpoint named in the settings are missing.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        self.measurer = Measurer(settings)
        self.answer_handler = AnswerHandler(settings)
        self.engine: VisionEngine | None = build_engine(settings.seen) if settings.seen.engine else None

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """Caption the kept clips of segments (those with `clip.media`); pass the other clips through.

        `clip.caption` holds: text, short, long (three lengths of one caption); evidence: [{sentence, variants, source,
        facts}]; transcript (see `transcribe.transcript`); picture (see `picture_statistics`); sound (see `levels`);
        removed: [{text, reasons}], the sentences that the checker removed. Where an engine looked, it also holds seen:
        the model, the times of its pictures, the accepted and the removed phrases (see `look.phrases`); for random
        weights, `untrained` and the raw answer instead.

        Raises:
            EngineGone: The engine's server cannot be used any more; no clip is at fault.
        """
        return each_kept(segments, lambda clips: self._ask_until_answered(self.measurer.measure(clips)))

    def _ask_until_answered(self, items: list[CaptionRequest | Clip]) -> list[Clip]:
        while open_ := [at for at, item in enumerate(items) if isinstance(item, CaptionRequest) and item.question]:
            assert self.engine is not None
            waiting = [item for item in (items[at] for at in open_) if isinstance(item, CaptionRequest)]
            replies = self.engine.ask([item.next_prompt(self.settings) for item in waiting])
            for at, item, reply in zip(open_, waiting, replies, strict=True):
                items[at] = self.answer_handler.handle(item, reply, untrained=self.engine.untrained)
        return [item.captioned(self.settings) if isinstance(item, CaptionRequest) else item for item in items]


def each_kept(segments: list[Segment], call: Callable[[list[Clip]], list[Clip]]) -> list[Segment]:
    """Apply `call` to all kept clips of the segments at once, and put its results in their places."""
    kept = [clip for segment in segments for clip in segment.clips if clip.kept]
    done = iter(call(kept))
    return [
        replace(segment, clips=[next(done) if clip.kept else clip for clip in segment.clips]) for segment in segments
    ]


def _with_transcript(item: CaptionRequest, heard: dict | Exception) -> CaptionRequest | Clip:
    return item.clip.failed("caption", heard) if isinstance(heard, Exception) else replace(item, transcript=heard)


def _measure(clip: Clip, settings: CaptionSettings, tagger: Tagger) -> CaptionRequest:
    if not clip.media:
        raise ValueError("a kept clip without its media")
    start_s, end_s = span(clip)
    audio = decode_audio(clip.media, start_s, end_s, SAMPLE_RATE, 2)
    voice = audio.mean(0)
    small, times_s, shown = _pictures(clip, settings)
    return CaptionRequest(
        clip,
        describe(small, times_s - start_s),
        {},
        measure(audio, SAMPLE_RATE) | {"av_agreement": clip.scores.get("av_agreement")},
        refine_tags(clip.tags, voice, tagger, settings.min_tag_score),
        tuple(Frame(round(time_s - start_s, 3), jpeg) for time_s, jpeg in shown),
        "look" if settings.seen.engine else "",
        voice=voice,
    )


def _pictures(clip: Clip, settings: CaptionSettings) -> tuple[np.ndarray, np.ndarray, list[tuple[float, bytes]]]:
    """Decode (small frames, their times on the file's timeline, the (time, JPEG) pictures for an engine)."""
    start_s, end_s = span(clip)
    media, fps = clip.media, settings.picture_fps
    size = _frame_size(clip, settings.picture_width)
    if not settings.seen.engine:
        return *decode_video(media, start_s, end_s, fps=fps, size=size), []
    # The choice of pictures needs all of them: keep each as JPEG, which takes a few MB for a minute of video.
    longer_side = max(clip.info.get("width", 0), clip.info.get("height", 0)) or settings.seen.frame_width
    large = _frame_size(clip, min(settings.seen.frame_width, longer_side))
    times, small, files = [], [], []
    for time_s, frame in iterate_video(media, start_s, end_s, fps=fps, size=large):
        times.append(time_s)
        small.append(shrink(frame, size))
        files.append(to_jpeg(frame))
    if not small:
        raise ValueError("no frame could be decoded")
    stacked, times_s = np.stack(small), np.array(times)
    chosen = choose_frames(stacked, times_s, settings.seen.frames)
    return stacked, times_s, [(times[at], files[at]) for at in chosen]


def _frame_size(clip: Clip, width: int) -> tuple[int, int]:
    """Scale the clip's picture (16:9 if unknown) to `width` pixels on its longer side: even (height, width)."""
    wide, high = clip.info.get("width", 16), clip.info.get("height", 9)
    scale = width / max(wide, high)
    return max(32, round(high * scale / 2) * 2), max(32, round(wide * scale / 2) * 2)
