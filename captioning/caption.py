"""Clips → captions: decode once, measure, transcribe, compose, check.

A caption says what was measured and nothing else. A clip that fails at any of it ends in `failed("caption", …)`; it
never gets an empty or an invented caption.
"""

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from captioning.compose import LONG, MEDIUM, SHORT, Facts, compose, text_of
from captioning.describe import describe
from captioning.grounding import ground
from captioning.levels import measure
from captioning.onsets import refined
from captioning.settings import CaptionSettings
from captioning.transcribe import SAMPLE_RATE, Transcriber
from data_prep.clip import Clip, Segment, Tag
from data_prep.media import decode_audio, decode_video, span
from data_prep.tags import Tagger, load_tagger


class Captioner:
    """The caption stage. Holds its models; make one per worker.

    Raises:
        ValueError: weights named in the settings are not there.
    """

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        self.tagger = load_tagger(settings.tagger)
        self.transcriber = Transcriber(settings.transcribe)

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """Segments with kept clips (`clip.media`) → the same with `clip.caption`; other clips pass through.

        `clip.caption` holds: text, short, long (three lengths of one caption); evidence: [{sentence, variants, source,
        facts}]; transcript (see `transcribe.transcript`); picture (see `describe`); sound (see `levels`); removed:
        [{sentence, reasons}] taken out by the checker.
        """
        measured: dict[str, _Measured | Clip] = {}
        for clip in (clip for segment in segments for clip in segment.clips if clip.kept):
            try:
                measured[clip.clip_id] = _measure(clip, self.settings, self.tagger)
            except Exception as error:  # whatever a file does to a decoder, it is this clip's verdict and no other's
                measured[clip.clip_id] = clip.failed("caption", error)
        ready = [item for item in measured.values() if isinstance(item, _Measured)]
        for item, heard in zip(ready, self._transcripts(ready), strict=True):
            measured[item.clip.clip_id] = _caption(item, heard, self.settings)
        return [
            replace(segment, clips=[_result(measured.get(clip.clip_id, clip)) for clip in segment.clips])
            for segment in segments
        ]

    def _transcripts(self, ready: list["_Measured"]) -> list[dict] | list[dict | Exception]:
        try:
            return self.transcriber([item.voice for item in ready])
        except Exception:  # one bad clip must not cost its batch: each is asked again, alone
            return [self._alone(item.voice) for item in ready]

    def _alone(self, voice: np.ndarray) -> dict | Exception:
        try:
            return self.transcriber([voice])[0]
        except Exception as error:
            return error


class _Measured:
    def __init__(
        self, clip: Clip, voice: np.ndarray, picture: dict[str, Any], sound: dict[str, Any], tags: tuple[Tag, ...]
    ):
        self.clip, self.voice, self.picture, self.sound, self.tags = clip, voice, picture, sound, tags


def _measure(clip: Clip, settings: CaptionSettings, tagger: Tagger) -> _Measured:
    if not clip.media:
        raise ValueError("a kept clip without its media")
    start_s, end_s = span(clip)
    audio = decode_audio(clip.media, start_s, end_s, SAMPLE_RATE, 2)
    frames, times_s = decode_video(
        clip.media, start_s, end_s, fps=settings.picture_fps, size=_size(clip, settings.picture_width)
    )
    voice = audio.mean(0)
    tags = refined([tag for tag in clip.tags if tag.score >= settings.min_tag_score], voice, tagger)
    sound = measure(audio, SAMPLE_RATE) | {"av_agreement": clip.scores.get("av_agreement")}
    return _Measured(clip, voice, describe(frames, times_s - start_s), sound, tags)


def _size(clip: Clip, width: int) -> tuple[int, int]:
    """(height, width) of the small frames: the picture's own shape where it is known, `width` on its longer side."""
    wide, high = clip.info.get("width", 16), clip.info.get("height", 9)
    scale = width / max(wide, high)
    return max(32, round(high * scale / 2) * 2), max(32, round(wide * scale / 2) * 2)


def _caption(item: _Measured, heard: dict | Exception, settings: CaptionSettings) -> Clip:
    clip = item.clip
    if isinstance(heard, Exception):
        return clip.failed("caption", heard)
    facts = Facts(
        seconds=item.sound["seconds"],
        picture=item.picture,
        transcript=heard,
        sound=item.sound,
        tags=item.tags,
    )
    kept, removed = ground(compose(facts, settings.max_sounds), facts)
    texts = {variant: text_of(kept, variant) for variant in (SHORT, MEDIUM, LONG)}
    if not all(texts.values()):
        return clip.failed("caption", "no sentence is supported by what was measured")
    evidence = [{"sentence": s.text, "variants": list(s.variants), "source": s.source, "facts": s.facts} for s in kept]
    caption = {
        "text": texts[MEDIUM],
        "short": texts[SHORT],
        "long": texts[LONG],
        "evidence": evidence,
        "transcript": heard,
        "picture": item.picture,
        "sound": item.sound,
        "removed": [asdict(item) for item in removed],
    }
    return replace(clip, caption=caption)


def _result(item: "_Measured | Clip") -> Clip:
    assert isinstance(item, Clip), "every measured clip was captioned"
    return item
