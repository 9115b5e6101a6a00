"""A window of a clip's voice, with what Whisper heard in it: passed from `whisper.py` to `transcribe.py`."""

import zlib
from dataclasses import dataclass, field

SAMPLE_RATE = 16000  # Hz, of Whisper and of Silero
Voiced = tuple[float, float]  # start and end in seconds from the clip's start


@dataclass
class Window:
    """At most 30 s of one clip, and what Whisper heard in it. Times are seconds from the clip's start."""

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
        return sum(end - start for start, end in self.voiced)

    @property
    def compression_ratio(self) -> float:
        data = self.text.encode()
        return len(data) / len(zlib.compress(data))
