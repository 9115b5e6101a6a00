"""What `dit` and `text-projection` share: the diffusion loss, rectified flow on both modalities.

x_σ = (1 − σ)·x₀ + σ·ε, and the model predicts the velocity ε − x₀ (arXiv 2601.03233 §3).

For each sample these are drawn at random: σ per modality (or one σ for both), noise, the tokens that are given clean
(`conditioning`), whether its caption is dropped, and whether its A↔V attention is dropped. Without its caption, the
text context consists of the connectors' registers only, and the model learns the unconditional prediction for text
guidance. Without A↔V attention it learns the prediction from one modality for modality guidance.

The σ of a stream, on which the other stream is conditioned, is that of its noisiest token: 0 for a stream that is given
completely.
"""

from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from data_prep.loading.batch_plan import MicroBatch
from data_prep.loading.buckets import parse_key
from data_prep.loading.loader import EncodedSamples, LatentBatch
from model import build_component, weights
from model.flops import training_flops
from model.flow import TrainingSigma, add_noise, velocity_target
from model.modality import Modality, audio_positions, patchify_audio, patchify_video, video_positions
from model.text_conditioner import TextConditioner
from model.transformer import DualStreamBlock, DualStreamTransformer
from pipelines.training.metrics import Mean
from pipelines.training.sequence_parallel import SequenceGroup
from pipelines.training.settings import DiffusionSettings
from pipelines.training.tasks.base import Dataset, Task, Trainee
from pipelines.training.tasks.helpers.conditioning import draw_given
from pipelines.training.tasks.helpers.random_draws import generator, noise_like


class LatentDataset(Dataset):
    """The samples of an encoded set.

    Args:
        root: the set.
        registers: batches have the stored text features, padded to a multiple of this number of tokens; None: batches
            have the captions instead.
    """

    def __init__(self, root: str, registers: int | None) -> None:
        self._registers = registers
        self.samples = EncodedSamples(root)
        buckets = self.samples.index["bucket"]
        self.buckets = buckets
        self.tokens = {}
        for key in buckets.unique().to_pylist():
            shape = parse_key(key)
            self.tokens[key] = shape.video_tokens + shape.audio_tokens
        self.skipped = {}

    def batch(self, micro: MicroBatch, step: int) -> LatentBatch:
        """Read the latents of a micro-batch, with text features or captions."""
        if self._registers is None:
            return self.samples.captioned_batch(micro.rows, micro.weights)
        return self.samples.batch(micro.rows, micro.weights, self._registers)


