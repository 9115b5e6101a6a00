"""Task `video-vae`: train the video VAE to encode, sample and decode crops of clips.

Reconstruction loss: absolute error of the pixels; of their averages over blocks (a pyramid, which helps to learn the
coarse picture first); of their differences in x, y and t (with the first error alone, edges and motion are blurred);
and a perceptual distance, when it has a weight. The other terms of the loss are in `helpers.vae`.
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
    """The video VAE with its loss.

    Args:
        vae: the module to train.
        task: the task of the run.
    """

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
        """Return the weighted sum (B,) of the errors, and each error and the PSNR (B,) by name in the log.

        Args:
            decoded: pixels (B, 3, F, H, W).
            target: pixels of the same shape, in [−1, 1].
        """
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
    """The task that trains the video VAE on crops of a curated set's pictures."""

    name = "video-vae"
    uses = ("video_vae",)

    def dataset(self) -> PictureClips:
        """Open the clips that fit a bucket and are at least as large as a crop."""
        s, o = self.settings, self.settings.video_vae
        return PictureClips(s.input, o.buckets, o.crop_frames, o.crop_size, s.seed, s.cache_mb, o.still_fraction)

    def build(self, components: dict[str, nn.Module]) -> VideoVAETrainee:
        """Build the trainee around the video VAE."""
        return VideoVAETrainee(cast(VideoVAE, components["video_vae"]), self)

    def discriminators(self) -> Discriminators | None:
        """Build a PatchGAN for video; None when the adversarial loss has weight 0."""
        return patch_discriminators(self.settings.video_vae.adversary, dims=3, channels=3)

    def validate(self, dataset: Dataset, files: dict[str, Path]) -> None:
        """Check that the files of the perceptual distance can be loaded, if it has a weight."""
        perceptual = self.settings.video_vae.perceptual
        if perceptual.weight:
            load_perceptual(perceptual.backbone, perceptual.heads)

    def clip(self, dataset: PictureClips, row: int) -> Tensor:
        """Return the pixels (1, 3, F, H, W) of a clip."""
        return as_pixels(dataset.clip_frames(row)[None])

    def by_channel(self, latent: Tensor) -> Tensor:
        """Reshape a latent (1, C, f, h, w) to (C, f·h·w)."""
        return latent.transpose(0, 1).flatten(1)
