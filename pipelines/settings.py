"""Settings of encoding, generation and tracking. Those of a training run are in `pipelines/training/settings.py`."""

from typing import Literal

from pydantic import Field

from data_prep.loading.buckets import Bucket
from data_prep.settings import LocalPath, Settings

COMPONENTS = ("video_vae", "audio_vae", "text_conditioner")


class EncodeSettings(Settings):
    """What clips are encoded to, and with which weights."""

    buckets: list[Bucket] = Field(
        default=[Bucket(), Bucket(height=192, width=128), Bucket(frames=25, fps=12)],
        min_length=1,
        description="shapes that clips are brought to; each fills the nearest",
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
    preset: str = Field(default="tiny", description="size of the untrained parts: what a trial of the pipeline takes")
    text_encoder: LocalPath = Field(
        default="package:gemma3-270m", description="Gemma 3: package:gemma3-270m, a folder, a hub id or a .gguf file"
    )
    max_text_tokens: int = Field(default=256, ge=1, description="longer captions are cut, tokens")
    batch: int = Field(default=4, ge=1, description="clips of one segment that run through a VAE together")

    @property
    def untrained(self) -> list[str]:
        """The parts that no weights are given for. Latents of such parts are good for a trial, not for training."""
        return [part for part in COMPONENTS if not getattr(self, part)]


class ScaleSettings(Settings):
    """Guidance strengths of one stream (arXiv 2601.03233, §4)."""

    text: float = Field(default=3.0, description="pull away from the negative prompt; 1: none")
    stg: float = Field(default=0.0, description="spatio-temporal guidance, with stg-blocks; 0: none")
    modality: float = Field(default=1.0, description="pull towards what the other stream adds; 1: none, published: 3")
    rescale: float = Field(
        default=0.7, ge=0, le=1, description="share of the result brought back to the unguided deviation"
    )


class GenerateSettings(Settings):
    """What is sampled, and how."""

    shape: Bucket = Field(default=Bucket(), description="size, frames and frame rate of the samples")
    steps: int = Field(default=40, ge=1, description="Euler steps; each costs one forward of up to four passes")
    video: ScaleSettings = ScaleSettings()
    audio: ScaleSettings = ScaleSettings(text=7.0)
    stg_blocks: tuple[int, ...] = Field(
        default=(), description="blocks that STG perturbs; published: 29 in 2.0, 28 in 2.3"
    )
    negative_prompt: str = Field(
        default="", description="what text guidance pulls away from; empty: no caption, as in training's dropout"
    )
    text_encoder: LocalPath = Field(
        default="package:gemma3-270m", description="Gemma 3: folder, hub id, .gguf file or package:NAME"
    )
    seed: int = Field(default=0, ge=0, description="of the noise, with the sample's number")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU when there is one")


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
