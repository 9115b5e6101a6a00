"""What can be set about a synthetic corpus."""

from pydantic import Field, model_validator

from data_prep.settings import Settings


class Mix(Settings):
    """How many of each kind, as shares of their sum."""

    ball: float = Field(default=0.20, ge=0, description="a ball that bounces and knocks")
    bars: float = Field(default=0.15, ge=0, description="xylophone bars that are struck and ring")
    speech: float = Field(default=0.22, ge=0, description="a face that speaks")
    music: float = Field(default=0.11, ge=0, description="a keyboard or a harp that plays a tune with chords")
    bird: float = Field(default=0.05, ge=0, description="a bird that sings")
    clock: float = Field(default=0.04, ge=0, description="a pendulum clock that ticks")
    cuts: float = Field(default=0.05, ge=0, description="two or three of the above with hard cuts between them")
    silence: float = Field(default=0.03, ge=0, description="digital silence")
    near_silent: float = Field(default=0.03, ge=0, description="a room's faint noise, about -73 dBFS")
    hiss: float = Field(default=0.03, ge=0, description="a steady hiss")
    hum: float = Field(default=0.03, ge=0, description="a mains hum at 50 or 60 Hz")
    tone: float = Field(default=0.03, ge=0, description="a steady tone")
    no_audio: float = Field(default=0.03, ge=0, description="no audio track")

    @model_validator(mode="after")
    def _some(self) -> "Mix":
        if sum(self.model_dump().values()) <= 0:
            raise ValueError("every share of the mix is 0; raise at least one")
        return self


class SynthSettings(Settings):
    """A labelled audio-video corpus made from nothing."""

    clips: int = Field(default=64, ge=1, description="number of clips")
    seed: int = Field(default=0, ge=0, description="clip k is a function of the seed and k alone")
    width: int = Field(default=192, ge=64, multiple_of=2, description="pixels")
    height: int = Field(default=128, ge=64, multiple_of=2, description="pixels")
    fps: float = Field(default=24.0, ge=8, le=60, description="frames per second")
    seconds_min: float = Field(default=2.2, ge=1.8, description="shortest shot, seconds; a clip with cuts has 2 or 3")
    seconds_max: float = Field(default=4.0, le=60, description="longest shot, seconds")
    sample_rate: int = Field(default=48000, description="of the sound, Hz: 16000, 22050, 24000, 32000, 44100 or 48000")
    mix: Mix = Field(default_factory=Mix, description="how many of each kind")
    workers: int = Field(default=0, ge=0, description="processes; 0: one for each core")

    @model_validator(mode="after")
    def _possible(self) -> "SynthSettings":
        if self.seconds_max < self.seconds_min:
            raise ValueError(f"seconds_max {self.seconds_max} is below seconds_min {self.seconds_min}; raise it")
        if self.sample_rate not in (16000, 22050, 24000, 32000, 44100, 48000):
            raise ValueError(f"sample_rate {self.sample_rate}: choose 16000, 22050, 24000, 32000, 44100 or 48000")
        return self
