"""Latent upscaler of LTX-2: ×2 or ×1.5 in space, ×2 in time, on un-normalised latents of the video VAE.

Source: LTX-2 (arXiv 2601.03233 §4, two-stage generation); parameter names are those of the published upscaler files,
which have no prefix and which diffusers shares.

Shapes (suffixes of the tensors below): b batch, c channels, f frames, h height, w width, all of the latent.
In time, f latents become 2f − 1: the first holds one pixel frame and is not doubled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers import init_convolution_, repeat_rows_
from model.video_vae import VideoVAE, depth_to_space

_NORM_GROUPS = 32
_RATIONAL = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}
_BLUR = (1, 4, 6, 4, 1)


@dataclass(frozen=True)
class UpscalerConfig:
    """Shape of the upscaler. The defaults are the published ×2 in space; the class methods give the other two.

    Attributes:
        in_channels: channels of the latent.
        mid_channels: width, a multiple of 32.
        num_blocks_per_stage: residual blocks before and after the upsampling.
        spatial_upsample: scale height and width.
        temporal_upsample: double time.
        spatial_scale: 2, or 0.75, 1.5, 2 or 4 with `rational_resampler`.
        rational_resampler: upsample by the numerator of the scale, then blur and decimate by the denominator.
    """

    in_channels: int = 128
    mid_channels: int = 1024
    num_blocks_per_stage: int = 4
    spatial_upsample: bool = True
    temporal_upsample: bool = False
    spatial_scale: float = 2.0
    rational_resampler: bool = False

    def __post_init__(self) -> None:
        if self.mid_channels % _NORM_GROUPS:
            nearest = _NORM_GROUPS * max(1, round(self.mid_channels / _NORM_GROUPS))
            raise ValueError(
                f"mid_channels = {self.mid_channels} is not a multiple of {_NORM_GROUPS} (the groups of its norms); "
                f"the nearest valid value is {nearest}"
            )
        if not (self.spatial_upsample or self.temporal_upsample):
            raise ValueError("spatial_upsample and temporal_upsample are both off: switch one of them on")
        if self.rational_resampler and (self.temporal_upsample or not self.spatial_upsample):
            raise ValueError("rational_resampler scales space alone: switch temporal_upsample off")
        if self.rational_resampler and self.spatial_scale not in _RATIONAL:
            raise ValueError(f"spatial_scale = {self.spatial_scale:g}; choose {', '.join(f'{s:g}' for s in _RATIONAL)}")
        if self.spatial_upsample and not self.rational_resampler and self.spatial_scale != 2.0:
            raise ValueError(f"spatial_scale = {self.spatial_scale:g} needs rational_resampler = True")

    @classmethod
    def ltx2_x1_5(cls) -> UpscalerConfig:
        """Return the shape of the published ×1.5 in space."""
        return cls(spatial_scale=1.5, rational_resampler=True)

    @classmethod
    def ltx2_temporal(cls) -> UpscalerConfig:
        """Return the shape of the published ×2 in time."""
        return cls(mid_channels=512, spatial_upsample=False, temporal_upsample=True)


class ResBlock(nn.Module):
    """Two convolutions with group norm and a skip; the second activation follows the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(_NORM_GROUPS, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(_NORM_GROUPS, channels)

    def forward(self, x_bcfhw: Tensor) -> Tensor:
        """(b, c, f, h, w) → (b, c, f, h, w)."""
        h_bcfhw = F.silu(self.norm1(self.conv1(x_bcfhw)))
        return F.silu(x_bcfhw + self.norm2(self.conv2(h_bcfhw)))


class PixelShuffle(nn.Module):
    """`depth_to_space` by a fixed stride (s, p, q), as a layer."""

    def __init__(self, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x_bcfhw: Tensor) -> Tensor:
        """(b, c·s·p·q, f, h, w) → (b, c, f·s, h·p, w·q)."""
        return depth_to_space(x_bcfhw, self.stride)


class FrameConv2d(nn.Conv2d):
    """2-D convolution of each frame of a video."""

    def forward(self, input: Tensor) -> Tensor:
        """(b, in_channels, f, h, w) → (b, out_channels, f, h, w)."""
        b = input.shape[0]
        return super().forward(input.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, -1)).transpose(1, 2)


