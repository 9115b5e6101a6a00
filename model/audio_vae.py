"""Audio VAE of LTX-2: causal 2-D convolutions over a stereo log-mel spectrogram, 4× in time and in frequency.

Source: LTX-2 (arXiv 2601.03233 §3); parameter names are those of the published single-file checkpoint below
`audio_vae.`.

Shapes (suffixes of the tensors below)
    b  batch     c  channels of the layer (2 for the mel: stereo)
    t  time      100 mel frames/s, 25 latent frames/s: t_latent = ceil(t / 4), decoded t = 4·t_latent − 3
    m  bins      64 mel bands, 16 in the latent
A latent is (b, 8, t, 16); a transformer token is its 128-wide slice at one time, channel-major. The latent statistics
have one entry for each of the 128.

Convolutions are causal in time: they pad zeros on the past side only, so a mel frame never depends on later ones. They
pad frequency on both sides.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers import init_convolution_
from model.vae import VAE, LatentStatistics, pixel_norm

TIME_STRIDE = 4
BIN_STRIDE = 4
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class AudioVAEConfig:
    """Shape of the audio VAE. The defaults are LTX-2's, the same in 2.0 and 2.3.

    The published classes give their statistics `base_channels` entries, so a model can be exported to them only where
    `base_channels` equals the token width `latent_channels · mel_bins / 4`.

    Attributes:
        mel_channels: channels of the mel (2: stereo).
        mel_bins: mel bands, a multiple of 4.
        latent_channels: channels of the latent.
        base_channels: width of the first layer.
        channel_multipliers: width of each of the three levels, as a multiple of `base_channels`.
        res_blocks: residual blocks per level of the encoder; the decoder has one more.
    """

    mel_channels: int = 2
    mel_bins: int = 64
    latent_channels: int = 8
    base_channels: int = 128
    channel_multipliers: tuple[int, int, int] = (1, 2, 4)
    res_blocks: int = 2

    def __post_init__(self) -> None:
        # JSON gives lists; tuples keep the configuration hashable.
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        if len(self.channel_multipliers) != 3:
            raise ValueError(
                f"channel_multipliers has {len(self.channel_multipliers)} entries; a 4× compression in time needs 3"
            )
        if self.mel_bins % BIN_STRIDE:
            nearest = BIN_STRIDE * max(1, round(self.mel_bins / BIN_STRIDE))
            raise ValueError(f"mel_bins = {self.mel_bins} is not a multiple of 4; the nearest valid value is {nearest}")

    @property
    def latent_bins(self) -> int:
        """Frequency bins of the latent."""
        return self.mel_bins // BIN_STRIDE

    @property
    def token_width(self) -> int:
        """Width of one audio token: latent channels × latent bins."""
        return self.latent_channels * self.latent_bins


def latent_frames(mel_frames: int) -> int:
    """Return the number of latent frames of `mel_frames` mel frames: a quarter, rounded up."""
    return -(-mel_frames // TIME_STRIDE)


class CausalConv2d(nn.Module):
    """Convolution of stride 1 that keeps the size: zeros before the first time step and on both sides in frequency."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.padding = (kernel_size // 2, kernel_size // 2, kernel_size - 1, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x_bctm: Tensor) -> Tensor:
        """(b, in_channels, t, m) → (b, out_channels, t, m)."""
        return self.conv(F.pad(x_bctm, self.padding))


class ResBlock2d(nn.Module):
    """Pre-activation residual block: (PixelNorm, SiLU, convolution) twice; a 1×1 skip where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = CausalConv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x_bctm: Tensor) -> Tensor:
        """(b, in_channels, t, m) → (b, out_channels, t, m)."""
        h_bctm = self.conv1(F.silu(pixel_norm(x_bctm, _NORM_EPS)))
        h_bctm = self.conv2(F.silu(pixel_norm(h_bctm, _NORM_EPS)))
        if hasattr(self, "nin_shortcut"):
            x_bctm = self.nin_shortcut(x_bctm)
        return x_bctm + h_bctm


class Downsample(nn.Module):
    """Strided convolution that halves time (rounding up) and frequency."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_bctm: Tensor) -> Tensor:
        """(b, c, t, m) → (b, c, ceil(t / 2), m / 2)."""
        return self.conv(F.pad(x_bctm, (0, 1, 2, 0)))


class Upsample(nn.Module):
    """Nearest-neighbour interpolation and a convolution. Drops the first frame, so that t frames become 2t − 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv2d(channels, channels)

    def forward(self, x_bctm: Tensor) -> Tensor:
        """(b, c, t, m) → (b, c, 2t − 1, 2m)."""
        return self.conv(F.interpolate(x_bctm, scale_factor=2.0, mode="nearest"))[:, :, 1:]


class Mid(nn.Module):
    """Two residual blocks at the resolution of the latent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock2d(channels, channels)
        self.block_2 = ResBlock2d(channels, channels)

    def forward(self, x_bctm: Tensor) -> Tensor:
        """(b, c, t, m) → (b, c, t, m)."""
        return self.block_2(self.block_1(x_bctm))


