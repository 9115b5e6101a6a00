"""Clips → captions: decode once, measure, transcribe, look, compose, check.

A caption says what was measured and what stands of an engine's answers, and nothing else. A clip that fails at any of
it ends in `failed("caption", …)`; it never gets an empty or an invented caption.
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
    """Refuse what cannot run before any stage starts: a server is asked once, and the tagger alone is loaded.

    Raises:
        ValueError: a missing weight, package or endpoint; names the setting.
    """
    find_whisper(settings.transcribe.whisper)
    load_tagger(settings.tagger)
    check_engine(settings.seen)


class Measurer:
    """Clips → what is measured of them, ready to be asked about or captioned. Holds Whisper; make one per worker.

    Raises:
        ValueError: weights named in the settings are not there.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        self.tagger = load_tagger(settings.tagger)
        self.transcriber = Transcriber(settings.transcribe)

    def measure(self, clips: Sequence[Clip]) -> list[CaptionRequest | Clip]:
        """Each clip measured, or failed; each is decoded once."""
        found = [self._measure_or_fail(clip) for clip in clips]
        ready = [item for item in found if isinstance(item, CaptionRequest)]
        heard = iter(self._transcribe(ready))
        return [_with_transcript(item, next(heard)) if isinstance(item, CaptionRequest) else item for item in found]

    def _measure_or_fail(self, clip: Clip) -> CaptionRequest | Clip:
        try:
            return _measure(clip, self.settings, self.tagger)
        except Exception as error:  # whatever a file does to a decoder, it is this clip's verdict and no other's
            return clip.failed("caption", error)

    def _transcribe(self, ready: list[CaptionRequest]) -> list[dict] | list[dict | Exception]:
        voices = [item.voice for item in ready if item.voice is not None]
        try:
            return self.transcriber(voices)
        except Exception:  # one bad clip must not cost its batch: each is asked again, alone
            return [self._transcribe_one(voice) for voice in voices]

    def _transcribe_one(self, voice: np.ndarray) -> dict | Exception:
        try:
            return self.transcriber([voice])[0]
        except Exception as error:
            return error


class AnswerHandler:
    """What answers lead to, in a worker: holds the scorer of visual phrases.

    Raises:
        ValueError: its weights are not there.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        scorer = ClipScores(settings.seen) if settings.seen.clip else None
        self._score = scorer.scores if scorer and not scorer.untrained else None

    def handle(self, item: CaptionRequest, answer: str | NoAnswer, *, untrained: bool = False) -> CaptionRequest | Clip:
        """The clip's next question, or the clip done."""
        try:
            following = item.answered(answer, self.settings, self._score, untrained=untrained)
            if isinstance(following, CaptionRequest) and not following.question:
                return following.captioned(self.settings)
            return following
        except Exception as error:  # whatever an answer does to a reader, it is this clip's verdict and no other's
            return item.clip.failed("caption", error)


class Captioner:
    """The caption stage. Holds its models; make one per worker.

    Raises:
        ValueError: weights or an endpoint named in the settings are not there.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        self.measurer = Measurer(settings)
        self.answer_handler = AnswerHandler(settings)
        self.engine: VisionEngine | None = build_engine(settings.seen) if settings.seen.engine else None

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """Segments with kept clips (`clip.media`) → the same with `clip.caption`; other clips pass through.

        `clip.caption` holds: text, short, long (three lengths of one caption); evidence: [{sentence, variants, source,
        facts}]; transcript (see `transcribe.transcript`); picture (see `picture_statistics`); sound (see `levels`);
        removed: [{sentence, reasons}] taken out by the checker; and where an engine looked, seen: model, times of its
        pictures, phrases that stand and were removed (see `look.phrases`), or untrained and the answer as it came.

        Raises:
            EngineGone: the engine's server is gone; no clip is at fault.
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
    """The segments with `call` done to all their kept clips at once."""
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
    """(small frames, their times on the file's time line, the pictures that an engine is shown)."""
    start_s, end_s = span(clip)
    media, fps = clip.media, settings.picture_fps
    size = _frame_size(clip, settings.picture_width)
    if not settings.seen.engine:
        return *decode_video(media, start_s, end_s, fps=fps, size=size), []
    # Which pictures are shown is known once all were seen: kept as JPEG, a minute of them takes some MB.
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
    """(height, width) of the small frames: the picture's longer_side shape where it is known, `width` on its longer side."""
    wide, high = clip.info.get("width", 16), clip.info.get("height", 9)
    scale = width / max(wide, high)
    return max(32, round(high * scale / 2) * 2), max(32, round(wide * scale / 2) * 2)