class DiffusionTrainee(Trainee):
    """Transformer and text conditioner with the diffusion loss, for batches with stored text features.

    Args:
        components: "transformer" and "text_conditioner".
        task: the task of the run; its `mark_trained` decides which parameters are trained.

    Attributes:
        context_tokens: number of text tokens per sample that the transformer attended to in the last forward.
    """

    leaf_classes = (DualStreamBlock,)
    context_tokens: int

    def __init__(self, components: dict[str, nn.Module], task: "DiffusionTask") -> None:
        super().__init__()
        self._trained = task.trained
        self.transformer = cast(DualStreamTransformer, components["transformer"])
        self.transformer.set_activation_checkpointing(task.settings.workers.recompute)
        self.text_conditioner = cast(TextConditioner, components["text_conditioner"])
        self._options, self._seed = task.options, task.settings.seed
        self._sigma = TrainingSigma(coupling=task.options.sigma)
        task.mark_trained(self)
        ranks = task.settings.workers.sequence_parallel
        self._shared = SequenceGroup(ranks) if ranks > 1 else None
        if self._shared is not None:
            self.transformer.set_attention(self._shared.attention)
        if task.settings.workers.compile:
            self.transformer.compile_blocks()

    def components(self) -> dict[str, nn.Module]:
        """Return the components that the task trains."""
        return {name: self.get_submodule(name) for name in self._trained}

    @cached_property
    def trained_share(self) -> float:
        """Return the share of the transformer's parameters that are trained, in [0, 1]."""
        # A partitioned parameter is empty; ds_numel is its real number of elements.
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self.transformer.parameters()]
        return sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes)

    def text(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the projected text features (B, S, ·) of video and audio, and their left-padded mask (B, S), bool."""
        return batch.video_features, batch.audio_features, batch.text_mask

    def forward(self, batch: LatentBatch, step: int) -> tuple[Tensor, dict[str, Mean]]:
        """Add noise to the latents of a batch, predict its velocity, and return the loss and the means to log."""
        o = self._options
        f, h, w = batch.video_latent.shape[2:]
        x0 = {"video": patchify_video(batch.video_latent), "audio": patchify_audio(batch.audio_latent)}
        sigma, drop_caption, skip_cross_modal = self._draw(batch, step, x0["video"].shape[1], x0["audio"].shape[1])
        given = self._given(batch, step)

        # Text: drop captions, then let the connectors turn features into contexts.
        video_features, audio_features, mask = self.text(batch)
        mask = mask & ~drop_caption[:, None]
        video_features, audio_features = (x * mask[..., None] for x in (video_features, audio_features))
        video_context, audio_context, context_mask = self.text_conditioner.connect(video_features, audio_features, mask)
        context = {"video": video_context, "audio": audio_context}
        self.context_tokens = video_context.shape[1]

        # Noise: σ per sample, 0 for the given tokens.
        device = mask.device
        positions = {
            "video": torch.cat([video_positions(f, h, w, fps, device=device) for fps in batch.fps.tolist()]),
            "audio": audio_positions(x0["audio"].shape[1], batch=len(batch.ids), device=device),
        }
        noise, streams = {}, {}
        for name in ("video", "audio"):
            noise[name] = noise_like(x0[name], self._seed, batch.ids, step, f"{name}-noise")
            timesteps = sigma[name][:, None]
            if name in given:
                timesteps = timesteps * ~given[name]
            streams[name] = Modality(
                latent=add_noise(x0[name], noise[name], timesteps),
                timesteps=timesteps,
                sigma=timesteps.amax(1),
                positions=positions[name],
                context=context[name],
                context_mask=context_mask,
            )
        if self._shared is not None:
            streams = {name: self._shared.part(name, stream) for name, stream in streams.items()}

        # Predict the velocity of both streams.
        predicted: dict[str, Tensor] = {}
        predicted["video"], predicted["audio"] = self.transformer(streams["video"], streams["audio"], skip_cross_modal)

        # Loss, and its means over the samples that are no repeats, also by bin of σ.
        real = (batch.weights > 0).float()
        loss = torch.zeros((), device=device)
        means: dict[str, Mean] = {}
        for name, weight in (("video", o.video_weight), ("audio", o.audio_weight)):
            error = self._error(predicted[name], velocity_target(x0[name], noise[name]), given.get(name))
            loss = loss + weight * (batch.weights * error).mean()
            # A stream that is given clean has no loss to log.
            counted = real * (~given[name]).any(1) if name in given else real
            bins = (sigma[name] * o.sigma_bins).long().clamp(max=o.sigma_bins - 1)
            zeros = torch.zeros(o.sigma_bins, device=device)
            means[f"loss/{name}"] = ((error * counted).sum(), counted.sum())
            means[f"loss/{name}/sigma"] = (
                zeros.index_add(0, bins, error.detach() * counted),
                zeros.index_add(0, bins, counted),
            )
        video, audio = means["loss/video"], means["loss/audio"]
        means["loss"] = (o.video_weight * video[0] + o.audio_weight * audio[0], real.sum())
        return loss, means

    def _error(self, predicted: Tensor, target: Tensor, given: Tensor | None) -> Tensor:
        """Return (B,): `token_error`; with sequence parallelism, this rank's share of it times the ranks of a group.

        Args:
            predicted: (B, T, C); with sequence parallelism, this rank's tokens.
            target: (B, T, C), all tokens.
            given: bool (B, T), all tokens; None for no given token.
        """
        if self._shared is None:
            return token_error(predicted, target, given)
        if given is None:
            given = torch.zeros(target.shape[:2], dtype=torch.bool, device=target.device)
        target, part = self._shared.split(target), self._shared.split(given)
        return self._shared.size * token_error(predicted, target, part, generated=(~given).sum(1))

    def _draw(
        self, batch: LatentBatch, step: int, video_tokens: int, audio_tokens: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Draw σ by stream, (B,), and whether to drop the caption and the A↔V attention of each sample, bool (B,)."""
        rows = []
        for sample_id in batch.ids:
            draw = generator(self._seed, f"{sample_id}/sigma", step)
            sigmas = torch.cat(self._sigma.sample_pair(1, video_tokens, audio_tokens, draw))
            rows.append(torch.cat([sigmas, torch.rand(2, generator=draw)]))
        video, audio, caption, cross = torch.stack(rows, dim=1).to(batch.weights.device, non_blocking=True)
        o = self._options
        return {"video": video, "audio": audio}, caption < o.caption_dropout, cross < o.cross_modal_dropout

    def _given(self, batch: LatentBatch, step: int) -> dict[str, Tensor]:
        """Draw the given tokens: stream → bool (B, T). A stream without a given token in the batch is left out."""
        if not self._options.conditioning.total:
            return {}
        f, h, w = batch.video_latent.shape[2:]
        tokens = batch.audio_latent.shape[2]
        rows = [
            draw_given(self._options.conditioning, generator(self._seed, f"{name}/given", step), (f, h, w), tokens, fps)
            for name, fps in zip(batch.ids, batch.fps.tolist(), strict=True)
        ]
        found = {}
        for name, masks in zip(("video", "audio"), zip(*rows, strict=True), strict=True):
            given = torch.stack(masks)
            # Leave out a stream without given tokens: the model then computes one modulation per sample, not per token.
            # The test is on the CPU, so that it does not wait for the device.
            if given.any():
                found[name] = given.to(batch.weights.device, non_blocking=True)
        return found


def token_error(predicted: Tensor, target: Tensor, given: Tensor | None, generated: Tensor | None = None) -> Tensor:
    """Return (B,): mean squared error over the tokens that are not given; 0 for a sample with given tokens only.

    Args:
        predicted: (B, T, C).
        target: (B, T, C).
        given: bool (B, T), True for a given token; None for no given token.
        generated: (B,) divisor, the number of all tokens that are not given; needed if T are not all tokens.
    """
    squared = (predicted.float() - target.float()).square()
    if given is None:
        return squared.mean((1, 2))
    total = squared.mean(2).masked_fill(given, 0.0).sum(1)
    return total / ((~given).sum(1) if generated is None else generated).clamp(min=1)


def freeze(module: nn.Module, patterns: tuple[str, ...]) -> None:
    """Freeze the parameters whose names match one of the patterns (shell wildcards).

    Raises:
        ValueError: a pattern matches no parameter, or no parameter is left to train.
    """
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"frozen pattern {pattern!r} fits no parameter; names are such as {names[0]}")
    for name, parameter in module.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(f"frozen patterns {', '.join(patterns)} leave nothing to train")


