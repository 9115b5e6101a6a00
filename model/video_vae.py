"""Video VAE of LTX-2: causal 3-D convolutional encoder, non-causal decoder, 8×32×32 compression.

Source: LTX-Video (arXiv 2501.00103 §2.1), LTX-2 (arXiv 2601.03233 §3); parameter names are those of the published
single-file checkpoint below `vae.`.

Shapes (suffixes of the tensors below)
    b  batch            c  channels of the layer
    f  frames           F = 1 + 8·(f_latent − 1) pixel frames
    h, w  height, width H = 32·h_latent, W = 32·w_latent
Pixels are in [−1, 1]. Normalised latents are (z − mean) / std per channel, with the statistics of the training set.

Time. The first frame stands alone and every further latent frame holds eight pixel frames. The encoder never looks
ahead (it pads by repeating the first frame twice). The decoder looks one frame to either side per convolution (it pads
by repeating the end frames). Both can be run over a long clip in chunks without changing the result: `TimeStream`
keeps, for each convolution, the two frames that the next chunk needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

TIME_STRIDE = 8
SPACE_STRIDE = 32

Axes = Literal["space", "time", "all"]
_STRIDES: dict[str, tuple[int, int, int]] = {"space": (1, 2, 2), "time": (2, 1, 1), "all": (2, 2, 2)}


@dataclass(frozen=True)
class VideoVAEConfig:
    """Shape of the video VAE. The defaults are LTX-2 19B ("2.0"); `VideoVAEConfig.ltx2_3()` is the 22B release.

    `downsample` and `upsample` list (axes halved or doubled, factor by which the width grows or shrinks), in the order
    in which data meets them; `encoder_layers` and `decoder_layers` count the residual blocks before, between and after.
    The encoder starts at `latent_channels` wide, the decoder at 8 × `decoder_base_channels`, as published.
    """

    latent_channels: int = 128
    patch_size: int = 4
    encoder_layers: tuple[int, ...] = (4, 6, 6, 2, 2)
    downsample: tuple[tuple[Axes, int], ...] = (("space", 2), ("time", 2), ("all", 2), ("all", 2))
    decoder_base_channels: int = 128
    decoder_layers: tuple[int, ...] = (5, 5, 5, 5)
    upsample: tuple[tuple[Axes, int], ...] = (("all", 2), ("all", 2), ("all", 2))
    upsample_residual: bool = True
    decoder_padding: Literal["reflect", "zeros"] = "reflect"

    def __post_init__(self) -> None:
        # Configurations come back from JSON, which knows lists only.
        object.__setattr__(self, "encoder_layers", tuple(self.encoder_layers))
        object.__setattr__(self, "decoder_layers", tuple(self.decoder_layers))
        object.__setattr__(self, "downsample", tuple((axes, factor) for axes, factor in self.downsample))
        object.__setattr__(self, "upsample", tuple((axes, factor) for axes, factor in self.upsample))
        for name, layers, steps in (
            ("encoder_layers", self.encoder_layers, self.downsample),
            ("decoder_layers", self.decoder_layers, self.upsample),
        ):
            if len(layers) != len(steps) + 1:
                raise ValueError(
                    f"{name} has {len(layers)} entries; {len(steps)} resolution steps need {len(steps) + 1}"
                )
            strides = [_STRIDES[axes] for axes, _ in steps]
            time, space = math.prod(s[0] for s in strides), math.prod(s[1] for s in strides) * self.patch_size
            if (time, space) != (TIME_STRIDE, SPACE_STRIDE):
                raise ValueError(
                    f"the steps beside {name} compress {time} in time and {space} in space; the family is 8 and 32"
                )

    @classmethod
    def ltx2_3(cls) -> VideoVAEConfig:
        """The video VAE of LTX-2.3 22B: narrower at depth, four plain (non-residual) upsampling steps."""
        return cls(
            encoder_layers=(4, 6, 4, 2, 2),
            downsample=(("space", 2), ("time", 2), ("all", 2), ("all", 1)),
            decoder_layers=(2, 2, 4, 6, 4),
            upsample=(("all", 2), ("all", 1), ("time", 2), ("space", 2)),
            upsample_residual=False,
            decoder_padding="zeros",
        )


# ---------------------------------------------------------------------------------------------------------------------
# Checks of sizes


def check_pixel_size(frames: int, height: int, width: int) -> None:
    """Raise ValueError, naming the dimension and the nearest valid value, unless F = 1 + 8k and 32 divides H and W."""
    if frames < 1 or (frames - 1) % TIME_STRIDE:
        nearest = 1 + TIME_STRIDE * max(0, round((frames - 1) / TIME_STRIDE))
        raise ValueError(f"frames = {frames} is not 1 + 8k; the nearest valid value is {nearest}")
    for name, size in (("height", height), ("width", width)):
        if size < SPACE_STRIDE or size % SPACE_STRIDE:
            nearest = SPACE_STRIDE * max(1, round(size / SPACE_STRIDE))
            raise ValueError(f"{name} = {size} is not a multiple of 32; the nearest valid value is {nearest}")


def latent_size(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(f, h, w) of the latent of `frames` × `height` × `width` pixels; ValueError for sizes the VAE cannot take."""
    check_pixel_size(frames, height, width)
    return 1 + (frames - 1) // TIME_STRIDE, height // SPACE_STRIDE, width // SPACE_STRIDE


