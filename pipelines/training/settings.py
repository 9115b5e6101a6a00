"""Settings of a training run: what every task shares, and a section for each task."""

from typing import Literal, Self

from pydantic import Field, model_validator

from data_prep.loading.buckets import Bucket
from data_prep.settings import BatchSettings, LocalPath, Settings


class OptimizerSettings(Settings):
    """AdamW, its learning rate schedule, and the moving average of the weights (EMA)."""

    lr: float = Field(default=3e-4, description="peak learning rate", gt=0)
    warmup_steps: int = Field(default=20, description="steps of linear warm-up", ge=0)
    schedule: Literal["constant", "cosine"] = Field(default="cosine", description="learning rate after the warm-up")
    final_lr: float = Field(default=0.1, description="learning rate at the last step, as a fraction of lr", ge=0, le=1)
    beta1: float = Field(default=0.9, description="AdamW's decay of the first moment", ge=0, lt=1)
    beta2: float = Field(default=0.99, description="AdamW's decay of the second moment", ge=0, lt=1)
    eps: float = Field(default=1e-8, description="AdamW's epsilon", gt=0)
    weight_decay: float = Field(default=0.01, description="AdamW's decoupled weight decay, of matrices only", ge=0)
    clip_norm: float = Field(default=1.0, description="gradient clipping: largest norm", gt=0)
    ema_decay: float = Field(
        default=0.99,
        description="decay of the moving average of the weights (EMA), which is exported; 0: none",
        ge=0,
        lt=1,
    )


class CheckpointSettings(Settings):
    """When the training state is saved, and how many checkpoints are kept."""

    every_steps: int = Field(default=200, description="steps between checkpoints", ge=1)
    keep: int = Field(default=2, description="newest complete checkpoints that are kept", ge=1)


class WorkerSettings(Settings):
    """The worker processes."""

    count: int = Field(default=2, description="workers (ranks)", ge=1)
    gpu: bool = Field(default=False, description="one GPU per worker")
    cpus: int = Field(default=1, description="CPUs, and threads, per worker", ge=1)
    zero_stage: Literal[1, 2, 3] | None = Field(
        default=None, description="DeepSpeed ZeRO stage; default: 3 for dit and text-projection, 1 for the others"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 keeps fp32 master weights; discriminators stay fp32"
    )
    recompute: int = Field(
        default=0,
        description="activation checkpointing: transformer blocks recomputed in backward; 0 none, 1 all, n every n-th",
        ge=0,
    )
    sequence_parallel: int = Field(
        default=1,
        description="workers that share the tokens of each sample, for long clips (dit, text-projection)",
        ge=1,
    )
    compile: bool = Field(default=False, description="torch.compile the transformer's blocks; minutes at the start")
    persistence_threshold: int = Field(
        default=100_000, description="ZeRO-3: parameters of at most so many values are not partitioned", ge=0
    )
    max_failures: int = Field(default=0, description="times that failed workers are restarted", ge=0)

    @model_validator(mode="after")
    def _groups_are_equal(self) -> Self:
        if self.count % self.sequence_parallel:
            raise ValueError(
                f"count {self.count} is not a multiple of sequence_parallel {self.sequence_parallel}; make it one"
            )
        return self

    @property
    def replicas(self) -> int:
        """Return the number of data-parallel groups.

        The workers of a group read the same samples and divide their tokens; groups read different samples.
        """
        return self.count // self.sequence_parallel


class ConditioningSettings(Settings):
    """Share of the samples that are conditioned on clean tokens, by kind; a sample has one kind at most."""

    first_frame: float = Field(default=0.0, description="given the first latent frame (image to video)", ge=0, le=1)
    extend_forward: float = Field(
        default=0.0, description="given some of the first latent frames with their sound", ge=0, le=1
    )
    extend_backward: float = Field(
        default=0.0, description="given some of the last latent frames with their sound", ge=0, le=1
    )
    inpaint: float = Field(default=0.0, description="given the picture outside a rectangle", ge=0, le=1)
    outpaint: float = Field(default=0.0, description="given the picture inside a rectangle", ge=0, le=1)
    audio_to_video: float = Field(default=0.0, description="given all of the sound", ge=0, le=1)
    video_to_audio: float = Field(default=0.0, description="given all of the picture", ge=0, le=1)

    @model_validator(mode="after")
    def _are_shares(self) -> Self:
        if self.total > 1:
            raise ValueError(f"the shares add up to {self.total:g}; lower them to at most 1 in all")
        return self

    @property
    def total(self) -> float:
        """Return the share of the samples that have conditioning of any kind."""
        return sum(probability for _, probability in self)


