"""What is said in a clip: language, text, and each word with its time and speaker, without Whisper's hallucinations.

Whisper writes fluent text even for music, noise and silence ("Thank you.", "1-2-3-4-4-4…"). Two measures prevent this:
Whisper only gets the spans in which Silero detects a voice, and its text must pass tests of probability, repetition and
pace. A transcript counts what was removed, by reason. In an accepted text, a word of low confidence is "doubted": it is
listed in the transcript's words, but it is in no text and no quote.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from captioning.hear.speakers import Speakers, Turn
from captioning.hear.text_normalisation import UNSPACED, normalise
from captioning.hear.window import SAMPLE_RATE, Window
from captioning.settings import TranscribeSettings
from data_prep.packaged_weights import resolve
from data_prep.scores.voice_activity import FRAME, voice_probability

_MAX_SPAN = round(29 * SAMPLE_RATE / FRAME)  # Silero frames; a span with its margins must fit Whisper's 30 s
_MIN_PAUSE = round(0.1 * SAMPLE_RATE / FRAME)  # Silero frames; a shorter pause does not end a span
_MIN_SPAN = round(0.25 * SAMPLE_RATE / FRAME)  # Silero frames; a shorter span is a click, and is left out


class Transcriber:
    """Whisper with its filters and the speaker diarization. Whisper is loaded at the first clip that has a voice.

    Raises:
        ValueError: The Whisper weights or the voice encoder of the settings are missing.
    """

    def __init__(self, settings: TranscribeSettings):
        self.settings = settings
        self.weights = find_whisper(settings.whisper)
        self._pipeline = None
        self.speakers = Speakers(settings.speakers) if settings.speakers.weights else None

    def __call__(self, clips: list[np.ndarray]) -> list[dict]:
        """Transcribe clips, each mono (N,) float32 at 16 kHz. Return one transcript per clip (see `transcript`)."""
        voiced = [voiced_spans(voice_probability(audio), self.settings.voice_threshold) for audio in clips]
        if not any(voiced):
            return [transcript([], self.settings) for _ in clips]
        from captioning.hear import whisper  # takes 15 CPU seconds to import: only when somebody speaks

        if self._pipeline is None:
            self._pipeline = whisper.load(
                self.weights,
                device=self.settings.device,
                compute_type=self.settings.compute_type,
                threads=self.settings.threads,
                beam_size=self.settings.beam_size,
            )
        windows = whisper.listen(self._pipeline, clips, voiced, self.settings.batch_size)
        heard = [transcript([w for w in windows if w.clip == index], self.settings) for index in range(len(clips))]
        if self.speakers:
            for audio, spans, one in zip(clips, voiced, heard, strict=True):
                if one["words"]:
                    name_speakers(one, self.speakers(audio, spans))
        return heard


def name_speakers(heard: dict, turns: list[Turn]) -> None:
    """Write the speaker of each word, and the spans of each speaker, into a transcript.

    Speakers are numbered from 1 in the order of their first words; a speaker who says no word is left out. With fewer
    than two speakers, every word's speaker is None.

    Args:
        heard: The transcript; changed in place.
        turns: Who speaks when.
    """
    for word in heard["words"]:
        word["speaker"] = speaker_of(word["start"], word["end"], turns)
    spoken = dict.fromkeys(word["speaker"] for word in heard["words"] if word["speaker"])
    if len(spoken) < 2:
        for word in heard["words"]:
            word["speaker"] = None
        return
    number = {speaker: at for at, speaker in enumerate(spoken, 1)}
    for word in heard["words"]:
        word["speaker"] = number.get(word["speaker"])
    heard["speakers"] = [
        {"speaker": at, "spans": [[round(s, 2), round(e, 2)] for s, e, who in turns if who == speaker]}
        for speaker, at in number.items()
    ]


def speaker_of(start: float, end: float, turns: list[Turn]) -> int | None:
    """Return the number of the speaker who speaks longest between `start` and `end` (seconds).

    If nobody speaks then, return the speaker of the nearest turn within 0.5 s, or None if there is none.
    """
    shared: dict[int, float] = {}
    for first, last, speaker in turns:
        shared[speaker] = shared.get(speaker, 0.0) + max(0.0, min(end, last) - max(start, first))
    if shared and max(shared.values()) > 0:
        return max(sorted(shared), key=lambda speaker: shared[speaker])
    near = [(max(first - end, start - last), speaker) for first, last, speaker in turns]
    return min(near)[1] if near and min(near)[0] <= 0.5 else None


def find_whisper(name: str) -> str:
    """Resolve the setting `transcribe.whisper` to a folder or a hub id.

    Raises:
        ValueError: There is no such package, or the folder holds no CTranslate2 Whisper.
    """
    found = resolve(name)
    folder = Path(found).expanduser()
    if (folder.exists() or found.startswith((".", "/", "~"))) and not (folder / "model.bin").exists():
        raise ValueError(
            f"transcribe.whisper: no CTranslate2 Whisper (model.bin) in {name}; give such a folder, a hub id, or "
            "package:whisper-base"
        )
    return str(folder) if folder.exists() else found


def voiced_spans(probability: np.ndarray, threshold: float) -> list[tuple[float, float]]:
    """Find the spans of a clip in which somebody speaks.

    A span begins when the probability reaches `threshold`. It ends where the probability falls 0.15 below `threshold`
    and does not reach `threshold` again for 0.1 s, as in Silero's code, or after 29 s. A span shorter than 0.25 s is
    left out.

    Args:
        probability: (T,), the probability of speech in each 32 ms.
        threshold: The probability that counts as voice.

    Returns:
        (start, end) of each span in seconds.
    """
    spans: list[tuple[int, int]] = []
    start = low = None
    for frame, value in enumerate([*probability, *[0.0] * (_MIN_PAUSE + 1)]):
        if start is None:
            start = frame if value >= threshold else None
            low = None
            continue
        if value >= threshold:
            low = None
        elif value < threshold - 0.15 and low is None:
            low = frame
        if (low is not None and frame - low >= _MIN_PAUSE) or frame - start >= _MAX_SPAN:
            end = min(frame if low is None else low, len(probability))
            if end - start >= _MIN_SPAN:
                spans.append((start, end))
            start = low = None
    return [(start * FRAME / SAMPLE_RATE, end * FRAME / SAMPLE_RATE) for start, end in spans]


def transcript(windows: Sequence[Window], settings: TranscribeSettings) -> dict:
    """Filter the windows of one clip, and write their transcript as plain data.

    Args:
        windows: The clip's windows, in order.
        settings: The limits that a text must meet.

    Returns:
        language: ISO code, "" if no text was accepted; language_probability: None for a model of one language; text:
        without doubted words; words: [{word, start, end, confidence, doubted, quotable}], times in seconds; speakers:
        [], which `name_speakers` fills if there are two or more (each word then has its `speaker`); voiced: [[start,
        end]] in seconds; log_probability: the mean; removed: {reason: number of windows, "doubted": number of words}.
    """
    removed = Counter()
    accepted = []
    for window in windows:
        reason = rejection_reason(window, settings)
        if reason:
            removed[reason] += 1
        else:
            accepted.append(window)
    least, quoted = settings.min_word_confidence, max(settings.min_word_confidence, settings.min_quote_confidence)
    heard = [[word for word in window.words if normalise(word["word"])] for window in accepted]
    spoken = [
        [
            word | {"doubted": word["confidence"] < least, "quotable": sure}
            for word, sure in zip(words, _quotable([word["confidence"] for word in words], quoted), strict=True)
        ]
        for words in heard
    ]
    if doubts := sum(word["doubted"] for words in spoken for word in words):
        removed["doubted"] = doubts
    longest = max(accepted, key=lambda window: window.voiced_s, default=None)
    probability = longest.language_probability if longest else None
    return {
        "language": longest.language if longest else "",
        "language_probability": None if probability is None else round(probability, 3),
        "text": " ".join(filter(None, map(_accepted_text, accepted, spoken))),
        "words": [word for words in spoken for word in words],
        "speakers": [],
        "voiced": [[round(start, 3), round(end, 3)] for window in windows for start, end in window.voiced],
        "log_probability": round(float(np.mean([w.log_probability for w in accepted])), 3) if accepted else None,
        "removed": dict(removed),
    }


def _quotable(confidences: list[float], least: float) -> list[bool]:
    """Return for each word whether it may be quoted: whether its confidence is at least `least`.

    If Whisper mishears a word, it often mishears the words next to it. So a word next to one below `least` needs a
    confidence of at least (1 + `least`) / 2.
    """
    sure = [True, *(confidence >= least for confidence in confidences), True]
    return [
        confidence >= (least if sure[at] and sure[at + 2] else (1 + least) / 2)
        for at, confidence in enumerate(confidences)
    ]


def _accepted_text(window: Window, words: list[dict]) -> str:
    """Return the text of a window without its doubted words."""
    if not any(word["doubted"] for word in words):
        return window.text
    between = "" if window.language in UNSPACED else " "
    return between.join(word["word"] for word in words if not word["doubted"])


def rejection_reason(window: Window, settings: TranscribeSettings) -> str:
    """Return the reason to remove a window's text, "" to keep it.

    The tests are those of Whisper's decoding (Radford et al. 2022, §4.5), and those of pace, repetition and language.
    """
    words = normalise(window.text)
    if not words or not window.words:
        return "no_words"
    if window.compression_ratio > settings.max_compression_ratio:
        return "compression_ratio"
    if repeats(words):
        return "repeated_phrase"
    if window.log_probability < settings.min_log_probability:
        return "log_probability"
    if (
        window.no_speech_probability > settings.max_no_speech_probability
        and window.log_probability < settings.min_log_probability / 2
    ):
        return "no_speech"
    if len(words) > max(2.0, settings.max_words_per_second * window.voiced_s):
        return "pace"
    if window.language_probability is not None and window.language_probability < settings.min_language_probability:
        return "language"
    return ""


def repeats(words: list[str], times: int = 4, least: int = 6) -> bool:
    """Return whether the words repeat one phrase, as the text of a decoder in a loop does.

    A phrase of 1 to 8 words must occur at least `times` times in a row, and these repetitions must have at least
    `least` words together.
    """
    for length in range(1, 9):
        run = 0
        for index in range(length, len(words)):
            run = run + 1 if words[index] == words[index - length] else 0
            if run >= (times - 1) * length and run + length >= least:
                return True
    return False