def pixel_size(f: int, h: int, w: int) -> tuple[int, int, int]:
    """(frames, height, width) in pixels of an (f, h, w) latent."""
    return 1 + (f - 1) * TIME_STRIDE, h * SPACE_STRIDE, w * SPACE_STRIDE


# ---------------------------------------------------------------------------------------------------------------------
# Building blocks


class TimeStream:
    """What the layers remember between two chunks of one clip; give a fresh one to each pass over a clip.

    The encoder never looks ahead, so each of its chunks comes out at once. Every convolution of the decoder holds one
    frame back: when the clip has ended, call `release` and run the decoder on an empty chunk, until all frames are out.
    """

    def __init__(self) -> None:
        self._frames: dict[tuple[nn.Module, str], Tensor] = {}
        self._started: set[nn.Module] = set()
        self._released: set[nn.Module] = set()
        self._releases = 0

    def release(self, layers: int) -> None:
        """In the next pass, that many more layers (from the first on) let out the frame that they hold back.

        A few at a time keep the last passes as small as the others.
        """
        self._releases = layers

    def releases(self, layer: nn.Module) -> bool:
        if layer in self._released or not self._releases:
            return False
        self._releases -= 1
        self._released.add(layer)
        return True

    def take(self, layer: nn.Module, what: str = "past") -> Tensor | None:
        return self._frames.pop((layer, what), None)

    def keep(self, layer: nn.Module, frames_bcfhw: Tensor, what: str = "past") -> None:
        # A clone, so that a slice does not hold its whole chunk in memory.
        self._frames[(layer, what)] = frames_bcfhw.clone()

    def in_step(self, layer: nn.Module, skip_bcfhw: Tensor, frames: int) -> Tensor:
        """Queue the skip path's frames; return as many as the (late) residual path let out."""
        held = self.take(layer, "skip")
        queue = skip_bcfhw if held is None else torch.cat([held, skip_bcfhw], dim=2)
        self.keep(layer, queue[:, :, frames:], "skip")
        return queue[:, :, :frames]

    def is_first(self, layer: nn.Module) -> bool:
        """True once for each layer."""
        first = layer not in self._started
        self._started.add(layer)
        return first


