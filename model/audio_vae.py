"""Audio VAE of LTX-2: causal 2-D convolutions over a stereo log-mel spectrogram, 4× in time and in frequency.

Source: LTX-2 (arXiv 2601.03233 §3); parameter names are those of the published single-file checkpoint below
`audio_vae.`.

Shapes (suffixes of the tensors below)
    b  batch     c  channels of the layer (2 = stereo at the mel end)
    t  time      100 mel frames/s, 25 latent frames/s: t_latent = ceil(t / 4), decoded t = 4·t_latent − 3
    m  bins      64 mel bands, 16 in the latent
A latent is (b, 8, t, 16); a transformer token is its 128-wide slice at one time, channel-major. The statistics of the
training set are kept per entry of that token.

Causal in time: convolutions are padded with zeros on the past side only, so a mel frame never depends on later ones.
Frequency is padded on both sides.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.video_vae import LatentStatistics, pixel_norm, trunc_normal_fan_in

TIME_STRIDE = 4
BIN_STRIDE = 4
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class AudioVAEConfig:
    """Shape of the audio VAE. The defaults are LTX-2's, the same in 2.0 and 2.3.

    The published classes keep their statistics at `base_channels`; so only where `base_channels` equals the token
    width `latent_channels · mel_bins / 4` can a model be exported to them.
    """

    mel_channels: int = 2
    mel_bins: int = 64
    latent_channels: int = 8
    base_channels: int = 128
    channel_multipliers: tuple[int, int, int] = (1, 2, 4)
    res_blocks: int = 2

    def __post_init__(self) -> None:
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
        return self.mel_bins // BIN_STRIDE

    @property
    def token_width(self) -> int:
        """Width of one audio token: latent channels × latent bins."""
        return self.latent_channels * self.latent_bins


def latent_frames(mel_frames: int) -> int:
    """Latent frames of `mel_frames` mel frames: the ceiling of a quarter."""
    return -(-mel_frames // TIME_STRIDE)


class CausalConv2d(nn.Module):
    """Convolution of stride 1 that keeps the size: zeros before the first time step, and on both sides in frequency."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.padding = (kernel_size // 2, kernel_size // 2, kernel_size - 1, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x_bctm: Tensor) -> Tensor:
        return self.conv(F.pad(x_bctm, self.padding))


class ResBlock2d(nn.Module):
    """Pre-activation residual block: (PixelNorm, SiLU, conv) twice, and a 1×1 skip where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = CausalConv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x_bctm: Tensor) -> Tensor:
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
        return self.conv(F.pad(x_bctm, (0, 1, 2, 0)))


class Upsample(nn.Module):
    """Nearest neighbours and a convolution; t steps become 2t − 1, because the first stands for itself alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv2d(channels, channels)

    def forward(self, x_bctm: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_bctm, scale_factor=2.0, mode="nearest"))[:, :, 1:]


class Mid(nn.Module):
    """Two residual blocks at the latent's resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock2d(channels, channels)
        self.block_2 = ResBlock2d(channels, channels)

    def forward(self, x_bctm: Tensor) -> Tensor:
        return self.block_2(self.block_1(x_bctm))


class DownLevel(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, res_blocks: int, *, downsample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * res_blocks
        self.block = nn.ModuleList(ResBlock2d(i, o) for i, o in itertools.pairwise(widths))
        if downsample:
            self.downsample = Downsample(out_channels)

    def forward(self, x_bctm: Tensor) -> Tensor:
        for block in self.block:
            x_bctm = block(x_bctm)
        return self.downsample(x_bctm) if hasattr(self, "downsample") else x_bctm


class UpLevel(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, res_blocks: int, *, upsample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (res_blocks + 1)
        self.block = nn.ModuleList(ResBlock2d(i, o) for i, o in itertools.pairwise(widths))
        if upsample:
            self.upsample = Upsample(out_channels)

    def forward(self, x_bctm: Tensor) -> Tensor:
        for block in self.block:
            x_bctm = block(x_bctm)
        return self.upsample(x_bctm) if hasattr(self, "upsample") else x_bctm


class Encoder(nn.Module):
    """(b, 2, t, 64) log-mel → (b, 2 · latent_channels, ceil(t / 4), 16): means, then log-variances."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.conv_in = CausalConv2d(config.mel_channels, config.base_channels)
        self.down = nn.ModuleList(
            DownLevel(i, o, config.res_blocks, downsample=level < len(widths) - 1)
            for level, (i, o) in enumerate(zip([config.base_channels, *widths[:-1]], widths, strict=True))
        )
        self.mid = Mid(widths[-1])
        self.conv_out = CausalConv2d(widths[-1], 2 * config.latent_channels)

    def forward(self, mel_bctm: Tensor) -> Tensor:
        x = self.conv_in(mel_bctm)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(pixel_norm(self.mid(x), _NORM_EPS)))


