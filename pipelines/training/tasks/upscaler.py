"""Task `upscaler`: train the upscaler to turn the latents of a crop at low resolution into those at high resolution.

Generation in two stages uses it (arXiv 2601.03233 §4). A frozen video VAE, which must be given, encodes the crop twice
in each step: as it is, and scaled down, in space with an antialiased bicubic filter, in time by dropping every second
frame. Loss: absolute error of the latents, in units of each channel's standard deviation, so that all channels have
equal weight; and absolute error of the decoded picture, whose gradient is computed through the frozen decoder.

The VAE is no submodule of the trainee: it is neither partitioned nor written to checkpoints.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ltx2 import cast as to_dtype
from model.presets import check_fit
from model.upscaler import LatentUpscaler, UpscalerConfig
from model.video_vae import VideoVAE, latent_size
from pipelines.training.metrics import Mean, per_sample
from pipelines.training.tasks.base import Dataset, Task, Trainee
from pipelines.training.tasks.helpers.clips import PictureClips, PixelBatch
from pipelines.training.tasks.helpers.errors import psnr_db
from pipelines.training.tasks.helpers.flops import forward_flops
from pipelines.training.tasks.helpers.frozen import Frozen


@dataclass(frozen=True)
class Scale:
    """The factors of an upscaler, and the sizes of crops that fit them.

    Attributes:
        space: factor of height and width.
        time: factor of the number of frames after the first.
        size_multiple: a crop's height and width must be a multiple of it, pixels. Scaled down, they are then a
            multiple of 32.
        frame_multiple: a crop's frames must be 1 + a multiple of it. Scaled down, they are then 1 + a multiple of 8.
    """

    space: float
    time: int
    size_multiple: int
    frame_multiple: int

    def configure(self, config: UpscalerConfig) -> UpscalerConfig:
        """Return `config` with this scale; widths and depths do not change."""
        return replace(
            config,
            spatial_upsample=self.space > 1,
            temporal_upsample=self.time > 1,
            spatial_scale=self.space if self.space > 1 else 2.0,
            rational_resampler=self.space not in (1.0, 2.0),
        )


SCALES = {"x2": Scale(2.0, 1, 64, 8), "x1.5": Scale(1.5, 1, 96, 8), "temporal-x2": Scale(1.0, 2, 32, 16)}


class UpscalerTrainee(Trainee):
    """The upscaler with its loss.

    Args:
        upscaler: the module to train.
        vae: encodes both crops and decodes the result; frozen.
        task: the task of the run.
    """

    def __init__(self, upscaler: LatentUpscaler, vae: VideoVAE, task: "UpscalerTask") -> None:
        super().__init__()
        self.upscaler = upscaler
        self._options, self._scale = task.settings.upscaler, task.scale
        self.vae = Frozen(vae)

    def components(self) -> dict[str, nn.Module]:
        """Return the upscaler."""
        return {"upscaler": self.upscaler}

    def forward(self, batch: PixelBatch, step: int) -> tuple[Tensor, dict[str, Mean]]:
        """Encode the crops at both resolutions, upscale the low latents; return the loss and the means to log."""
        o, vae = self._options, self.vae.on(batch.weights.device)
        pixels = batch.pixels.to(next(vae.parameters()).dtype)
        with torch.no_grad():
            low, high = (vae.encode_distribution(x)[0] for x in (scaled_down(pixels, self._scale), pixels))
        upscaled = self.upscaler(low)
        latent = (vae.normalize(upscaled).float() - vae.normalize(high).float()).abs().flatten(1).mean(1)
        loss, means = o.latent * latent, {"loss/latent": latent}
        if o.decoded:
            decoded = vae.decode_raw(upscaled).float()
            error = (decoded - batch.pixels).abs().flatten(1).mean(1)
            loss = loss + o.decoded * error
            means |= {"loss/decoded": error, "psnr_db": psnr_db(decoded, batch.pixels)}
        return per_sample(loss, batch.weights, {"loss": loss, **means})


def scaled_down(pixels_bcfhw: Tensor, scale: Scale) -> Tensor:
    """Scale pixels (B, 3, F, H, W) in [−1, 1] down by the factors of `scale`, in space and time."""
    x = pixels_bcfhw[:, :, :: scale.time]
    if scale.space == 1:
        return x
    frames = x.transpose(1, 2).flatten(0, 1)
    size = [round(pixels / scale.space) for pixels in x.shape[3:]]
    # float32: the filter has no bfloat16 version on every device.
    small = F.interpolate(frames.float(), size, mode="bicubic", antialias=True).clamp(-1, 1).to(x.dtype)
    return small.unflatten(0, (len(x), -1)).transpose(1, 2)


class UpscalerTask(Task):
    """The task that trains an upscaler, of the scale in the settings, on crops of a curated set's pictures."""

    name = "upscaler"
    uses = ("upscaler", "video_vae")

    @property
    def scale(self) -> Scale:
        """Return the factors that `train.upscaler.scale` names."""
        return SCALES[self.settings.upscaler.scale]

    def dataset(self) -> PictureClips:
        """Check the size of a crop, and open the clips that fit a bucket and are at least as large as a crop."""
        s, o = self.settings, self.settings.upscaler
        _check_multiple("crop_size", o.crop_size, 0, self.scale.size_multiple, o.scale)
        _check_multiple("crop_frames", o.crop_frames, 1, self.scale.frame_multiple, o.scale)
        return PictureClips(s.input, o.buckets, o.crop_frames, o.crop_size, s.seed, s.cache_mb)

    def config(self, component: str, files: dict[str, Path]) -> Any:
        """Return the configuration of a component; an upscaler without a file gets the scale of the settings."""
        config = super().config(component, files)
        return self.scale.configure(config) if component == "upscaler" and component not in files else config

    def build(self, components: dict[str, nn.Module]) -> UpscalerTrainee:
        """Build the trainee from upscaler and video VAE; convert the VAE to the precision of the settings."""
        dtype = torch.bfloat16 if self.settings.workers.precision == "bf16" else torch.float32
        vae = cast(VideoVAE, to_dtype(components["video_vae"], dtype))
        return UpscalerTrainee(cast(LatentUpscaler, components["upscaler"]), vae, self)

    def validate(self, dataset: Dataset, files: dict[str, Path]) -> None:
        """Check that the video VAE is given, and that VAE and scale fit the upscaler."""
        if "video_vae" not in files:
            raise ValueError(
                "train upscaler: init_from gives no video_vae; name the model folder of the VAE whose latents "
                "the upscaler is for"
            )
        configs = {name: self.config(name, files) for name in self.uses}
        check_fit(configs)
        if configs["upscaler"] != self.scale.configure(configs["upscaler"]):
            raise ValueError(
                f"{files['upscaler']} is an upscaler of another scale than train.upscaler.scale = "
                f"{self.settings.upscaler.scale}; set the scale that it was made for, or leave it out of init_from"
            )

    def flops(self, trainee: Trainee, batch: PixelBatch) -> float:
        """Count two encodings, the upscaler forward and backward, and the decoder's forward and input gradient."""
        trainee = cast(UpscalerTrainee, trainee)
        b, c, f, h, w = batch.pixels.shape
        scale, vae = self.scale, trainee.vae.on(batch.pixels.device)
        crops = ((f, h, w), (1 + (f - 1) // scale.time, round(h / scale.space), round(w / scale.space)))
        high, low = ((b, vae.config.latent_channels, *latent_size(*crop)) for crop in crops)
        encoded = sum(forward_flops(vae, (b, c, *crop), lambda m, x: m.encode_distribution(x)) for crop in crops)
        upscaled = 3 * forward_flops(trainee.upscaler, low, lambda m, x: m(x))
        # The decoder has a gradient for its input but none for its weights.
        decoded = 2 * forward_flops(vae, high, lambda m, x: m.decode_raw(x))
        return encoded + upscaled + (decoded if self.settings.upscaler.decoded else 0)


def _check_multiple(name: str, value: int, first: int, multiple: int, scale: str) -> None:
    """Raise ValueError unless a crop's size is `first` + a multiple, so that the VAE can encode it scaled down too.

    Args:
        name: of the setting.
        value: of the setting, pixels or frames.
        first: 1 for frames, because the first one is encoded alone; 0 for pixels.
        multiple: as in `Scale`.
        scale: name of the scale, for the message.
    """
    if (value - first) % multiple:
        near = first + multiple * max(1, round((value - first) / multiple))
        shape = f"{'1 + ' * first}a multiple of {multiple}"
        raise ValueError(
            f"train.upscaler.{name} is {value}; for scale {scale} it must be {shape}, so that the VAE can encode the "
            f"crop at both resolutions; set it to {near}"
        )