class DiffusionSettings(Settings):
    """The diffusion loss: rectified flow on both modalities."""

    sigma: Literal["independent", "shared"] = Field(
        default="independent", description="whether each modality draws a noise level, or both share one"
    )
    video_weight: float = Field(default=1.0, description="weight of the video loss", ge=0)
    audio_weight: float = Field(default=1.0, description="weight of the audio loss", ge=0)
    caption_dropout: float = Field(
        default=0.1, description="share of the samples trained without their caption (for text guidance)", ge=0, le=1
    )
    cross_modal_dropout: float = Field(
        default=0.1, description="share of the steps trained without A↔V attention (for modality guidance)", ge=0, le=1
    )
    conditioning: ConditioningSettings = ConditioningSettings()
    frozen: tuple[str, ...] = Field(
        default=(),
        description="parameters that are not trained: names with wildcards, e.g. 'transformer.audio_*'",
    )
    sigma_bins: int = Field(default=4, description="equal bins of sigma over which the losses are logged", ge=1)


class LoRASettings(Settings):
    """Low-rank adapters (LoRA) on frozen weights."""

    rank: int = Field(default=0, description="rank of the adapters; 0: no adapters, and the weights are trained", ge=0)
    alpha: int = Field(default=32, description="scale of the adapters, as alpha / rank", ge=1)
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"),
        description="linear layers with an adapter: ends of their names with wildcards, e.g. 'audio_ff.net.*'",
        min_length=1,
    )


class DiTSettings(DiffusionSettings):
    """Training of the transformer on the text features that encode stored."""

    train_connectors: bool = Field(default=True, description="also train the text connectors; not with LoRA")
    lora: LoRASettings = LoRASettings()


class TextProjectionSettings(DiffusionSettings):
    """Training of the text projection W and the connectors, with the text encoder online."""

    text_encoder: LocalPath = Field(
        default="package:gemma3-270m", description="Gemma 3: package:gemma3-270m, a folder, a hub id or a .gguf file"
    )
    max_text_tokens: int = Field(default=256, ge=1, description="longest caption, tokens; longer ones are cut")
    train_transformer: bool = Field(
        default=True, description="also train the transformer, as in the paper; otherwise init_from must hold it"
    )


class AdversarySettings(Settings):
    """Discriminators and their AdamW; what is not set here is as in `optimizer`."""

    weight: float = Field(default=0.0, description="weight of the adversarial loss; 0: no discriminators", ge=0)
    start_step: int = Field(default=0, description="step at which the discriminators start", ge=0)
    channels: int = Field(default=64, description="channels of the discriminators after their first layer", ge=4)
    lr: float = Field(
        default=2e-4, description="peak learning rate of the discriminators; its warm-up begins at start_step", gt=0
    )
    beta1: float = Field(default=0.5, description="AdamW's decay of the first moment", ge=0, lt=1)
    beta2: float = Field(default=0.9, description="AdamW's decay of the second moment", ge=0, lt=1)


class WaveAdversarySettings(AdversarySettings):
    """Multi-period and multi-scale discriminators; the defaults are HiFi-GAN's (arXiv 2010.05646 §2.3, §3)."""

    feature_matching: float = Field(
        default=2.0, description="weight of the feature matching loss relative to the adversarial loss", ge=0
    )
    channels: int = Field(default=32, description="channels of the discriminators after their first layer", ge=4)
    beta1: float = Field(default=0.8, description="AdamW's decay of the first moment", ge=0, lt=1)
    beta2: float = Field(default=0.99, description="AdamW's decay of the second moment", ge=0, lt=1)


class PerceptualSettings(Settings):
    """LPIPS loss of decoded frames."""

    weight: float = Field(default=0.0, description="weight of the perceptual loss; 0: none", ge=0)
    backbone: LocalPath = Field(default="", description="file of torchvision's vgg16 weights (.pth or .safetensors)")
    heads: LocalPath = Field(
        default="", description="file of LPIPS heads (lpips' vgg.pth); empty: all channels have equal weight"
    )


