"""Task `video-vae`: crops of clips, encoded, sampled and decoded.

Loss: absolute error of the pixels and of their averages over blocks (a pyramid, by which the coarse picture is learnt
first), absolute error of their differences in x, y and t (edges and motion, which the plain error blurs), a perceptual
distance where weights for it are given, and a small KL divergence to N(0, 1). Where it has an adversary: the hinge loss
against a PatchGAN on video, weighted so that it pulls at the decoder's last layer as hard as reconstruction does
(VQGAN, arXiv 2012.09841 §3.1). The latent statistics are computed at the end, in one pass.
"""

from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.video_vae import VideoVAE, unpatchify
from pipelines.training.flops import forward_flops
from pipelines.training.tasks.base import Dataset, Mean, Task, Trainee, noise_like, per_sample, weight_type
from pipelines.training.tasks.helpers.adaptive_weight import LastLayer
from pipelines.training.tasks.helpers.adversary import Adversary, Discriminators, patch_discriminators
from pipelines.training.tasks.helpers.clips import PictureClips, PixelBatch, as_pixels
from pipelines.training.tasks.helpers.frozen import Frozen
from pipelines.training.tasks.helpers.perceptual import load_perceptual
from pipelines.training.tasks.helpers.statistics import Moments, spread


class VideoVAETrainee(Trainee):
    def __init__(self, vae: VideoVAE, task: "VideoVAETask") -> None:
        super().__init__()
        self.vae = vae
        self._options, self._seed = task.settings.video_vae, task.settings.seed
        perceptual = self._options.perceptual
        self._perceptual = Frozen(load_perceptual(perceptual.backbone, perceptual.heads)) if perceptual.weight else None
        if self._options.adversary.weight:
            self._last = LastLayer(vae.decoder.conv_out, partial(unpatchify, patch=vae.config.patch_size))

    def components(self) -> dict[str, nn.Module]:
        return {"video_vae": self.vae}

    def forward(
        self, batch: PixelBatch, step: int, adversary: Adversary | None = None
    ) -> tuple[Tensor, dict[str, Mean]]:
        mean, log_variance = self.vae.encode_distribution(batch.pixels.to(weight_type(self.vae)))
        log_variance = log_variance.clamp(-30.0, 20.0)
        noise = noise_like(mean, self._seed, batch.ids, step)
        pixels = self.vae.decode_raw(mean + noise * (0.5 * log_variance).exp()).float()
        l1 = (pixels - batch.pixels).abs().flatten(1).mean(1)
        coarse = pyramid_error(pixels, batch.pixels)
        edges = edge_error(pixels, batch.pixels)
        mean, log_variance = mean.float(), log_variance.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
        o = self._options
        reconstruction = o.l1 * l1 + o.pyramid * coarse + o.gradient * edges
        means = {"loss/l1": l1, "loss/pyramid": coarse, "loss/edges": edges, "loss/kl": kl}
        if self._perceptual is not None:
            means["loss/perceptual"] = self._perceptual.on(pixels.device)(pixels, batch.pixels)
            reconstruction = reconstruction + o.perceptual.weight * means["loss/perceptual"]
        loss = reconstruction + o.kl * kl
        with torch.no_grad():
            mse = (pixels.clamp(-1, 1) - batch.pixels).square().flatten(1).mean(1)
            psnr = 10 * torch.log10(4 / mse.clamp(min=1e-10))
        total, logged = per_sample(loss, batch.weights, means | {"loss": loss, "psnr_db": psnr})
        if adversary is None:
            return total, logged
        verdict = adversary.judge(batch.pixels, pixels, batch.weights)
        balance = self._last.balance((batch.weights * reconstruction).mean(), pixels, verdict.gradient)
        logged |= verdict.means | {"adaptive_weight": (balance, torch.ones_like(balance))}
        return total + o.adversary.weight * balance * verdict.loss(pixels), logged


def pyramid_error(x: Tensor, y: Tensor) -> Tensor:
    """(B,): mean absolute error of averages over blocks of 8 × 8 and of 32 × 32 pixels."""
    difference = F.avg_pool3d(x - y, (1, 8, 8))
    return sum((d.abs().flatten(1).mean(1) for d in (difference, F.avg_pool3d(difference, (1, 4, 4)))), x.new_zeros(()))


def edge_error(x: Tensor, y: Tensor) -> Tensor:
    """(B,): mean absolute error of neighbouring differences in t (but of stills), y and x, their sum."""
    dims = (2, 3, 4) if x.shape[2] > 1 else (3, 4)
    return sum(((x.diff(dim=d) - y.diff(dim=d)).abs().flatten(1).mean(1) for d in dims), x.new_zeros(()))


class VideoVAETask(Task):
    name = "video-vae"
    uses = ("video_vae",)

    def dataset(self) -> PictureClips:
        s, o = self.settings, self.settings.video_vae
        return PictureClips(s.input, o.buckets, o.crop_frames, o.crop_size, s.seed, s.cache_mb, o.still_fraction)

    def build(self, components: dict[str, nn.Module]) -> VideoVAETrainee:
        return VideoVAETrainee(cast(VideoVAE, components["video_vae"]), self)

    def discriminators(self) -> Discriminators | None:
        return patch_discriminators(self.settings.video_vae.adversary, dims=3, channels=3)

    def check(self, dataset: Dataset, files: dict[str, Path]) -> None:
        perceptual = self.settings.video_vae.perceptual
        if perceptual.weight:
            load_perceptual(perceptual.backbone, perceptual.heads)

    def flops(self, trainee: Trainee, batch: PixelBatch) -> float:
        vae = cast(VideoVAETrainee, trainee).vae
        return 3 * forward_flops(vae, tuple(batch.pixels.shape), lambda m, x: m.decode_raw(m.encode_distribution(x)[0]))

    def finish(self, trainee: Trainee, dataset: Dataset, rank: int, world: int) -> None:
        vae = cast(VideoVAETrainee, trainee).vae
        data = cast(PictureClips, dataset)
        device = next(vae.parameters()).device
        moments = Moments(vae.config.latent_channels, device)
        for row, counted in spread(len(data.clips), rank, world, self.settings.statistics_clips):
            mean, _ = vae.encode_distribution(as_pixels(data.whole(row)[None]).to(device, weight_type(vae)))
            if counted:
                moments.add(mean.transpose(0, 1).flatten(1))
        vae.set_statistics(*moments.mean_and_std())
