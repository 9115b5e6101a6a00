"""Video VAE of LTX-2: causal 3-D convolutional encoder, non-causal decoder, 8×32×32 compression.

Source: LTX-Video (arXiv 2501.00103 §2.1), LTX-2 (arXiv 2601.03233 §3); parameter names are those of the published
single-file checkpoint below `vae.`.

Shapes (suffixes of the tensors below)
    b  batch            c  channels of the layer
    f  frames           F = 1 + 8·(f_latent − 1) pixel frames
    h, w  height, width H = 32·h_latent, W = 32·w_latent
Pixels are in [−1, 1]. The latent statistics have one entry per channel.

Time. The first latent frame holds one pixel frame and each later one holds eight. The encoder never looks ahead: it
pads by repeating the first frame twice. Each convolution of the decoder looks one frame back and one ahead: it pads by
repeating the first and the last frame. Both can run over a long clip in chunks with the same result: `TimeStream`
keeps, for each convolution, the two frames that the next chunk needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from model.layers import init_convolution_, repeat_rows_
from model.vae import VAE, LatentStatistics, pixel_norm

TIME_STRIDE = 8
SPACE_STRIDE = 32
_NORM_EPS = 1e-8

Axes = Literal["space", "time", "all"]
_STRIDES: dict[str, tuple[int, int, int]] = {"space": (1, 2, 2), "time": (2, 1, 1), "all": (2, 2, 2)}


@dataclass(frozen=True)
class VideoVAEConfig:
    """Shape of the video VAE. The defaults are LTX-2 19B ("2.0"); `VideoVAEConfig.ltx2_3()` is the 22B release.

    As published, the encoder's first layer has `latent_channels` channels and the decoder's has
    8 × `decoder_base_channels`.

    Attributes:
        latent_channels: channels of the latent.
        patch_size: side, in pixels, of the square patches that become channels before the first convolution.
        encoder_layers: residual blocks before, between and after the steps of `downsample`.
        downsample: the encoder's steps in order: axes that are halved, factor by which the width grows.
        decoder_base_channels: width of the decoder, divided by 8.
        decoder_layers: residual blocks before, between and after the steps of `upsample`.
        upsample: the decoder's steps in order: axes that are doubled, factor by which the width shrinks.
        upsample_residual: add a skip to the steps that double all axes.
        decoder_padding: how the decoder pads height and width.
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
        # JSON gives lists; tuples keep the configuration hashable.
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
        """Return the shape of LTX-2.3 22B's video VAE: narrower last layers, four upsampling steps without a skip."""
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
    """Check that the VAE can encode a clip of this size in pixels.

    Raises:
        ValueError: `frames` is not 1 + 8k, or 32 does not divide `height` or `width`; gives the nearest valid value.
    """
    if frames < 1 or (frames - 1) % TIME_STRIDE:
        nearest = 1 + TIME_STRIDE * max(0, round((frames - 1) / TIME_STRIDE))
        raise ValueError(f"frames = {frames} is not 1 + 8k; the nearest valid value is {nearest}")
    for name, size in (("height", height), ("width", width)):
        if size < SPACE_STRIDE or size % SPACE_STRIDE:
            nearest = SPACE_STRIDE * max(1, round(size / SPACE_STRIDE))
            raise ValueError(f"{name} = {size} is not a multiple of 32; the nearest valid value is {nearest}")


