"""What is said in a clip: language, text and every word with its time, without the words that Whisper makes up.

Whisper writes fluent text for music, noise and silence ("Thank you.", "1-2-3-4-4-4…"). Two things keep that out: it is
only asked about voiced spans (Silero), and what it answers must pass tests of its own probability, its repetitiveness
and its pace. What is removed is counted by reason.
"""

from collections import Counter

import numpy as np

from captioning.settings import TranscribeSettings
from data_prep.packaged_weights import resolve


class Transcriber:
    """Whisper, loaded at the first call and kept."""

    def __init__(self, settings: TranscribeSettings):
        self.settings = settings
        self.weights = resolve(settings.whisper)
        self._pipeline = None

    def __call__(self, clips: list[np.ndarray]) -> list[dict]:
        """Mono clips, (N,) float32 at 16 kHz → one transcript each (see `transcript`)."""
        from captioning import whisper  # seconds of imports, needed only where there is speech to hear

        if not clips:
            return []
        if self._pipeline is None:
            self._pipeline = whisper.load(
                self.weights,
                device=self.settings.device,
                compute_type=self.settings.compute_type,
                threads=self.settings.threads,
                beam_size=self.settings.beam_size,
                voice_threshold=self.settings.voice_threshold,
            )
        windows = whisper.listen(self._pipeline, clips, self.settings.batch_size)
        return [transcript([w for w in windows if w.clip == index], self.settings) for index in range(len(clips))]


def transcript(windows: list, settings: TranscribeSettings) -> dict:
    """The windows of one clip as plain data.

    Returns:
        language (ISO code, "" when nothing was understood), language_probability (None where the model knows one
        language only), text, words: [{word, start, end, confidence}] (seconds), voiced: [[start, end]] (seconds),
        log_probability (mean), removed: {reason: windows}.
    """
    removed = Counter()
    believed = []
    for window in windows:
        reason = why_not_believed(window, settings)
        if reason:
            removed[reason] += 1
        else:
            believed.append(window)
    longest = max(believed, key=lambda window: window.voiced_s, default=None)
    probability = longest.language_probability if longest else None
    return {
        "language": longest.language if longest else "",
        "language_probability": None if probability is None else round(probability, 3),
        "text": " ".join(window.text for window in believed),
        "words": [word for window in believed for word in window.words],
        "voiced": [[round(start, 3), round(end, 3)] for window in windows for start, end in window.voiced],
        "log_probability": round(float(np.mean([w.log_probability for w in believed])), 3) if believed else None,
        "removed": dict(removed),
    }


def silence() -> dict:
    """The transcript of a clip in which nobody speaks."""
    return transcript([], TranscribeSettings())


def why_not_believed(window, settings: TranscribeSettings) -> str:
    """The reason to remove a window's text, "" to keep it. Limits as in Whisper's own decoding (Radford et al. 2022,
    §4.5) with voice activity, pace and repetition added."""
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
    """Whether a phrase of 1 to 8 words is said `times` times on end, `least` words in all: a decoder's loop."""
    for length in range(1, 9):
        run = 0
        for index in range(length, len(words)):
            run = run + 1 if words[index] == words[index - length] else 0
            if run >= (times - 1) * length and run + length >= least:
                return True
    return False


def normalise(text: str) -> list[str]:
    """Words in lower case without punctuation: what two transcripts are compared by."""
    kept = "".join(c if c.isalnum() or c in "'’" else " " for c in text.casefold())
    return [word for word in (w.replace("’", "'").strip("'") for w in kept.split()) if word]
