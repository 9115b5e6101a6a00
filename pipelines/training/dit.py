"""Task `dit`: rectified flow on both modalities (arXiv 2601.03233 §3; x_σ = (1 − σ)·x₀ + σ·ε, target ε − x₀).

Each sample draws σ per modality (or one for both), its noise, and two dropouts: its caption (all registers, the
unconditional of text guidance) and its A↔V attention (the single-modality prediction of modality guidance). The text
connectors train with the transformer; the feature projection W does not, for its features are what encode stored.
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from data_prep.batch_plan import MicroBatch
from data_prep.buckets import parse_key
from data_prep.loader import EncodedBatch, EncodedSamples
from model import weights
from model.flops import transformer_flops
from model.flow import TrainingSigma, add_noise, velocity_target
from model.modality import Modality, audio_positions, patchify_audio, patchify_video, video_positions
from model.presets import preset
from model.text_conditioner import TextConditioner
from model.transformer import DualStreamTransformer
from pipelines.training.task import Dataset, Mean, Task, Trainee, generator, noise_like


class EncodedDataset(Dataset):
    """An encoded set as the task's samples."""

    def __init__(self, root: str, registers: int) -> None:
        self.samples = EncodedSamples(root)
        buckets = self.samples.index["bucket"]
        self.buckets = buckets
        self.tokens = {}
        for key in buckets.unique().to_pylist():
            shape = parse_key(key)
            self.tokens[key] = shape.video_tokens + shape.audio_tokens
        self.skipped = {}
        self._registers = registers

    def batch(self, micro: MicroBatch, step: int) -> EncodedBatch:
        return self.samples.batch(micro.rows, micro.weights, self._registers)


class DiTTrainee(Trainee):
    def __init__(self, transformer: DualStreamTransformer, conditioner: TextConditioner, task: "DiTTask") -> None:
        super().__init__()
        self.transformer, self.text_conditioner = transformer, conditioner
        self._options, self._seed = task.settings.dit, task.settings.seed
        self._sigma = TrainingSigma(coupling=self._options.sigma)
        conditioner.text_embedding_projection.requires_grad_(False)
        if not self._options.train_connectors:
            conditioner.requires_grad_(False)

    def components(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "text_conditioner": self.text_conditioner}

    def forward(self, batch: EncodedBatch, step: int) -> tuple[Tensor, dict[str, Mean]]:
        o = self._options
        f, h, w = batch.video_latent.shape[2:]
        x0 = {"video": patchify_video(batch.video_latent), "audio": patchify_audio(batch.audio_latent)}
        sigma, drop_caption, skip_cross_modal = self._draw(batch, step, x0["video"].shape[1], x0["audio"].shape[1])

        mask = batch.text_mask & ~drop_caption[:, None]
        video_features, audio_features = (x * mask[..., None] for x in (batch.video_features, batch.audio_features))
        video_context, audio_context, context_mask = self.text_conditioner.connect(video_features, audio_features, mask)
        context = {"video": video_context, "audio": audio_context}

        device = mask.device
        positions = {
            "video": torch.cat([video_positions(f, h, w, fps, device=device) for fps in batch.fps.tolist()]),
            "audio": audio_positions(x0["audio"].shape[1], batch=len(batch.ids), device=device),
        }
        noise, streams = {}, {}
        for name in ("video", "audio"):
            noise[name] = noise_like(x0[name], self._seed, batch.ids, step, f"{name}-noise")
            streams[name] = Modality(
                latent=add_noise(x0[name], noise[name], sigma[name]),
                timesteps=sigma[name][:, None],
                sigma=sigma[name],
                positions=positions[name],
                context=context[name],
                context_mask=context_mask,
            )
        predicted: dict[str, Tensor] = {}
        predicted["video"], predicted["audio"] = self.transformer(streams["video"], streams["audio"], skip_cross_modal)
        real = (batch.weights > 0).float()
        loss = torch.zeros((), device=device)
        means: dict[str, Mean] = {}
        for name, weight in (("video", o.video_weight), ("audio", o.audio_weight)):
            error = (predicted[name].float() - velocity_target(x0[name], noise[name]).float()).square().mean((1, 2))
            loss = loss + weight * (batch.weights * error).mean()
            bins = (sigma[name] * o.sigma_bins).long().clamp(max=o.sigma_bins - 1)
            zeros = torch.zeros(o.sigma_bins, device=device)
            means[f"loss/{name}"] = ((error * real).sum(), real.sum())
            means[f"loss/{name}/sigma"] = (
                zeros.index_add(0, bins, error.detach() * real),
                zeros.index_add(0, bins, real),
            )
        video, audio = means["loss/video"], means["loss/audio"]
        means["loss"] = (o.video_weight * video[0] + o.audio_weight * audio[0], real.sum())
        return loss, means

    def _draw(
        self, batch: EncodedBatch, step: int, video_tokens: int, audio_tokens: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """σ of both streams (B,), and which samples lose their caption, and their A↔V attention: bool (B,)."""
        rows = []
        for sample_id in batch.ids:
            draw = generator(self._seed, f"{sample_id}/sigma", step)
            sigmas = torch.cat(self._sigma.sample_pair(1, video_tokens, audio_tokens, draw))
            rows.append(torch.cat([sigmas, torch.rand(2, generator=draw)]))
        video, audio, caption, cross = torch.stack(rows, dim=1).to(batch.weights.device, non_blocking=True)
        o = self._options
        return {"video": video, "audio": audio}, caption < o.caption_dropout, cross < o.cross_modal_dropout


class DiTTask(Task):
    name = "dit"
    zero_stage = 3
    uses = ("transformer", "text_conditioner")

    def dataset(self) -> EncodedDataset:
        registers = preset(self.settings.preset).text_conditioner.connector_num_learnable_registers
        return EncodedDataset(self.settings.input, registers)

    def build(self, parts: dict[str, nn.Module]) -> DiTTrainee:
        transformer = cast(DualStreamTransformer, parts["transformer"])
        return DiTTrainee(transformer, cast(TextConditioner, parts["text_conditioner"]), self)

    def check(self, dataset: Dataset, files: dict[str, Path]) -> None:
        samples = cast(EncodedDataset, dataset).samples
        tensors, about = samples.read(0)
        config = preset(self.settings.preset)
        if "transformer" in files:
            transformer = weights.configs(files["transformer"])["transformer"]
        else:
            transformer = config.transformer
        channels = tensors["video_latent"].shape[0]
        if channels != transformer.in_channels:
            raise ValueError(
                f"the latents of {self.settings.input} have {channels} channels, the transformer takes "
                f"{transformer.in_channels}; encode with the video VAE of preset {self.settings.preset}"
            )
        if "text_conditioner" not in files:
            raise ValueError(
                "train dit: init_from gives no text_conditioner; name the model folder that encode used, "
                "for the stored text features are its projection's"
            )
        for component in ("video_vae", "audio_vae"):
            known = about.get(component)
            if known and component in files and weights.fingerprint(files[component], component) != known:
                raise ValueError(
                    f"the latents of {self.settings.input} were made by another {component} than {files[component]}; "
                    f"encode again with these weights, or give those that encode used"
                )

    def flops(self, trainee: Trainee, batch: EncodedBatch) -> float:
        config = cast(DiTTrainee, trainee).transformer.config
        size, _, f, h, w = batch.video_latent.shape
        text = batch.text_mask.shape[1]
        return 3 * transformer_flops(config, f * h * w, batch.audio_latent.shape[2], text, size).total
