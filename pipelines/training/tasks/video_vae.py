"""Task `video-vae`: encode, sample and decode crops of clips.

Reconstruction loss: absolute error of the pixels; of their averages over blocks (a pyramid, from which the coarse
picture is learned first); of their differences in x, y and t (edges and motion, which the plain error blurs); and a
perceptual distance, when its weights are given. The rest of the loss is in `helpers.vae`.
"""

from functools import partial
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from model.video_vae import VideoVAE, unpatchify
from pipelines.training.tasks.base import Dataset
from pipelines.training.tasks.helpers.adversary import Discriminators, patch_discriminators
from pipelines.training.tasks.helpers.clips import PictureClips, PixelBatch, as_pixels
from pipelines.training.tasks.helpers.errors import edge_error, psnr_db, pyramid_error
from pipelines.training.tasks.helpers.frozen import Frozen
from pipelines.training.tasks.helpers.perceptual import load_perceptual
from pipelines.training.tasks.helpers.vae import VAETask, VAETrainee


class VideoVAETrainee(VAETrainee):
    """The video VAE under its loss."""

    def __init__(self, vae: VideoVAE, task: "VideoVAETask") -> None:
        options = task.settings.video_vae
        super().__init__(
            "video_vae", vae, options, task.settings.seed, partial(unpatchify, patch=vae.config.patch_size)
        )
        self._options = options
        perceptual = options.perceptual
        self._perceptual = Frozen(load_perceptual(perceptual.backbone, perceptual.heads)) if perceptual.weight else None

    def input(self, batch: PixelBatch) -> Tensor:
        """Return the pixels (B, 3, F, H, W)."""
        return batch.pixels

    def reconstruction(self, decoded: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum (B,) of the pixel errors, and each of them."""
        o = self._options
        l1 = (decoded - target).abs().flatten(1).mean(1)
        coarse = pyramid_error(decoded, target)
        edges = edge_error(decoded, target)
        loss = o.l1 * l1 + o.pyramid * coarse + o.gradient * edges
        means = {"loss/l1": l1, "loss/pyramid": coarse, "loss/edges": edges, "psnr_db": psnr_db(decoded, target)}
        if self._perceptual is not None:
            means["loss/perceptual"] = self._perceptual.on(decoded.device)(decoded, target)
            loss = loss + o.perceptual.weight * means["loss/perceptual"]
        return loss, means


class VideoVAETask(VAETask):
    """Train the video VAE on crops of a curated set's clips."""

    name = "video-vae"
    uses = ("video_vae",)

    def dataset(self) -> PictureClips:
        """Open the clips that fit a bucket and are as large as a crop."""
        s, o = self.settings, self.settings.video_vae
        return PictureClips(s.input, o.buckets, o.crop_frames, o.crop_size, s.seed, s.cache_mb, o.still_fraction)

    def build(self, components: dict[str, nn.Module]) -> VideoVAETrainee:
        """Build the trainee around the video VAE."""
        return VideoVAETrainee(cast(VideoVAE, components["video_vae"]), self)

    def discriminators(self) -> Discriminators | None:
        """Build a PatchGAN on video, when the adversarial loss has a weight."""
        return patch_discriminators(self.settings.video_vae.adversary, dims=3, channels=3)

    def validate(self, dataset: Dataset, files: dict[str, Path]) -> None:
        """Check that the weights of the perceptual distance can be loaded."""
        perceptual = self.settings.video_vae.perceptual
        if perceptual.weight:
            load_perceptual(perceptual.backbone, perceptual.heads)

    def clip(self, dataset: PictureClips, row: int) -> Tensor:
        """Return the pixels (1, 3, F, H, W) of a clip."""
        return as_pixels(dataset.clip_frames(row)[None])

    def by_channel(self, latent: Tensor) -> Tensor:
        """(1, C, f, h, w) → (C, f·h·w)."""
        return latent.transpose(0, 1).flatten(1)