class Level(nn.Module):
    """Residual blocks at one resolution, and the layer that changes the resolution after them, if there is one.

    Args:
        in_channels: width of the input.
        out_channels: width of every block.
        res_blocks: number of residual blocks.
        downsample: halve time and frequency after the blocks.
        upsample: double time and frequency after the blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        res_blocks: int,
        *,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * res_blocks
        self.block = nn.ModuleList(ResBlock2d(i, o) for i, o in itertools.pairwise(widths))
        if downsample:
            self.downsample = Downsample(out_channels)
        if upsample:
            self.upsample = Upsample(out_channels)

    def forward(self, x_bctm: Tensor) -> Tensor:
        """(b, in_channels, t, m) → (b, out_channels, t, m), halved or doubled in t and m."""
        for block in self.block:
            x_bctm = block(x_bctm)
        if hasattr(self, "downsample"):
            x_bctm = self.downsample(x_bctm)
        return self.upsample(x_bctm) if hasattr(self, "upsample") else x_bctm


class Encoder(nn.Module):
    """(b, 2, t, 64) log-mel → (b, 2 · latent_channels, ceil(t / 4), 16): means, then log-variances."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.conv_in = CausalConv2d(config.mel_channels, config.base_channels)
        self.down = nn.ModuleList(
            Level(i, o, config.res_blocks, downsample=level < len(widths) - 1)
            for level, (i, o) in enumerate(zip([config.base_channels, *widths[:-1]], widths, strict=True))
        )
        self.mid = Mid(widths[-1])
        self.conv_out = CausalConv2d(widths[-1], 2 * config.latent_channels)

    def forward(self, mel_bctm: Tensor) -> Tensor:
        """Encode a log-mel; shapes are those of the class."""
        x_bctm = self.conv_in(mel_bctm)
        for level in self.down:
            x_bctm = level(x_bctm)
        return self.conv_out(F.silu(pixel_norm(self.mid(x_bctm), _NORM_EPS)))


class Decoder(nn.Module):
    """(b, latent_channels, t, 16) un-normalised latent → (b, 2, 4t − 3, 64) log-mel."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.conv_in = CausalConv2d(config.latent_channels, widths[-1])
        self.mid = Mid(widths[-1])
        # The published index is that of the resolution (0 = finest), so `forward` runs from the last to the first.
        self.up = nn.ModuleList(
            Level(i, o, config.res_blocks + 1, upsample=level > 0)
            for level, (i, o) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.conv_out = CausalConv2d(widths[0], config.mel_channels)

    def forward(self, z_bctm: Tensor) -> Tensor:
        """Decode an un-normalised latent; shapes are those of the class."""
        x_bctm = self.mid(self.conv_in(z_bctm))
        for level in reversed(self.up):
            x_bctm = level(x_bctm)
        return self.conv_out(F.silu(pixel_norm(x_bctm, _NORM_EPS)))


class AudioVAE(VAE):
    """Audio VAE: log-mel (b, 2, t, 64) ↔ latent (b, 8, ceil(t / 4), 16).

    Statistics are (128,): entry channel · 16 + bin of the un-normalised token.
    """

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.statistics_shape = (1, config.latent_channels, 1, config.latent_bins)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.per_channel_statistics = LatentStatistics(config.token_width)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise for training from scratch. The rules are ours; none are published.

        As in `model.video_vae`, truncated normals keep the variance through SiLU, biases are 0, and the second
        convolution of each residual block is zero, so that the block starts as the identity. 1×1 skips and strided
        convolutions keep the variance of their input, to which no activation is applied. Log-variances start at −4
        (σ ≈ 0.14). The decoder starts within about ±0.1 of a log-mel of −6, the middle of its range (−11.5 to slightly
        above 0).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_convolution_(module, gain_squared=2.8)
            elif isinstance(module, LatentStatistics):
                module.reset()
        for module in self.modules():
            if isinstance(module, ResBlock2d):
                nn.init.zeros_(module.conv2.conv.weight)
                if hasattr(module, "nin_shortcut"):
                    init_convolution_(module.nin_shortcut.conv, gain_squared=1.0)
            elif isinstance(module, Downsample):
                init_convolution_(module.conv, gain_squared=1.0)
            elif isinstance(module, Upsample):
                init_convolution_(module.conv.conv, gain_squared=1.0)
        c = self.config.latent_channels
        self.encoder.conv_out.conv.weight[c:].zero_()
        encoder_bias, decoder_bias = self.encoder.conv_out.conv.bias, self.decoder.conv_out.conv.bias
        assert encoder_bias is not None
        assert decoder_bias is not None
        encoder_bias[c:].fill_(-4.0)
        self.decoder.conv_out.conv.weight.mul_(0.1)
        decoder_bias.fill_(-6.0)

    def encode_distribution(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a log-mel to the posterior of its un-normalised latent.

        Args:
            mel: (b, 2, t, 64) natural-log mel.

        Returns:
            Mean and log-variance, each (b, 8, ceil(t / 4), 16).

        Raises:
            ValueError: `mel` has another shape.
        """
        self._check("mel", mel, (self.config.mel_channels, self.config.mel_bins))
        mean, log_variance = self.encoder(mel).chunk(2, dim=1)
        return mean, log_variance

    def decode_raw(self, z: Tensor) -> Tensor:
        """Decode an un-normalised latent.

        Args:
            z: (b, 8, t, 16).

        Returns:
            Log-mel (b, 2, 4t − 3, 64).

        Raises:
            ValueError: `z` has another shape.
        """
        self._check("latent", z, (self.config.latent_channels, self.config.latent_bins))
        return self.decoder(z)

    def _check(self, name: str, x: Tensor, sizes: tuple[int, int]) -> None:
        """Raise ValueError unless x is (batch, channels, time ≥ 1, bins) with `sizes` = (channels, bins)."""
        channels, bins = sizes
        if x.dim() != 4 or (x.shape[1], x.shape[3]) != sizes or x.shape[2] < 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (batch, {channels}, time ≥ 1, {bins})")