class Conv3d(nn.Module):
    """3×3×3 convolution, stride 1, that keeps the length: causal in time (encoder) or centred (decoder).

    Time is padded by repeating the end frames, space by `padding_mode`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, causal: bool, padding_mode: str) -> None:
        super().__init__()
        self.causal = causal
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=(0, 1, 1), padding_mode=padding_mode)

    def forward(self, x_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        if stream is not None:
            return self._forward_chunk(x_bcfhw, stream)
        first, last = x_bcfhw[:, :, :1], x_bcfhw[:, :, -1:]
        padded = [first, first, x_bcfhw] if self.causal else [first, x_bcfhw, last]
        return self.conv(torch.cat(padded, dim=2))

    def _forward_chunk(self, x_bcfhw: Tensor, stream: TimeStream) -> Tensor:
        past = stream.take(self)
        if past is None:  # nothing before: the first frame, repeated (or nothing at all, where none has come yet)
            past = x_bcfhw[:, :, :1]
            past = torch.cat([past, past], dim=2) if self.causal else past
        x_bcfhw = torch.cat([past, x_bcfhw], dim=2)
        if not self.causal and stream.releases(self):
            x_bcfhw = torch.cat([x_bcfhw, x_bcfhw[:, :, -1:]], dim=2)
        if x_bcfhw.shape[2]:
            stream.keep(self, x_bcfhw[:, :, -2:])
        if x_bcfhw.shape[2] < 3:  # not enough frames yet for one output
            b, _, _, h, w = x_bcfhw.shape
            return x_bcfhw.new_empty(b, self.conv.out_channels, 0, h, w)
        return self.conv(x_bcfhw)


def pixel_norm(x_bc: Tensor, eps: float) -> Tensor:
    """Divide each position by the root mean square over its channels (Karras et al. 2018, arXiv 1710.10196 §4.2)."""
    return x_bc * torch.rsqrt(x_bc.square().mean(dim=1, keepdim=True) + eps)


class ResBlock3d(nn.Module):
    """Pre-activation residual block: (PixelNorm, SiLU, conv) twice."""

    def __init__(self, channels: int, *, causal: bool, padding_mode: str) -> None:
        super().__init__()
        self.conv1 = Conv3d(channels, channels, causal=causal, padding_mode=padding_mode)
        self.conv2 = Conv3d(channels, channels, causal=causal, padding_mode=padding_mode)

    def forward(self, x_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        h_bcfhw = self.conv1(nn.functional.silu(pixel_norm(x_bcfhw, 1e-8)), stream)
        h_bcfhw = self.conv2(nn.functional.silu(pixel_norm(h_bcfhw, 1e-8)), stream)
        if stream is not None:
            x_bcfhw = stream.in_step(self, x_bcfhw, h_bcfhw.shape[2])
        return x_bcfhw + h_bcfhw


class ResStage(nn.Module):
    """Residual blocks at one resolution."""

    def __init__(self, channels: int, layers: int, *, causal: bool, padding_mode: str) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ResBlock3d(channels, causal=causal, padding_mode=padding_mode) for _ in range(layers)
        )

    def forward(self, x_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        for block in self.res_blocks:
            x_bcfhw = block(x_bcfhw, stream)
        return x_bcfhw


def space_to_depth(x_bcfhw: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(b, c, f·s, h·p, w·q) → (b, c·s·p·q, f, h, w), channel-major, then time, height and width offset."""
    b, c, f, h, w = x_bcfhw.shape
    s, p, q = stride
    x = x_bcfhw.reshape(b, c, f // s, s, h // p, p, w // q, q)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * s * p * q, f // s, h // p, w // q)


def depth_to_space(x_bcfhw: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Inverse of `space_to_depth`."""
    b, c, f, h, w = x_bcfhw.shape
    s, p, q = stride
    x = x_bcfhw.reshape(b, c // (s * p * q), s, p, q, f, h, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // (s * p * q), f * s, h * p, w * q)


class Downsample(nn.Module):
    """Convolution then space-to-depth, beside a skip of space-to-depth and channel-group means.

    Doubles the first frame where time is halved, so that 1 + 2k frames become 1 + k.
    """

    def __init__(self, channels: int, out_channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.out_channels = out_channels
        self.conv = Conv3d(channels, out_channels // math.prod(stride), causal=True, padding_mode="zeros")

    def forward(self, x_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        if self.stride[0] == 2 and (stream is None or stream.is_first(self)):
            x_bcfhw = torch.cat([x_bcfhw[:, :, :1], x_bcfhw], dim=2)
        skip = space_to_depth(x_bcfhw, self.stride)
        skip = skip.unflatten(1, (self.out_channels, -1)).mean(dim=2)
        return space_to_depth(self.conv(x_bcfhw, stream), self.stride) + skip


class Upsample(nn.Module):
    """Convolution then depth-to-space; with `residual`, beside a skip of depth-to-space and repeated channels.

    Drops the first frame where time is doubled, so that 1 + k frames become 1 + 2k.
    """

    def __init__(
        self, channels: int, out_channels: int, stride: tuple[int, int, int], *, residual: bool, padding_mode: str
    ) -> None:
        super().__init__()
        self.stride = stride
        self.out_channels = out_channels
        self.residual = residual
        self.conv = Conv3d(channels, out_channels * math.prod(stride), causal=False, padding_mode=padding_mode)

    def forward(self, x_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        h_bcfhw = self.conv(x_bcfhw, stream)
        if stream is not None and self.residual:
            x_bcfhw = stream.in_step(self, x_bcfhw, h_bcfhw.shape[2])
        h_bcfhw = depth_to_space(h_bcfhw, self.stride)
        if self.residual:
            skip = depth_to_space(x_bcfhw, self.stride)
            h_bcfhw = h_bcfhw + skip.repeat(1, self.out_channels // skip.shape[1], 1, 1, 1)
        if self.stride[0] == 2 and h_bcfhw.shape[2] and (stream is None or stream.is_first(self)):
            h_bcfhw = h_bcfhw[:, :, 1:]
        return h_bcfhw


def patchify(pixels_bcfhw: Tensor, patch: int) -> Tensor:
    """(b, 3, F, H, W) → (b, 3·p², F, H/p, W/p); the width offset comes before the height offset, as published."""
    x = pixels_bcfhw.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # b c f h p w q
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x_bcfhw: Tensor, patch: int) -> Tensor:
    """Inverse of `patchify`."""
    x = x_bcfhw.unflatten(1, (-1, patch, patch))  # b c q p f h w
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


class Encoder(nn.Module):
    """(b, 3, F, H, W) pixels → (b, latent_channels + 1, f, h, w): means and one shared log-variance."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        width = config.latent_channels
        self.conv_in = Conv3d(3 * config.patch_size**2, width, causal=True, padding_mode="zeros")
        blocks: list[nn.Module] = [ResStage(width, config.encoder_layers[0], causal=True, padding_mode="zeros")]
        for (axes, factor), layers in zip(config.downsample, config.encoder_layers[1:], strict=True):
            blocks.append(Downsample(width, width * factor, _STRIDES[axes]))
            width *= factor
            blocks.append(ResStage(width, layers, causal=True, padding_mode="zeros"))
        self.down_blocks = nn.ModuleList(blocks)
        self.conv_out = Conv3d(width, config.latent_channels + 1, causal=True, padding_mode="zeros")

    def forward(self, pixels_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        x = self.conv_in(patchify(pixels_bcfhw, self.patch_size), stream)
        for block in self.down_blocks:
            x = block(x, stream)
        return self.conv_out(nn.functional.silu(pixel_norm(x, 1e-8)), stream)


class Decoder(nn.Module):
    """(b, latent_channels, f, h, w) un-normalised latent → (b, 3, F, H, W) pixels."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        padding = config.decoder_padding
        width = config.decoder_base_channels * 8
        self.conv_in = Conv3d(config.latent_channels, width, causal=False, padding_mode=padding)
        blocks: list[nn.Module] = [ResStage(width, config.decoder_layers[0], causal=False, padding_mode=padding)]
        for (axes, factor), layers in zip(config.upsample, config.decoder_layers[1:], strict=True):
            blocks.append(
                Upsample(
                    width,
                    width // factor,
                    _STRIDES[axes],
                    residual=config.upsample_residual and axes == "all",
                    padding_mode=padding,
                )
            )
            width //= factor
            blocks.append(ResStage(width, layers, causal=False, padding_mode=padding))
        self.up_blocks = nn.ModuleList(blocks)
        self.conv_out = Conv3d(width, 3 * config.patch_size**2, causal=False, padding_mode=padding)

    def forward(self, z_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        x = self.conv_in(z_bcfhw, stream)
        for block in self.up_blocks:
            x = block(x, stream)
        return unpatchify(self.conv_out(nn.functional.silu(pixel_norm(x, 1e-8)), stream), self.patch_size)


class LatentStatistics(nn.Module):
    """Per-channel mean and standard deviation of the latents of the training set (mean 0, std 1 until they are set)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("std-of-means", torch.ones(channels))
        self.register_buffer("mean-of-means", torch.zeros(channels))

    @property
    def mean(self) -> Tensor:
        return self.get_buffer("mean-of-means")

    @property
    def std(self) -> Tensor:
        return self.get_buffer("std-of-means")

    def reset(self) -> None:
        self.mean.zero_()
        self.std.fill_(1.0)

    def set(self, mean: Tensor, std: Tensor) -> None:
        """Store the statistics; ValueError for a wrong length, or a value that is not finite or a std not above 0."""
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.mean.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; this VAE needs {tuple(self.mean.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds values that are not finite; measure the statistics again")
        if not (std > 0).all():
            raise ValueError("std holds values that are not above 0: a latent channel is dead; train the VAE further")
        self.mean.copy_(mean)
        self.std.copy_(std)


# ---------------------------------------------------------------------------------------------------------------------
# The VAE


class VideoVAE(nn.Module):
    """Encoder, decoder and latent statistics. `encode` and `decode` are normalised, `*_distribution` and `*_raw` not.

    `model.tiling` runs the same weights over clips that are too long or too large to go through whole.
    """

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.per_channel_statistics = LatentStatistics(config.latent_channels)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise for training from scratch (ours: nothing is published upstream).

        Convolutions: truncated normal of variance 2.8 / fan-in (SiLU of a unit normal has a mean square of 1/2.8; the
        inputs of all but the first convolutions are PixelNormed), bias 0. The second convolution of each residual
        block is zero, so that at step 0 every block is the identity and depth does not matter (Zhang et al. 2019,
        arXiv 1901.09321). In the decoder, all pixels that depth-to-space makes of one position start with the same
        weights (ICNR, Aitken et al. 2017, arXiv 1707.02937): with independent ones their average hardly depends on
        the latent, and hundreds of steps pass before even a colour is learnt. The first convolutions of both halves
        have unit normal biases, so that PixelNorm, which removes magnitude, leaves brightness in the direction. Means
        leave the encoder with a variance of about 1; the shared log-variance starts at −4 (σ ≈ 0.14) everywhere.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                trunc_normal_fan_in(module, gain_squared=2.8)
            elif isinstance(module, LatentStatistics):
                module.reset()
        for module in self.modules():
            if isinstance(module, ResBlock3d):
                nn.init.zeros_(module.conv2.conv.weight)
            elif isinstance(module, Downsample):
                # The skip carries the signal; half of the variance each keeps the sum where it was.
                module.conv.conv.weight.mul_(0.5)
        for module in self.decoder.modules():
            if isinstance(module, Upsample):
                _repeat_rows(module.conv.conv.weight, math.prod(module.stride))
        _repeat_rows(self.decoder.conv_out.conv.weight, self.config.patch_size**2)
        for half in (self.encoder, self.decoder):
            assert half.conv_in.conv.bias is not None
            nn.init.normal_(half.conv_in.conv.bias)
        self.encoder.conv_out.conv.weight[-1].zero_()
        bias = self.encoder.conv_out.conv.bias
        assert bias is not None
        bias[-1] = -4.0
        self.decoder.conv_out.conv.weight.mul_(0.2)

    # Training

    def encode_distribution(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of (B, 3, F, H, W) pixels in [−1, 1]: un-normalised mean (B, C, f, h, w) and the log-variance
        that all channels share (B, 1, f, h, w). ValueError when F is not 1 + 8k or 32 does not divide H and W."""
        _check_dims("pixels", pixels, channels=3)
        check_pixel_size(*pixels.shape[2:])
        mean, log_variance = self.encoder(pixels).split([self.config.latent_channels, 1], dim=1)
        return mean, log_variance

    def decode_raw(self, z: Tensor) -> Tensor:
        """Pixels (B, 3, F, H, W), about [−1, 1], of an un-normalised latent (B, C, f, h, w)."""
        self.check_latent(z)
        return self.decoder(z)

    # Use

    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised mean (B, C, f, h, w) of (B, 3, F, H, W) pixels in [−1, 1]; ValueError as `encode_distribution`."""
        return self.normalize(self.encode_distribution(pixels)[0])

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (B, 3, 1 + 8(f − 1), 32h, 32w), about [−1, 1], of a normalised latent (B, C, f, h, w)."""
        return self.decode_raw(self.denormalize(latent))

    def normalize(self, z: Tensor) -> Tensor:
        mean, std = self._statistics(z)
        return (z - mean) / std

    def denormalize(self, latent: Tensor) -> Tensor:
        mean, std = self._statistics(latent)
        return latent * std + mean

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the per-channel mean and standard deviation (C,) of un-normalised latents over the training set."""
        self.per_channel_statistics.set(mean, std)

    def check_latent(self, z: Tensor) -> None:
        """Raise ValueError for a latent that the decoder cannot take."""
        _check_dims("latent", z, channels=self.config.latent_channels)
        if self.config.decoder_padding == "reflect":
            for name, size in (("height", z.shape[3]), ("width", z.shape[4])):
                if size < 2:
                    raise ValueError(
                        f"latent {name} = {size}: reflect padding needs at least 2 latents (64 pixels); "
                        f"the nearest valid value is 2"
                    )

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        statistics = self.per_channel_statistics
        shape = (1, -1, 1, 1, 1)
        return statistics.mean.to(like).view(shape), statistics.std.to(like).view(shape)


def _check_dims(name: str, x: Tensor, *, channels: int) -> None:
    if x.dim() != 5 or x.shape[1] != channels:
        raise ValueError(f"{name} have shape {tuple(x.shape)}; expected (batch, {channels}, frames, height, width)")


def _repeat_rows(weight: Tensor, times: int) -> None:
    """In place: each group of `times` output channels takes the weights of its first."""
    weight.copy_(weight[::times].repeat_interleave(times, dim=0))


def trunc_normal_fan_in(layer: nn.Module, *, gain_squared: float) -> None:
    """Weight from a normal of variance gain² / fan-in, cut at two standard deviations; bias 0."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    fan_in = weight[0].numel()
    std = math.sqrt(gain_squared / fan_in) / 0.8796  # a normal cut at ±2σ keeps 0.8796 of σ
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)