class Decoder(nn.Module):
    """(b, latent_channels, t, 16) un-normalised latent → (b, 2, 4t − 3, 64) log-mel."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.conv_in = CausalConv2d(config.latent_channels, widths[-1])
        self.mid = Mid(widths[-1])
        # Indexed by resolution as published (0 = finest), run from the last to the first.
        self.up = nn.ModuleList(
            UpLevel(i, o, config.res_blocks, upsample=level > 0)
            for level, (i, o) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.conv_out = CausalConv2d(widths[0], config.mel_channels)

    def forward(self, z_bctm: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z_bctm))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(pixel_norm(x, _NORM_EPS)))


class AudioVAE(nn.Module):
    """Encoder, decoder and latent statistics. `encode`, `decode` are normalised; `*_distribution`, `*_raw` are not."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.per_channel_statistics = LatentStatistics(config.token_width)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise for training from scratch (ours: nothing is published upstream).

        As in `model.video_vae`: truncated normals that keep the variance through SiLU, biases 0, and zero second
        convolutions, so that each residual block starts as the identity (1×1 skips and strided convolutions keep
        the variance of their un-activated input). Log-variances start at −4 (σ ≈ 0.14). The decoder starts within
        about ±0.1 of a log-mel of −6, the middle of its range (−11.5 to 0 and a little more).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                trunc_normal_fan_in(module, gain_squared=2.8)
            elif isinstance(module, LatentStatistics):
                module.reset()
        for module in self.modules():
            if isinstance(module, ResBlock2d):
                nn.init.zeros_(module.conv2.conv.weight)
                if hasattr(module, "nin_shortcut"):
                    trunc_normal_fan_in(module.nin_shortcut.conv, gain_squared=1.0)
            elif isinstance(module, Downsample):
                trunc_normal_fan_in(module.conv, gain_squared=1.0)
            elif isinstance(module, Upsample):
                trunc_normal_fan_in(module.conv.conv, gain_squared=1.0)
        c = self.config.latent_channels
        self.encoder.conv_out.conv.weight[c:].zero_()
        encoder_bias, decoder_bias = self.encoder.conv_out.conv.bias, self.decoder.conv_out.conv.bias
        assert encoder_bias is not None
        assert decoder_bias is not None
        encoder_bias[c:].fill_(-4.0)
        self.decoder.conv_out.conv.weight.mul_(0.1)
        decoder_bias.fill_(-6.0)

    # Training

    def encode_distribution(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of (B, 2, T, 64) log-mel: un-normalised mean and log-variance, each (B, 8, ceil(T/4), 16)."""
        self._check("mel", mel, (self.config.mel_channels, self.config.mel_bins))
        mean, log_variance = self.encoder(mel).chunk(2, dim=1)
        return mean, log_variance

    def decode_raw(self, z: Tensor) -> Tensor:
        """Log-mel (B, 2, 4t − 3, 64) of an un-normalised latent (B, 8, t, 16)."""
        self._check("latent", z, (self.config.latent_channels, self.config.latent_bins))
        return self.decoder(z)

    # Use

    def encode(self, mel: Tensor) -> Tensor:
        """Normalised mean (B, 8, ceil(T/4), 16) of log-mel (B, 2, T, 64); ValueError for another shape."""
        return self.normalize(self.encode_distribution(mel)[0])

    def decode(self, latent: Tensor) -> Tensor:
        """Log-mel (B, 2, 4t − 3, 64) of a normalised latent (B, 8, t, 16); ValueError for another shape."""
        return self.decode_raw(self.denormalize(latent))

    def normalize(self, z: Tensor) -> Tensor:
        mean, std = self._statistics(z)
        return (z - mean) / std

    def denormalize(self, latent: Tensor) -> Tensor:
        mean, std = self._statistics(latent)
        return latent * std + mean

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and standard deviation, each (128,): entry channel · 16 + bin of the un-normalised token."""
        self.per_channel_statistics.set(mean, std)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        statistics = self.per_channel_statistics
        shape = (1, self.config.latent_channels, 1, self.config.latent_bins)
        return statistics.mean.to(like).view(shape), statistics.std.to(like).view(shape)

    def _check(self, name: str, x: Tensor, sizes: tuple[int, int]) -> None:
        channels, bins = sizes
        if x.dim() != 4 or (x.shape[1], x.shape[3]) != sizes or x.shape[2] < 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (batch, {channels}, time ≥ 1, {bins})")