def latent_size(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Return (f, h, w) of the latent of a clip; raises ValueError as `check_pixel_size` does."""
    check_pixel_size(frames, height, width)
    return 1 + (frames - 1) // TIME_STRIDE, height // SPACE_STRIDE, width // SPACE_STRIDE


def pixel_size(f: int, h: int, w: int) -> tuple[int, int, int]:
    """Return (frames, height, width) in pixels of an (f, h, w) latent."""
    return 1 + (f - 1) * TIME_STRIDE, h * SPACE_STRIDE, w * SPACE_STRIDE


# ---------------------------------------------------------------------------------------------------------------------
# Building blocks


class TimeStream:
    """The frames that layers keep between two chunks of one clip. Use a new one for each pass over a clip.

    The encoder never looks ahead, so it returns each chunk completely. Each convolution of the decoder needs the next
    frame, so it outputs a chunk without its last frame. After the last chunk, call `release` and run the decoder on an
    empty chunk until all frames are out.
    """

    def __init__(self) -> None:
        self._frames: dict[tuple[nn.Module, str], Tensor] = {}
        self._started: set[nn.Module] = set()
        self._released: set[nn.Module] = set()
        self._releases = 0

    def release(self, layers: int) -> None:
        """Let the next `layers` layers output their last frame in the next pass.

        Releasing a few layers per pass keeps the last passes as small as the others.
        """
        self._releases = layers

    def releases(self, layer: nn.Module) -> bool:
        """Return whether `layer` outputs its last frame in this pass; True once per layer, as `release` allows."""
        if layer in self._released or not self._releases:
            return False
        self._releases -= 1
        self._released.add(layer)
        return True

    def take(self, layer: nn.Module, what: str = "past") -> Tensor | None:
        """Remove and return the frames of kind `what` that `layer` kept, or None where it kept none."""
        return self._frames.pop((layer, what), None)

    def keep(self, layer: nn.Module, frames_bcfhw: Tensor, what: str = "past") -> None:
        """Keep frames of `layer` for the next chunk.

        Args:
            layer: layer that keeps them.
            frames_bcfhw: (b, c, f, h, w).
            what: "past" for the input of a convolution, "skip" for the queue of a skip path.
        """
        # Clone: a slice would keep the memory of its complete chunk.
        self._frames[(layer, what)] = frames_bcfhw.clone()

    def in_step(self, layer: nn.Module, skip_bcfhw: Tensor, frames: int) -> Tensor:
        """Keep the skip path of `layer` aligned with its residual path, which outputs some frames a chunk later.

        Append `skip_bcfhw` to the queue of the skip path; remove and return the first `frames` frames of the queue, as
        many as the residual path output.
        """
        held = self.take(layer, "skip")
        queue = skip_bcfhw if held is None else torch.cat([held, skip_bcfhw], dim=2)
        self.keep(layer, queue[:, :, frames:], "skip")
        return queue[:, :, :frames]

    def is_first(self, layer: nn.Module) -> bool:
        """Return True at the first call for each layer."""
        first = layer not in self._started
        self._started.add(layer)
        return first


class Conv3d(nn.Module):
    """3×3×3 convolution of stride 1 that keeps the size: causal in time (encoder) or centred (decoder).

    It pads time by repeating the first and the last frame, and space by `padding_mode`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, causal: bool, padding_mode: str) -> None:
        super().__init__()
        self.causal = causal
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=(0, 1, 1), padding_mode=padding_mode)

    def forward(self, x_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        """(b, in_channels, f, h, w) → (b, out_channels, f, h, w); with `stream`, one chunk of a clip."""
        if stream is not None:
            return self._forward_chunk(x_bcfhw, stream)
        first, last = x_bcfhw[:, :, :1], x_bcfhw[:, :, -1:]
        padded = [first, first, x_bcfhw] if self.causal else [first, x_bcfhw, last]
        return self.conv(torch.cat(padded, dim=2))

    def _forward_chunk(self, x_bcfhw: Tensor, stream: TimeStream) -> Tensor:
        """Convolve one chunk of a clip, (b, in_channels, f, h, w), together with the last two frames before it.

        The result has f frames (causal), or those whose next frame is known (centred).
        """
        past = stream.take(self)
        if past is None:  # the clip starts here: repeat its first frame, if the chunk has one
            past = x_bcfhw[:, :, :1]
            past = torch.cat([past, past], dim=2) if self.causal else past
        x_bcfhw = torch.cat([past, x_bcfhw], dim=2)
        if not self.causal and stream.releases(self):
            x_bcfhw = torch.cat([x_bcfhw, x_bcfhw[:, :, -1:]], dim=2)
        if x_bcfhw.shape[2]:
            stream.keep(self, x_bcfhw[:, :, -2:])
        if x_bcfhw.shape[2] < 3:  # one output frame needs three frames
            b, _, _, h, w = x_bcfhw.shape
            return x_bcfhw.new_empty(b, self.conv.out_channels, 0, h, w)
        return self.conv(x_bcfhw)


class ResBlock3d(nn.Module):
    """Pre-activation residual block: (PixelNorm, SiLU, convolution) twice."""

    def __init__(self, channels: int, *, causal: bool, padding_mode: str) -> None:
        super().__init__()
        self.conv1 = Conv3d(channels, channels, causal=causal, padding_mode=padding_mode)
        self.conv2 = Conv3d(channels, channels, causal=causal, padding_mode=padding_mode)

    def forward(self, x_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        """(b, c, f, h, w) → (b, c, f, h, w)."""
        h_bcfhw = self.conv1(nn.functional.silu(pixel_norm(x_bcfhw, _NORM_EPS)), stream)
        h_bcfhw = self.conv2(nn.functional.silu(pixel_norm(h_bcfhw, _NORM_EPS)), stream)
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
        """(b, c, f, h, w) → (b, c, f, h, w)."""
        for block in self.res_blocks:
            x_bcfhw = block(x_bcfhw, stream)
        return x_bcfhw


def space_to_depth(x_bcfhw: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(b, c, f·s, h·p, w·q) → (b, c·s·p·q, f, h, w): channel-major, then time, height and width offset."""
    b, c, f, h, w = x_bcfhw.shape
    s, p, q = stride
    x = x_bcfhw.reshape(b, c, f // s, s, h // p, p, w // q, q)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * s * p * q, f // s, h // p, w // q)


def depth_to_space(x_bcfhw: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(b, c·s·p·q, f, h, w) → (b, c, f·s, h·p, w·q), the inverse of `space_to_depth`."""
    b, c, f, h, w = x_bcfhw.shape
    s, p, q = stride
    x = x_bcfhw.reshape(b, c // (s * p * q), s, p, q, f, h, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // (s * p * q), f * s, h * p, w * q)


class Downsample(nn.Module):
    """Convolution and space-to-depth, plus a skip: space-to-depth and means over groups of channels.

    Where time is halved, the first frame is repeated before it, so that 1 + 2k frames become 1 + k.
    """

    def __init__(self, channels: int, out_channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.out_channels = out_channels
        self.conv = Conv3d(channels, out_channels // math.prod(stride), causal=True, padding_mode="zeros")

    def forward(self, x_bcfhw: Tensor, stream: TimeStream | None = None) -> Tensor:
        """(b, channels, f, h, w) → (b, out_channels, …) with f (rounded up), h and w divided by `stride`."""
        if self.stride[0] == 2 and (stream is None or stream.is_first(self)):
            x_bcfhw = torch.cat([x_bcfhw[:, :, :1], x_bcfhw], dim=2)
        skip_bcfhw = space_to_depth(x_bcfhw, self.stride)
        skip_bcfhw = skip_bcfhw.unflatten(1, (self.out_channels, -1)).mean(dim=2)
        return space_to_depth(self.conv(x_bcfhw, stream), self.stride) + skip_bcfhw


class Upsample(nn.Module):
    """Convolution and depth-to-space; with `residual`, plus a skip: depth-to-space and repeated channels.

    Where time is doubled, the first frame is dropped after it, so that 1 + k frames become 1 + 2k.
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
        """(b, channels, f, h, w) → (b, out_channels, …) with f, h and w multiplied by `stride`; a doubled f loses 1."""
        h_bcfhw = self.conv(x_bcfhw, stream)
        if stream is not None and self.residual:
            x_bcfhw = stream.in_step(self, x_bcfhw, h_bcfhw.shape[2])
        h_bcfhw = depth_to_space(h_bcfhw, self.stride)
        if self.residual:
            skip_bcfhw = depth_to_space(x_bcfhw, self.stride)
            h_bcfhw = h_bcfhw + skip_bcfhw.repeat(1, self.out_channels // skip_bcfhw.shape[1], 1, 1, 1)
        if self.stride[0] == 2 and h_bcfhw.shape[2] and (stream is None or stream.is_first(self)):
            h_bcfhw = h_bcfhw[:, :, 1:]
        return h_bcfhw


def patchify(pixels_bcfhw: Tensor, patch: int) -> Tensor:
    """(b, 3, F, H, W) → (b, 3·patch², F, H/patch, W/patch).

    The order of the channels is colour, width offset, height offset, as published.
    """
    x = pixels_bcfhw.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # b c f h p w q
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x_bcfhw: Tensor, patch: int) -> Tensor:
    """(b, 3·patch², F, h, w) → (b, 3, F, h·patch, w·patch), the inverse of `patchify`."""
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
        """Encode a clip, or with `stream` one chunk of it; shapes are those of the class."""
        x_bcfhw = self.conv_in(patchify(pixels_bcfhw, self.patch_size), stream)
        for block in self.down_blocks:
            x_bcfhw = block(x_bcfhw, stream)
        return self.conv_out(nn.functional.silu(pixel_norm(x_bcfhw, _NORM_EPS)), stream)


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
        """Decode a latent (shapes: see the class).

        With `stream`, decode the next chunk of it. The output then lacks the last frames, which need the next chunk;
        they follow with it, or after `TimeStream.release`.
        """
        x_bcfhw = self.conv_in(z_bcfhw, stream)
        for block in self.up_blocks:
            x_bcfhw = block(x_bcfhw, stream)
        patches_bcfhw = self.conv_out(nn.functional.silu(pixel_norm(x_bcfhw, _NORM_EPS)), stream)
        return unpatchify(patches_bcfhw, self.patch_size)


# ---------------------------------------------------------------------------------------------------------------------
# The VAE


class VideoVAE(VAE):
    """Video VAE: pixels (b, 3, F, H, W) in [−1, 1] ↔ latent (b, latent_channels, f, h, w).

    `model.tiling` runs the same weights over clips that are too long or too large for one pass.
    """

    statistics_shape = (1, -1, 1, 1, 1)

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.per_channel_statistics = LatentStatistics(config.latent_channels)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise for training from scratch. The rules are ours; none are published.

        - Convolutions: truncated normal of variance 2.8 / fan-in, because SiLU of a unit normal has a mean square of
          1/2.8 and PixelNorm precedes all but the first convolutions; bias 0.
        - The second convolution of each residual block is zero. Every block then starts as the identity and depth does
          not matter (Zhang et al. 2019, arXiv 1901.09321).
        - In the decoder, all pixels that depth-to-space makes of one position start with the same weights (see
          `repeat_rows_`). With independent weights their average hardly depends on the latent, and the decoder needs
          hundreds of steps to learn even a colour.
        - The first convolutions of encoder and decoder have unit normal biases. PixelNorm removes the magnitude of a
          vector of channels, which holds the brightness; with a bias, its direction depends on the brightness too.
        - The encoder's means have a variance of about 1; the shared log-variance is −4 everywhere (σ ≈ 0.14).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                init_convolution_(module, gain_squared=2.8)
            elif isinstance(module, LatentStatistics):
                module.reset()
        for module in self.modules():
            if isinstance(module, ResBlock3d):
                nn.init.zeros_(module.conv2.conv.weight)
            elif isinstance(module, Downsample):
                # The skip carries the signal; a smaller convolution keeps the variance of their sum.
                module.conv.conv.weight.mul_(0.5)
        for module in self.decoder.modules():
            if isinstance(module, Upsample):
                repeat_rows_(module.conv.conv.weight, math.prod(module.stride))
        repeat_rows_(self.decoder.conv_out.conv.weight, self.config.patch_size**2)
        for half in (self.encoder, self.decoder):
            assert half.conv_in.conv.bias is not None
            nn.init.normal_(half.conv_in.conv.bias)
        self.encoder.conv_out.conv.weight[-1].zero_()
        bias = self.encoder.conv_out.conv.bias
        assert bias is not None
        bias[-1] = -4.0
        self.decoder.conv_out.conv.weight.mul_(0.2)

    def encode_distribution(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels to the posterior of their un-normalised latent.

        Args:
            pixels: (b, 3, F, H, W) in [−1, 1].

        Returns:
            Mean (b, latent_channels, f, h, w), and the log-variance that all channels share (b, 1, f, h, w).

        Raises:
            ValueError: `pixels` has another shape, F is not 1 + 8k, or 32 does not divide H or W.
        """
        _check_dims("pixels", pixels, channels=3)
        check_pixel_size(*pixels.shape[2:])
        mean, log_variance = self.encoder(pixels).split([self.config.latent_channels, 1], dim=1)
        return mean, log_variance

    def decode_raw(self, z: Tensor) -> Tensor:
        """Decode an un-normalised latent.

        Args:
            z: (b, latent_channels, f, h, w).

        Returns:
            Pixels (b, 3, 1 + 8(f − 1), 32h, 32w), about in [−1, 1].

        Raises:
            ValueError: see `check_latent`.
        """
        self.check_latent(z)
        return self.decoder(z)

    def check_latent(self, z: Tensor) -> None:
        """Raise ValueError for a latent that the decoder cannot take: wrong shape, or too small to reflect."""
        _check_dims("latent", z, channels=self.config.latent_channels)
        if self.config.decoder_padding == "reflect":
            for name, size in (("height", z.shape[3]), ("width", z.shape[4])):
                if size < 2:
                    raise ValueError(
                        f"latent {name} = {size}: reflect padding needs at least 2 latents (64 pixels); "
                        f"the nearest valid value is 2"
                    )


def _check_dims(name: str, x: Tensor, *, channels: int) -> None:
    """Raise ValueError unless x is (batch, channels, frames, height, width); `name` is for the message."""
    if x.dim() != 5 or x.shape[1] != channels:
        raise ValueError(f"{name} have shape {tuple(x.shape)}; expected (batch, {channels}, frames, height, width)")
