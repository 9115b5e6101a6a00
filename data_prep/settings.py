"""The base class of all settings models, and the settings of this package: synthetic corpus, curation and batches.

This module imports neither torch nor Ray nor scipy, which take seconds, so that the command's help appears at once.
The settings class `Bucket` is in `loading/buckets.py`, together with the computation of its shapes.
"""

import os.path
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _absolute_if_it_exists(name: str) -> str:
    return os.path.abspath(name) if name and os.path.exists(name) else name


LocalPath = Annotated[str, AfterValidator(_absolute_if_it_exists)]
"""A setting that may be the path of a local file or folder.

An existing path is made absolute, because workers have another working directory. Any other text (`package:NAME`,
a hub id, a URI) is not changed.
"""


class Settings(BaseModel):
    """Base class of settings: immutable; an unknown key, or a missing one without a default, is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with the given fields changed. Unlike pydantic's `model_copy`, it validates the new values."""
        return type(self).model_validate({**dict(self), **changes})


class Difference(NamedTuple):
    """One setting that differs between two mappings: its dotted key and both values ("unset" for none)."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} → {self.after}"


def differences(before: Any, after: Any, key: str = "") -> list[Difference]:
    """Return the settings that differ between two nested mappings, in the order of `before`, then of `after`.

    Args:
        before: nested mapping of settings, as read from a `settings.yaml`.
        after: nested mapping with the same types of values, so that equal settings compare equal.
        key: dotted key of these two mappings within all settings; "" at the top.
    """
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [] if before == after else [Difference(key, before, after)]
    found: list[Difference] = []
    for name in [*before, *(name for name in after if name not in before)]:
        dotted = f"{key}.{name}" if key else name
        found += differences(before.get(name, "unset"), after.get(name, "unset"), dotted)
    return found


class Mix(Settings):
    """How many clips of each kind, as shares of the sum."""

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
    """A synthetic audio-video corpus with labels."""

    clips: int = Field(default=64, ge=1, description="number of clips")
    seed: int = Field(default=0, ge=0, description="seed; clip k depends on the seed and k alone")
    width: int = Field(default=192, ge=64, multiple_of=2, description="pixels")
    height: int = Field(default=128, ge=64, multiple_of=2, description="pixels")
    fps: float = Field(default=24.0, ge=8, le=60, description="frames per second")
    seconds_min: float = Field(default=2.2, ge=1.8, description="shortest shot, seconds; a clip with cuts has 2 or 3")
    seconds_max: float = Field(default=4.0, le=60, description="longest shot, seconds")
    sample_rate: int = Field(
        default=48000, description="sample rate of the sound, Hz: 16000, 22050, 24000, 32000, 44100 or 48000"
    )
    mix: Mix = Field(default_factory=Mix, description="shares of each kind")
    workers: int = Field(default=0, ge=0, description="processes; 0: one per core")

    @model_validator(mode="after")
    def _possible(self) -> "SynthSettings":
        if self.seconds_max < self.seconds_min:
            raise ValueError(f"seconds_max {self.seconds_max} is below seconds_min {self.seconds_min}; raise it")
        if self.sample_rate not in (16000, 22050, 24000, 32000, 44100, 48000):
            raise ValueError(f"sample_rate {self.sample_rate}: choose 16000, 22050, 24000, 32000, 44100 or 48000")
        return self


class PolicySettings(Settings):
    """Thresholds of the rules that drop a clip."""

    silence_db: float = Field(
        default=-55.0, description="level below which a 50 ms frame is silent, dBFS; used when scores are measured"
    )
    active_min_s: float = Field(default=0.1, ge=0, description="a clip with less sound than this is silence, seconds")
    silence_max: float = Field(
        default=0.995, ge=0, le=1, description="a clip with a larger share of silent frames is silence"
    )
    stationary_min: float = Field(
        default=0.55, ge=0, le=1, description="a clip is steady from this share of stationary energy on"
    )
    salient_min: float = Field(
        default=0.15, ge=0, le=1, description="… unless salient sound fills this share of the time"
    )
    prominent_min_s: float = Field(default=0.4, ge=0, description="… or prominent sound lasts this long, seconds")
    speech_trace_min: float = Field(
        default=0.07,
        ge=0,
        le=1,
        description="the voice detector runs on a steady clip only from this best speech score on",
    )
    voice_min: float = Field(default=0.1, ge=0, le=1, description="a steady clip with this share of voice is kept")
    tone_min: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="a steady clip with this share of energy in constant spectral lines is a tone or hum",
    )
    event_min: float = Field(
        default=0.3, ge=0, le=1, description="a steady clip with this event score is kept, for example a waterfall"
    )
    wander_min: float = Field(
        default=1.05, ge=0, description="… unless its level varies less than this × that of Gaussian noise"
    )
    uneven_min_db: float = Field(
        default=0.7, ge=0, description="… or its spectrum is this close to a power law, dB, as a hiss is"
    )
    noise_tag_min: float = Field(
        default=0.5, ge=0, le=1, description="a clip with this noise score and no event is dropped"
    )
    bandwidth_min_hz: float = Field(
        default=1000.0, ge=0, description="a clip with nothing above this frequency is a rumble, Hz"
    )
    clipped_max: float = Field(
        default=0.1, ge=0, le=1, description="largest share of samples at full scale in a kept clip"
    )
    speech_min: float = Field(
        default=0.3, ge=0, le=1, description="mean of voice and speech scores from which a clip is of class speech"
    )
    music_min: float = Field(default=0.4, ge=0, le=1, description="music score from which a clip is of class music")


class KeptClipScoreSettings(Settings):
    """Further scores of kept clips. None of them drops a clip."""

    speech_quality: LocalPath = Field(
        default="", description="DNSMOS on speech: package:dnsmos or an .onnx file; '': off"
    )
    av_agreement: bool = Field(
        default=False, description="agreement of sound onsets with motion; decodes every kept clip"
    )
    active_speaker: str = Field(default="", description="lip-sync scorer, module:factory; '': off")
    active_speaker_weights: LocalPath = Field(default="", description="path passed to the factory")
    picture_quality: str = Field(
        default="", description="open_clip model for text overlay, aesthetics and near duplicates; '': off"
    )
    picture_quality_weights: LocalPath = Field(default="", description="its .safetensors file")


class CurateSettings(Settings):
    """How sources are cut into clips and judged."""

    clip_min_s: float = Field(default=2.0, gt=0, description="shorter clips are dropped, seconds")
    clip_max_s: float = Field(default=12.0, gt=0, description="longer scenes are divided at pauses in speech, seconds")
    segment_s: float = Field(default=600.0, gt=0, description="longest span of a source that is read at once, seconds")
    tagger: LocalPath = Field(default="package:yamnet", description="YAMNet weights: package:yamnet, or a folder")
    policy: PolicySettings = Field(default=PolicySettings(), description="rules from scores to verdict")
    measure_all: bool = Field(
        default=False, description="measure every score of dropped clips too, for complete calibration curves"
    )
    appraisal: KeptClipScoreSettings = Field(
        default=KeptClipScoreSettings(), description="further scores of kept clips"
    )


BLOCK = 64  # samples, neighbours in the index, that stay together when a window is shuffled


class BatchSettings(Settings):
    """How samples are packed into batches."""

    tokens: int = Field(default=4096, description="token budget of a micro-batch (video + audio tokens)", ge=1)
    max_samples: int = Field(default=64, description="samples in a micro-batch at most", ge=1)
    micro_batches: int = Field(
        default=2,
        description="micro-batches per optimizer step over all workers; a multiple of the number of workers",
        ge=1,
    )
    window: int = Field(
        default=8192,
        description=f"samples of a bucket that are shuffled together, as blocks of {BLOCK} neighbours",
        ge=BLOCK,
    )
