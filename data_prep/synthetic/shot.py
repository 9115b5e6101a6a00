"""A shot, which is what a synthetic clip consists of: its frames, its sound, and the labels of both."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from data_prep.synthetic import sounds
from data_prep.synthetic.speech import Word


@dataclass(frozen=True)
class Format:
    """The format that all shots of a corpus share. Frame i is shown at i / fps seconds."""

    width: int
    height: int
    fps: float
    sample_rate: int

    @property
    def samples_per_frame(self) -> float:
        """Audio samples during one frame, usually not an integer."""
        return self.sample_rate / self.fps

    def samples(self, frames: int) -> int:
        """Return the number of audio samples that last as long as this number of frames."""
        return round(frames * self.samples_per_frame)

    def sample_of(self, frame: float) -> int:
        """Return the index of the audio sample at the time when a frame is first shown."""
        return round(frame * self.samples_per_frame)


@dataclass(frozen=True)
class Event:
    """An event at one moment; `x` is its position, 0 at the left edge of the picture and 1 at the right."""

    time_s: float
    what: str
    x: float


@dataclass
class Shot:
    """Frames and sound without a cut, with their labels.

    Attributes:
        kind: what it shows, a name of `settings.Mix`.
        sound_class: "speech", "environment", "music", "noise", "silence" or "no_audio".
        frames: (F, H, W, 3) uint8 RGB.
        audio: (2, N) float32 in [-1, 1]; None where there is no audio track.
        seen, heard: one or more true sentences each; the caption is the two together.
        events: in order of time, seconds from the start of the shot.
        words: the spoken words, seconds from the start of the shot.
        transcript: the spoken text.
        places: object → (F, 2): x and y on each frame, as shares of the picture's width and height.
    """

    kind: str
    sound_class: str
    frames: np.ndarray
    audio: np.ndarray | None
    seen: str
    heard: str
    events: list[Event] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    transcript: str = ""
    places: dict[str, np.ndarray] = field(default_factory=dict)


Kind = Callable[[np.random.Generator, Format, int], Shot]  # makes a shot of this number of frames


Range = float | tuple[float, float]  # a value, or the bounds between which one is drawn


def mixdown(
    rng: np.random.Generator, form: Format, dry: np.ndarray, *, room_s: Range, wet: Range, peak: Range, floor_db: float
) -> np.ndarray:
    """Turn direct sound into a shot's audio: add reverberation, set the level, and add faint noise (room tone).

    Args:
        rng: draws what is given as a range, the reverberation, and the noise.
        form: of the shot.
        dry: (2, N) direct sound.
        room_s: reverberation time T60 of the room, seconds.
        wet: level of the reverberation relative to the direct sound.
        peak: loudest sample, of full scale.
        floor_db: RMS of the room tone, dBFS.

    Returns:
        (2, N) float32 in [-0.99, 0.99].
    """
    room_s, wet, peak = (rng.uniform(*value) if isinstance(value, tuple) else value for value in (room_s, wet, peak))
    around = sounds.room(dry.sum(axis=0) / np.sqrt(2), rng, room_s, form.sample_rate)
    whole = dry + wet * around
    whole *= peak / max(float(np.abs(whole).max()), 1e-6)
    tone = np.stack([sounds.noise(rng, dry.shape[1], 1.0) for _ in range(2)])
    return np.clip(whole + 10 ** (floor_db / 20) * tone, -0.99, 0.99).astype(np.float32)


def side(x: float) -> str:
    """Return in words where a position is in the picture: x is 0 at the left edge and 1 at the right."""
    return "on the left" if x < 0.4 else "on the right" if x > 0.6 else "in the middle"
