"""The windows that Whisper transcribes, with its results; `whisper.py` fills them and `transcribe.py` reads them."""

import zlib
from dataclasses import dataclass, field

SAMPLE_RATE = 16000  # Hz, of Whisper and of Silero
Voiced = tuple[float, float]  # start and end in seconds from the clip's start


@dataclass
class Window:
    """At most 30 s of one clip, and what Whisper heard in it. Times are in seconds from the clip's start.

    Attributes:
        clip: Index of the clip in the list that was given to `Transcriber`.
        start: Start of the window.
        end: End of the window.
        voiced: The voiced spans of the window.
        text: What Whisper wrote, "" if nothing.
        words: [{word, start, end, confidence}].
        language: ISO code.
        language_probability: 0 to 1, None for a model of one language.
        log_probability: Mean natural log-probability per token.
        no_speech_probability: Whisper's probability that nobody speaks.
    """

    clip: int
    start: float
    end: float
    voiced: list[Voiced]
    text: str = ""
    words: list[dict] = field(default_factory=list)
    language: str = ""
    language_probability: float | None = None
    log_probability: float = 0.0
    no_speech_probability: float = 0.0

    @property
    def voiced_s(self) -> float:
        """Seconds of voice in the window."""
        return sum(end - start for start, end in self.voiced)

    @property
    def compression_ratio(self) -> float:
        """Size of the text divided by its size after zlib compression: high for a text that repeats itself."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data))