class DiffusionTask(Task):
    """A task that trains with the diffusion loss on an encoded set.

    Attributes:
        options: the task's section of the settings.
        frozen: name patterns of the parameters that are not trained, those of the settings included.
        trained: names of the components that are written at the end.
    """

    needs = "an encoded set (kinotone encode)"
    zero_stage = 3
    shares_samples = True
    uses = ("transformer", "text_conditioner")
    options: DiffusionSettings
    frozen: tuple[str, ...]
    trained: tuple[str, ...] = ("transformer", "text_conditioner")

    def build(self, components: dict[str, nn.Module]) -> DiffusionTrainee:
        """Build the trainee from transformer and text conditioner."""
        return DiffusionTrainee(components, self)

    def validate(self, dataset: Dataset, files: dict[str, Path]) -> None:
        """Check that latents, transformer, VAEs and workers fit together."""
        tensors, about = cast(LatentDataset, dataset).samples.read(0)
        transformer = self.config("transformer", files)
        channels = tensors["video_latent"].shape[0]
        if channels != transformer.in_channels:
            raise ValueError(
                f"the latents of {self.settings.input} have {channels} channels, the transformer takes "
                f"{transformer.in_channels}; encode with the video VAE of preset {self.settings.preset}"
            )
        ranks = self.settings.workers.sequence_parallel
        for heads in (transformer.num_attention_heads, transformer.audio_num_attention_heads):
            if heads % ranks:
                raise ValueError(
                    f"train.workers.sequence_parallel {ranks} does not divide {heads} attention heads; choose a divisor"
                )
        for component in ("video_vae", "audio_vae"):
            known = about.get(component)
            if known and component in files and weights.fingerprint(files[component], component) != known:
                raise ValueError(
                    f"the latents of {self.settings.input} were made by another {component} than {files[component]}; "
                    f"encode again with these weights, or give those that encode used"
                )
        # Build on the meta device, without memory, to find a wrong pattern before the workers start.
        components = {name: build_component(self.config(name, files), device="meta") for name in self.uses}
        self.mark_trained(nn.ModuleDict(components))

    def mark_trained(self, module: nn.Module) -> None:
        """Freeze the parameters that the task does not train.

        Args:
            module: a module with the components as submodules, by their names.

        Raises:
            ValueError: a pattern of the settings matches no parameter.
        """
        freeze(module, self.frozen)

    def flops(self, trainee: Trainee, batch: LatentBatch) -> float:
        """Count the transformer's operations. The connectors are not counted; they have few."""
        trainee = cast(DiffusionTrainee, trainee)
        size, _, f, h, w = batch.video_latent.shape
        config, audio = trainee.transformer.config, batch.audio_latent.shape[2]
        return training_flops(config, f * h * w, audio, trainee.context_tokens, size, trainee.trained_share)
