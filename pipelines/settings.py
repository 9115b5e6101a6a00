"""Settings of encoding, generation and tracking. Those of a training run are in `pipelines/training/settings.py`."""

from typing import Literal

from pydantic import Field

from data_prep.loading.buckets import Bucket
from data_prep.settings import LocalPath, Settings

COMPONENTS = ("video_vae", "audio_vae", "text_conditioner")


class EncodeSettings(Settings):
    """The shapes and weights that clips are encoded with."""

    buckets: list[Bucket] = Field(
        default=[Bucket(), Bucket(height=192, width=128), Bucket(frames=25, fps=12)],
        min_length=1,
        description="shapes that clips are scaled and cut to; each clip takes the nearest that it can fill",
    )
    video_vae: LocalPath = Field(
        default="", description="model folder that holds video_vae.safetensors; empty: untrained"
    )
    audio_vae: LocalPath = Field(
        default="", description="model folder that holds audio_vae.safetensors; empty: untrained"
    )
    text_conditioner: LocalPath = Field(
        default="", description="model folder that holds text_conditioner.safetensors (W); empty: untrained"
    )
    preset: str = Field(
        default="tiny", description="preset of the components without weights, for a trial of the pipeline"
    )
    text_encoder: LocalPath = Field(
        default="package:gemma3-270m", description="Gemma 3: package:gemma3-270m, a folder, a hub id or a .gguf file"
    )
    max_text_tokens: int = Field(default=256, ge=1, description="longest caption, tokens; longer ones are cut")
    batch: int = Field(default=4, ge=1, description="clips of one segment in a batch of a VAE")

    @property
    def untrained(self) -> list[str]:
        """Components for which no model folder is set: they get random weights, for a trial but not for training."""
        return [part for part in COMPONENTS if not getattr(self, part)]


class ScaleSettings(Settings):
    """Guidance strengths of one stream (arXiv 2601.03233, §4)."""

    text: float = Field(default=3.0, description="text guidance, away from the negative prompt; 1: none")
    stg: float = Field(default=0.0, description="spatio-temporal guidance (STG), in stg-blocks; 0: none")
    modality: float = Field(
        default=1.0, description="modality guidance, towards what the other stream adds; 1: none, published: 3"
    )
    rescale: float = Field(
        default=0.7, ge=0, le=1, description="share of the result that is rescaled to the unguided standard deviation"
    )


class GenerateSettings(Settings):
    """What is sampled, and with which guidance."""

    shape: Bucket = Field(default=Bucket(), description="size, frames and frame rate of the samples")
    steps: int = Field(default=40, ge=1, description="Euler steps; each costs one to four forward passes")
    video: ScaleSettings = ScaleSettings()
    audio: ScaleSettings = ScaleSettings(text=7.0)
    stg_blocks: tuple[int, ...] = Field(
        default=(), description="blocks that STG perturbs; published: 29 in 2.0, 28 in 2.3"
    )
    negative_prompt: str = Field(
        default="", description="what text guidance leads away from; empty: no caption, as in caption dropout"
    )
    text_encoder: LocalPath = Field(
        default="package:gemma3-270m", description="Gemma 3: folder, hub id, .gguf file or package:NAME"
    )
    seed: int = Field(default=0, ge=0, description="seed of the noise; sample n takes seed + n")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")


class TrackingSettings(Settings):
    """Where runs are tracked."""

    uri: str = Field(
        default="",
        description="MLflow tracking server, e.g. http://mlflow:5000; empty: an SQLite store beside the output",
    )
    patience_s: float = Field(
        default=20.0,
        ge=0,
        description="how long the end of a run waits for a tracking server that does not answer, seconds",
    )
