"""The caption stage: write a caption for every kept clip.

The steps for a clip: decode it once, measure its picture and sound, transcribe its speech, ask an engine about its
pictures (if the settings name one), compose sentences, and check each sentence. A caption states only what was measured
and what the checks accept of an engine's answers. A clip that fails at any step gets the verdict
`failed("caption", …)`; it never gets an empty or an invented caption.
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
    """Check that the settings can run. Call it before any stage starts.

    It sends one request to the server of engine openai, and loads no model except the tagger.

    Raises:
        ValueError: A weight, package or endpoint is missing. The message names the setting.
    """
    find_whisper(settings.transcribe.whisper)
    load_tagger(settings.tagger)
    check_engine(settings.seen)


class Measurer:
    """The first half of the caption stage: it measures clips, and makes a `CaptionRequest` of each.

    It owns Whisper and the tagger, which take memory and time to load: make one per worker.

    Raises:
        ValueError: Weights named in the settings are missing.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        self.tagger = load_tagger(settings.tagger)
        self.transcriber = Transcriber(settings.transcribe)

    def measure(self, clips: Sequence[Clip]) -> list[CaptionRequest | Clip]:
        """Measure picture and sound of each clip, and transcribe its speech.

        Returns:
            One item per clip, in the order of `clips`: its request, or the failed clip if an error occurred.
        """
        found = [self._measure_or_fail(clip) for clip in clips]
        ready = [item for item in found if isinstance(item, CaptionRequest)]
        heard = iter(self._transcribe(ready))
        return [_with_transcript(item, next(heard)) if isinstance(item, CaptionRequest) else item for item in found]

    def _measure_or_fail(self, clip: Clip) -> CaptionRequest | Clip:
        """Return the clip's request without transcript, or the failed clip if an error occurred."""
        try:
            return _measure(clip, self.settings, self.tagger)
        except Exception as error:  # a file can break a decoder in any way; only this clip fails
            return clip.failed("caption", error)

    def _transcribe(self, ready: list[CaptionRequest]) -> list[dict] | list[dict | Exception]:
        """Return for each request its transcript, or the error that its clip caused."""
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
    """The second half of the caption stage: it turns an engine's answer into the next question or the caption.

    It owns the open_clip model that scores phrases against pictures, if the settings name one.

    Raises:
        ValueError: The scorer's weights are missing.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        scorer = ClipScores(settings.seen) if settings.seen.clip else None
        self._score = scorer.scores if scorer and not scorer.untrained else None

    def handle(self, item: CaptionRequest, answer: str | NoAnswer, *, untrained: bool = False) -> CaptionRequest | Clip:
        """Read an engine's answer to the current question of a request.

        Args:
            item: The request whose question was asked.
            answer: The engine's text, or why there is none.
            untrained: Whether the answer comes from random weights. Such an answer is stored, but the caption does not
                use it.

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
    """The caption stage with its models, which take memory and time to load: make one per worker.

    Raises:
        ValueError: Weights or an endpoint named in the settings are missing.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        self.measurer = Measurer(settings)
        self.answer_handler = AnswerHandler(settings)
        self.engine: VisionEngine | None = build_engine(settings.seen) if settings.seen.engine else None

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """Caption the kept clips of segments (those with `clip.media`), and leave the other clips unchanged.

        Returns:
            The segments, where each kept clip now has its `caption` or has failed. A caption holds: text, short, long
            (the medium, the short and the long variant); evidence: [{sentence, variants, source, facts}]; transcript
            (see `transcribe.transcript`); picture (see `picture_statistics.describe`); sound (see `levels.measure`);
            removed: [{text, reasons}], the sentences and phrases that were removed. If an engine was asked, it also
            holds seen: the model, the times of its pictures in seconds, the accepted and the removed phrases (see
            `look.phrases`). For an engine with random weights, seen holds `untrained` and the raw answer instead.

        Raises:
            EngineGone: The engine's server cannot be used any more; no clip is at fault.
        """
        return each_kept(segments, lambda clips: self._ask_until_answered(self.measurer.measure(clips)))

    def _ask_until_answered(self, items: list[CaptionRequest | Clip]) -> list[Clip]:
        """Ask the engine until no request has a question left. Return every item as a captioned or failed clip."""
        while open_ := [at for at, item in enumerate(items) if isinstance(item, CaptionRequest) and item.question]:
            assert self.engine is not None
            waiting = [item for item in (items[at] for at in open_) if isinstance(item, CaptionRequest)]
            replies = self.engine.ask([item.next_prompt(self.settings) for item in waiting])
            for at, item, reply in zip(open_, waiting, replies, strict=True):
                items[at] = self.answer_handler.handle(item, reply, untrained=self.engine.untrained)
        return [item.captioned(self.settings) if isinstance(item, CaptionRequest) else item for item in items]


def each_kept(segments: list[Segment], call: Callable[[list[Clip]], list[Clip]]) -> list[Segment]:
    """Return the segments with each kept clip replaced by its result from `call`.

    Args:
        segments: The segments.
        call: It gets the kept clips of all segments in one list, and returns one clip for each, in the same order.
    """
    kept = [clip for segment in segments for clip in segment.clips if clip.kept]
    done = iter(call(kept))
    return [
        replace(segment, clips=[next(done) if clip.kept else clip for clip in segment.clips]) for segment in segments
    ]


def _with_transcript(item: CaptionRequest, heard: dict | Exception) -> CaptionRequest | Clip:
    """Return the request with the transcript `heard`, or the failed clip if `heard` is an error."""
    return item.clip.failed("caption", heard) if isinstance(heard, Exception) else replace(item, transcript=heard)


def _measure(clip: Clip, settings: CaptionSettings, tagger: Tagger) -> CaptionRequest:
    """Decode a clip once and measure it. Return its request, with an empty transcript."""
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
    """Decode a clip's picture once, at `picture_fps` frames per second.

    Returns:
        Small frames (F, H, W, 3) uint8 for the statistics; their times (F,) in seconds on the file's timeline; and the
        (time, JPEG file) pictures for an engine, [] if the settings name no engine.
    """
    start_s, end_s = span(clip)
    media, fps = clip.media, settings.picture_fps
    size = _frame_size(clip, settings.picture_width)
    if not settings.seen.engine:
        return *decode_video(media, start_s, end_s, fps=fps, size=size), []
    # The pictures are chosen after all are decoded. Until then keep each as JPEG: a few MB for a minute of video.
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
    """Return (height, width), both even, of the clip's picture scaled to `width` pixels on its longer side.

    A picture of unknown size counts as 16:9.
    """
    wide, high = clip.info.get("width", 16), clip.info.get("height", 9)
    scale = width / max(wide, high)
    return max(32, round(high * scale / 2) * 2), max(32, round(wide * scale / 2) * 2)