class VideoVAESettings(Settings):
    """Training of the video VAE: reconstruction of crops of curated clips."""

    buckets: tuple[Bucket, ...] = Field(
        default=(Bucket(),),
        description="clips are scaled to these as encode scales them; use encode's buckets",
        min_length=1,
    )
    crop_frames: int = Field(default=17, description="frames of a crop: 1 + a multiple of 8", ge=9)
    crop_size: int = Field(default=96, description="height and width of a crop, pixels: a multiple of 32", ge=32)
    still_fraction: float = Field(
        default=0.0, description="share of the samples that are a single frame; a batch has one kind", ge=0, lt=1
    )
    l1: float = Field(default=1.0, description="weight of the absolute error", ge=0)
    pyramid: float = Field(
        default=1.0, description="weight of the absolute error of averages over blocks of 8 and 32 pixels", ge=0
    )
    gradient: float = Field(default=0.1, description="weight of the absolute error of the picture's gradients", ge=0)
    kl: float = Field(default=1e-5, description="weight of the KL divergence to N(0, 1), per latent value", ge=0)
    perceptual: PerceptualSettings = PerceptualSettings()
    adversary: AdversarySettings = AdversarySettings()


class AudioVAESettings(Settings):
    """Training of the audio VAE: reconstruction of log-mel spectrograms."""

    crop_latents: int = Field(default=25, description="length of a crop, audio latents (25 per second)", ge=3)
    l1: float = Field(default=1.0, description="weight of the absolute error of the log-mel", ge=0)
    gradient: float = Field(
        default=0.5, description="weight of the error of its differences in time and frequency", ge=0
    )
    coarse: float = Field(
        default=1.0, description="weight of the error of the mel at 2, 4 and 8 times coarser frames and bands", ge=0
    )
    kl: float = Field(default=1e-5, description="weight of the KL divergence to N(0, 1), per latent value", ge=0)
    adversary: AdversarySettings = AdversarySettings()


class VocoderSettings(Settings):
    """Training of the vocoder: waveforms from log-mel spectrograms."""

    crop_mel_frames: int = Field(default=50, description="length of a crop, mel frames (100 per second)", ge=16)
    stft: float = Field(default=1.0, description="weight of the multi-resolution STFT loss", ge=0)
    mel: float = Field(
        default=1.0, description="weight of the log-mel loss; HiFi-GAN: 45, with an adversarial weight of 1", ge=0
    )
    decoded_fraction: float = Field(
        default=0.0,
        description="share of the steps whose mels the audio VAE has encoded and decoded; it must be in init_from",
        ge=0,
        le=1,
    )
    adversary: WaveAdversarySettings = WaveAdversarySettings()


class UpscalerSettings(Settings):
    """Training of the latent upscaler, on crops of curated clips at two resolutions."""

    scale: Literal["x2", "x1.5", "temporal-x2"] = Field(
        default="x2", description="what is upscaled, and by how much: height and width, or the frame rate"
    )
    buckets: tuple[Bucket, ...] = Field(
        default=(Bucket(),),
        description="clips are scaled to these as encode scales them; use encode's buckets",
        min_length=1,
    )
    crop_frames: int = Field(
        default=17, description="frames of a crop: 1 + a multiple of 8, of 16 for temporal-x2", ge=9
    )
    crop_size: int = Field(
        default=128,
        description="height and width of a crop at the high resolution, pixels: a multiple of 64 (x2) or 96 (x1.5)",
        ge=64,
    )
    latent: float = Field(
        default=1.0, description="weight of the absolute error of the latents, in standard deviations", ge=0
    )
    decoded: float = Field(
        default=1.0, description="weight of the absolute error of the decoded picture; 0: it is not decoded", ge=0
    )


class TrainSettings(Settings):
    """A training run."""

    input: str = Field(default="", description="encoded set (dit, text-projection), or curated set (the other tasks)")
    preset: str = Field(default="tiny", description="preset of the model: its size")
    init_from: tuple[str, ...] = Field(
        default=(), description="model folders or files to start from; other components start from random weights"
    )
    seed: int = Field(default=0, description="seed of weights, data order, noise and crops", ge=0)
    steps: int = Field(default=400, description="optimizer steps", ge=1)
    log_every: int = Field(default=10, description="steps between log entries", ge=1)
    statistics_clips: int = Field(
        default=256, description="clips, spread over the set, for the statistics of a VAE's latents", ge=1
    )
    cache_mb: int = Field(
        default=1024, description="cache of decoded clips per worker, MiB (tasks that read media)", ge=0
    )
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    workers: WorkerSettings = WorkerSettings()
    dit: DiTSettings = DiTSettings()
    text_projection: TextProjectionSettings = TextProjectionSettings()
    video_vae: VideoVAESettings = VideoVAESettings()
    audio_vae: AudioVAESettings = AudioVAESettings()
    vocoder: VocoderSettings = VocoderSettings()
    upscaler: UpscalerSettings = UpscalerSettings()

    @property
    def micro_batches_each(self) -> int:
        """Return the number of micro-batches that a worker runs in a step."""
        return self.batch.micro_batches // self.workers.replicas