class BlurDown(nn.Module):
    """Binomial 5×5 blur, then every `stride`-th position (Zhang 2019, arXiv 1904.11486 §3)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("kernel", torch.empty(1, 1, len(_BLUR), len(_BLUR)))

    def reset(self) -> None:
        """Fill the buffer `kernel`. Call it after `to_empty`, which leaves it undefined."""
        row = torch.tensor(_BLUR, dtype=torch.float32, device="cpu")
        self.get_buffer("kernel").copy_(torch.outer(row, row) / sum(_BLUR) ** 2)

    def forward(self, x_bcfhw: Tensor) -> Tensor:
        """(b, c, f, h, w) → (b, c, f, h / stride, w / stride)."""
        if self.stride == 1:
            return x_bcfhw
        b, c = x_bcfhw.shape[:2]
        frames_nchw = x_bcfhw.transpose(1, 2).flatten(0, 1)  # n = b · f
        kernel = self.get_buffer("kernel").to(frames_nchw).expand(c, -1, -1, -1)
        frames_nchw = F.conv2d(frames_nchw, kernel, stride=self.stride, padding=len(_BLUR) // 2, groups=c)
        return frames_nchw.unflatten(0, (b, -1)).transpose(1, 2)


class RationalResampler(nn.Module):
    """Upsample by the numerator with a learned convolution, downsample by the denominator with a fixed blur."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        up, down = _RATIONAL[scale]
        self.conv = FrameConv2d(channels, channels * up**2, 3, padding=1)
        self.stride = (1, up, up)
        self.blur_down = BlurDown(down)

    def forward(self, x_bcfhw: Tensor) -> Tensor:
        """(b, c, f, h, w) → (b, c, f, scale · h, scale · w)."""
        return self.blur_down(depth_to_space(self.conv(x_bcfhw), self.stride))


class LatentUpscaler(nn.Module):
    """Upscaler of un-normalised latents (b, c, f, h, w); `upscale` takes and returns normalised ones."""

    def __init__(self, config: UpscalerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.mid_channels
        self.initial_conv = nn.Conv3d(config.in_channels, width, 3, padding=1)
        self.initial_norm = nn.GroupNorm(_NORM_GROUPS, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(config.num_blocks_per_stage))
        if config.rational_resampler:
            self.upsampler: nn.Module = RationalResampler(width, config.spatial_scale)
        else:
            stride = (2 if config.temporal_upsample else 1, *([2 if config.spatial_upsample else 1] * 2))
            # The published model that scales space only does so frame by frame.
            conv = nn.Conv3d if config.temporal_upsample else FrameConv2d
            shuffle = PixelShuffle((stride[0], stride[1], stride[2]))
            self.upsampler = nn.Sequential(conv(width, width * math.prod(stride), 3, padding=1), shuffle)
        self.post_upsample_res_blocks = nn.ModuleList(ResBlock(width) for _ in range(config.num_blocks_per_stage))
        self.final_conv = nn.Conv3d(width, config.in_channels, 3, padding=1)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise for training from scratch. The rules are ours; none are published.

        Truncated normals of variance 1 / fan-in, biases 0, norms 1 and 0: the group norm in each block keeps the scale
        at any depth. All positions that depth-to-space makes of one start equal (see `repeat_rows_`).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Conv2d):
                init_convolution_(module, gain_squared=1.0)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
            elif isinstance(module, BlurDown):
                module.reset()
        conv = self.upsampler.conv if isinstance(self.upsampler, RationalResampler) else self.upsampler[0]  # type: ignore[index]
        assert isinstance(conv, nn.Conv3d | nn.Conv2d)
        copies = conv.out_channels // self.config.mid_channels
        repeat_rows_(conv.weight, copies)

    def forward(self, z_bcfhw: Tensor) -> Tensor:
        """Upscale an un-normalised latent.

        Args:
            z_bcfhw: (b, in_channels, f, h, w).

        Returns:
            (b, in_channels, f or 2f − 1, scale · h, scale · w).

        Raises:
            ValueError: `z_bcfhw` has another shape.
        """
        if z_bcfhw.dim() != 5 or z_bcfhw.shape[1] != self.config.in_channels:
            expected = f"(batch, {self.config.in_channels}, frames, height, width)"
            raise ValueError(f"latent has shape {tuple(z_bcfhw.shape)}; expected {expected}")
        x_bcfhw = F.silu(self.initial_norm(self.initial_conv(z_bcfhw)))
        for block in self.res_blocks:
            x_bcfhw = block(x_bcfhw)
        x_bcfhw = self.upsampler(x_bcfhw)
        if self.config.temporal_upsample:
            x_bcfhw = x_bcfhw[:, :, 1:]
        for block in self.post_upsample_res_blocks:
            x_bcfhw = block(x_bcfhw)
        return self.final_conv(x_bcfhw)

    def upscale(self, latent_bcfhw: Tensor, vae: VideoVAE) -> Tensor:
        """Upscale a normalised latent: un-normalise it with the VAE's statistics, upscale, normalise.

        Args:
            latent_bcfhw: (b, in_channels, f, h, w), normalised.
            vae: the video VAE that made the latent.

        Returns:
            Normalised latent, in the shape that `forward` returns.
        """
        return vae.normalize(self(vae.denormalize(latent_bcfhw)))
