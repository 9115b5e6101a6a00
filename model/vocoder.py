"""Vocoders of LTX-2: stereo log-mel → stereo waveform.

2.0  `Vocoder`: HiFi-GAN (Kong et al. 2020, arXiv 2010.05646), 100 mel frames/s × 240 = 24 kHz.
2.3  `VocoderWithBWE`: BigVGAN v2 (Lee et al. 2023, arXiv 2206.04658: SnakeBeta, anti-aliased activations) to 16 kHz,
     then a second generator that extends the bandwidth: its output is added to the 16 kHz wave resampled ×3 = 48 kHz.

One network makes both audio channels: the mels of left and right are stacked as 2 · bins channels. Source: LTX-2 (arXiv
2601.03233 §3); parameter names are those of the published single-file checkpoint below `vocoder.`, where weight
normalisation is folded into the weights.

Shapes (suffixes of the tensors below): b batch, s stereo (2), t mel frames, m mel bands, c channels, n samples.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from torch.nn import functional as F

from model.layers import TRUNCATED_STD, init_convolution_
from model.mel import slaney_filterbank


@dataclass(frozen=True)
class VocoderConfig:
    """Shape of one generator. The defaults are LTX-2 19B's HiFi-GAN.

    Attributes:
        mel_bins: mel bands per audio channel.
        channels: width of the first layer; each upsampling halves it.
        upsample_rates: factor of each upsampling.
        upsample_kernels: kernel of each upsampling.
        res_kernels: kernel of each residual block that follows an upsampling.
        res_dilations: dilations of each of those blocks.
        activation: "leaky_relu" (HiFi-GAN) or "snakebeta" (BigVGAN).
        final: function that limits the waveform to [−1, 1]; "none" for no limit.
        final_bias: give the last convolution a bias.
        sample_rate: of the output, in Hz.
    """

    mel_bins: int = 64
    channels: int = 1024
    upsample_rates: tuple[int, ...] = (6, 5, 2, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 15, 8, 4, 4)
    res_kernels: tuple[int, ...] = (3, 7, 11)
    res_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    activation: Literal["leaky_relu", "snakebeta"] = "leaky_relu"
    final: Literal["tanh", "clamp", "none"] = "tanh"
    final_bias: bool = True
    sample_rate: int = 24_000

    def __post_init__(self) -> None:
        # JSON gives lists; tuples keep the configuration hashable.
        for name in ("upsample_rates", "upsample_kernels", "res_kernels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "res_dilations", tuple(tuple(d) for d in self.res_dilations))
        if len(self.upsample_rates) != len(self.upsample_kernels):
            raise ValueError(
                f"upsample_kernels has {len(self.upsample_kernels)} entries; "
                f"upsample_rates has {len(self.upsample_rates)}, and each rate needs its kernel"
            )
        if len(self.res_kernels) != len(self.res_dilations):
            raise ValueError(
                f"res_dilations has {len(self.res_dilations)} entries; "
                f"res_kernels has {len(self.res_kernels)}, and each kernel needs its dilations"
            )
        halvings = 2 ** len(self.upsample_rates)
        if self.channels % halvings:
            nearest = halvings * max(1, round(self.channels / halvings))
            raise ValueError(
                f"channels = {self.channels} cannot be halved {len(self.upsample_rates)} times; "
                f"the nearest valid value is {nearest}"
            )

    @property
    def samples_per_frame(self) -> int:
        """Output samples per mel frame."""
        return math.prod(self.upsample_rates)


def _bigvgan() -> VocoderConfig:
    """Return the shape of the first generator of LTX-2.3: log-mel → 16 kHz."""
    return VocoderConfig(
        channels=1536,
        upsample_rates=(5, 2, 2, 2, 2, 2),
        upsample_kernels=(11, 4, 4, 4, 4, 4),
        activation="snakebeta",
        final="clamp",
        final_bias=False,
        sample_rate=16_000,
    )


def _bandwidth_extension() -> VocoderConfig:
    """Return the shape of the second generator of LTX-2.3: log-mel of the 16 kHz wave → what is missing at 48 kHz."""
    return VocoderConfig(
        channels=512,
        upsample_kernels=(12, 11, 4, 4, 4),
        activation="snakebeta",
        final="none",
        final_bias=False,
        sample_rate=48_000,
    )


@dataclass(frozen=True)
class VocoderWithBWEConfig:
    """Shape of the vocoder with bandwidth extension. The defaults are LTX-2.3 22B's.

    Attributes:
        vocoder: the first generator.
        bwe: the second generator, which extends the bandwidth.
        fft_length: FFT length of the mel between the two generators, in samples of the first one's output.
        hop_length: hop of the same mel, in the same samples.
    """

    vocoder: VocoderConfig = field(default_factory=_bigvgan)
    bwe: VocoderConfig = field(default_factory=_bandwidth_extension)
    fft_length: int = 512
    hop_length: int = 80

    def __post_init__(self) -> None:
        # JSON gives dicts in place of the nested dataclasses.
        for name in ("vocoder", "bwe"):
            value = getattr(self, name)
            if isinstance(value, dict):
                object.__setattr__(self, name, VocoderConfig(**value))
        if self.bwe.samples_per_frame * self.vocoder.sample_rate != self.hop_length * self.bwe.sample_rate:
            raise ValueError(
                f"bwe.upsample_rates make {self.bwe.samples_per_frame} samples per frame; from "
                f"{self.vocoder.sample_rate} Hz with hop_length {self.hop_length} to {self.bwe.sample_rate} Hz it "
                f"takes {self.hop_length * self.bwe.sample_rate / self.vocoder.sample_rate:g}"
            )

    @property
    def ratio(self) -> int:
        """Output sample rate divided by the first generator's sample rate."""
        return self.bwe.sample_rate // self.vocoder.sample_rate


# ---------------------------------------------------------------------------------------------------------------------
# HiFi-GAN


class ResBlock1d(nn.Module):
    """HiFi-GAN's residual block: per dilation (activation, dilated convolution, activation, convolution) and a skip."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, x_bcn: Tensor) -> Tensor:
        """(b, c, n) → (b, c, n)."""
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            x_bcn = x_bcn + conv2(F.leaky_relu(conv1(F.leaky_relu(x_bcn, 0.1)), 0.1))
        return x_bcn


# ---------------------------------------------------------------------------------------------------------------------
# BigVGAN: upsample ×2, apply the activation, filter and downsample, so that its harmonics do not alias


def kaiser_sinc_filter(cutoff: float, half_width: float, taps: int) -> Tensor:
    """Return a low-pass filter of unit gain with a Kaiser window (Kaiser & Schafer 1980).

    Args:
        cutoff: in cycles per sample.
        half_width: half the width of the transition, in cycles per sample.
        taps: length of the filter.

    Returns:
        (1, 1, taps) float32, on the CPU.
    """
    # Kaiser's estimate of β from the attenuation in the stop band, in dB.
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    window = torch.kaiser_window(taps, periodic=False, beta=beta, device="cpu", dtype=torch.float32)
    time = torch.arange(taps, device="cpu", dtype=torch.float32) - (taps - 1) / 2
    kernel = window * torch.sinc(2 * cutoff * time)
    return (kernel / kernel.sum()).view(1, 1, taps)


def _resampling_filter(ratio: int) -> Tensor:
    """Return the low-pass filter (1, 1, 6 · ratio) with which BigVGAN's activations resample by `ratio`."""
    return kaiser_sinc_filter(0.5 / ratio, 0.6 / ratio, 6 * ratio)


def hann_sinc_filter(ratio: int, *, rolloff: float = 0.99, zeros: int = 6) -> Tensor:
    """Return a Hann-windowed sinc that resamples by an integer ratio (Smith, Digital Audio Resampling, 2002).

    Args:
        ratio: higher rate / lower rate.
        rolloff: cutoff as a share of the lower rate's Nyquist frequency.
        zeros: zero crossings on each side.

    Returns:
        (1, 1, taps), on the CPU.
    """
    width = math.ceil(zeros / rolloff)
    time = (torch.arange(2 * width * ratio + 1, device="cpu") / ratio - width) * rolloff
    window = torch.cos(time.clamp(-zeros, zeros) * math.pi / zeros / 2).square()
    return (torch.sinc(time) * window * rolloff / ratio).view(1, 1, -1)


class UpSample1d(nn.Module):
    """Upsample each channel by an integer ratio with a sinc filter: n samples become ratio · n.

    Args:
        ratio: factor.
        window: "kaiser" inside BigVGAN's activations, where the checkpoint holds the filter; "hann" in the resampler,
            where it does not.
    """

    def __init__(self, ratio: int, window: Literal["kaiser", "hann"]) -> None:
        super().__init__()
        self.ratio = ratio
        self.window = window
        taps = self._filter().numel()
        if window == "kaiser":
            self.pad = taps // ratio - 1
            self.left = self.pad * ratio + (taps - ratio) // 2
            self.right = self.pad * ratio + (taps - ratio + 1) // 2
        else:
            self.pad = taps // (2 * ratio)
            self.left = 2 * self.pad * ratio
            self.right = taps - ratio
        self.register_buffer("filter", torch.empty(1, 1, taps), persistent=window == "kaiser")

    def _filter(self) -> Tensor:
        """Return the filter (1, 1, taps) of the chosen window."""
        if self.window == "hann":
            return hann_sinc_filter(self.ratio)
        return _resampling_filter(self.ratio)

    def reset(self) -> None:
        """Fill the buffer `filter`. Call it after `to_empty`, which leaves it undefined."""
        self.get_buffer("filter").copy_(self._filter())

    def forward(self, x_bcn: Tensor) -> Tensor:
        """(b, c, n) → (b, c, ratio · n)."""
        channels = x_bcn.shape[1]
        kernel = self.get_buffer("filter").to(x_bcn).expand(channels, -1, -1)
        x_bcn = F.pad(x_bcn, (self.pad, self.pad), mode="replicate")
        x_bcn = self.ratio * F.conv_transpose1d(x_bcn, kernel, stride=self.ratio, groups=channels)
        return x_bcn[..., self.left : -self.right]


class LowPass1d(nn.Module):
    """Low-pass filter that keeps every `ratio`-th sample."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.taps = 6 * ratio
        self.register_buffer("filter", torch.empty(1, 1, self.taps))

    def reset(self) -> None:
        """Fill the buffer `filter`. Call it after `to_empty`, which leaves it undefined."""
        self.get_buffer("filter").copy_(_resampling_filter(self.ratio))

    def forward(self, x_bcn: Tensor) -> Tensor:
        """(b, c, n) → (b, c, n / ratio)."""
        channels = x_bcn.shape[1]
        even = 1 - self.taps % 2
        x_bcn = F.pad(x_bcn, (self.taps // 2 - even, self.taps // 2), mode="replicate")
        kernel = self.get_buffer("filter").to(x_bcn).expand(channels, -1, -1)
        return F.conv1d(x_bcn, kernel, stride=self.ratio, groups=channels)


class DownSample1d(nn.Module):
    """`LowPass1d` as the submodule `lowpass`: the published keys nest it one level deeper than in `UpSample1d`."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.lowpass = LowPass1d(ratio)

    def forward(self, x_bcn: Tensor) -> Tensor:
        """(b, c, n) → (b, c, n / ratio)."""
        return self.lowpass(x_bcn)


class SnakeBeta(nn.Module):
    """x + sin²(αx) / β with α and β learned per channel, stored as logarithms (Ziyin et al. 2020, arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def reset(self) -> None:
        """Set α and β to 1."""
        nn.init.zeros_(self.alpha)
        nn.init.zeros_(self.beta)

    def forward(self, x_bcn: Tensor) -> Tensor:
        """(b, c, n) → (b, c, n)."""
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return x_bcn + torch.sin(x_bcn * alpha).square() / (beta + 1e-9)


class AntiAliasedSnake(nn.Module):
    """SnakeBeta at twice the rate (BigVGAN §3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample = UpSample1d(2, "kaiser")
        self.downsample = DownSample1d(2)

    def forward(self, x_bcn: Tensor) -> Tensor:
        """(b, c, n) → (b, c, n)."""
        return self.downsample(self.act(self.upsample(x_bcn)))


class AMPBlock(ResBlock1d):
    """BigVGAN's residual block: HiFi-GAN's convolutions, with an anti-aliased Snake before each of them."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__(channels, kernel, dilations)
        self.acts1 = nn.ModuleList(AntiAliasedSnake(channels) for _ in dilations)
        self.acts2 = nn.ModuleList(AntiAliasedSnake(channels) for _ in dilations)

    def forward(self, x_bcn: Tensor) -> Tensor:
        """(b, c, n) → (b, c, n)."""
        for conv1, conv2, act1, act2 in zip(self.convs1, self.convs2, self.acts1, self.acts2, strict=True):
            x_bcn = x_bcn + conv2(act2(conv1(act1(x_bcn))))
        return x_bcn


# ---------------------------------------------------------------------------------------------------------------------
# Generators


class Vocoder(nn.Module):
    """One generator: log-mel (b, 2, t, mel_bins) → waveform (b, 2, t · samples_per_frame), limited by `final`."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        snake = config.activation == "snakebeta"
        block = AMPBlock if snake else ResBlock1d
        width = config.channels
        self.conv_pre = nn.Conv1d(2 * config.mel_bins, width, 7, padding=3)
        ups: list[nn.Module] = []
        resblocks: list[nn.Module] = []
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
            ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2))
            width //= 2
            resblocks += [block(width, k, d) for k, d in zip(config.res_kernels, config.res_dilations, strict=True)]
        self.ups = nn.ModuleList(ups)
        self.resblocks = nn.ModuleList(resblocks)
        self.act_post = AntiAliasedSnake(width) if snake else nn.LeakyReLU(0.01)
        self.conv_post = nn.Conv1d(width, 2, 7, padding=3, bias=config.final_bias)
        self.init_weights()

    @property
    def sample_rate(self) -> int:
        """Sample rate of the output, in Hz."""
        return self.config.sample_rate

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise for training from scratch.

        The rules are ours: HiFi-GAN's rule (σ = 0.01 under weight normalisation) needs parameters that the published
        layout does not have. Truncated normals keep the variance at any width, the second convolution of each
        residual pair is zero, the first convolution scales log-mels (about −6 ± 4) to a variance of about 1, and the
        output is a quiet waveform (about 0.05).
        """
        gain_squared = 0.8 if self.config.activation == "snakebeta" else 1.98  # 1 / E[act(x)²] for a unit normal
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                init_convolution_(module, gain_squared=gain_squared)
            elif isinstance(module, SnakeBeta | UpSample1d | LowPass1d):
                module.reset()
        init_convolution_(self.conv_pre, gain_squared=1 / 50)
        for up, rate in zip(self.ups, self.config.upsample_rates, strict=True):
            assert isinstance(up, nn.ConvTranspose1d)
            fan_in = up.in_channels * up.kernel_size[0] / rate
            std = math.sqrt(1.98 / fan_in) if self.config.activation == "leaky_relu" else math.sqrt(1 / fan_in)
            nn.init.trunc_normal_(up.weight, std=std / TRUNCATED_STD, a=-2 * std, b=2 * std)
            assert up.bias is not None
            nn.init.zeros_(up.bias)
        for block in self.resblocks:
            assert isinstance(block, ResBlock1d)
            for conv in block.convs2:
                assert isinstance(conv, nn.Conv1d)
                nn.init.zeros_(conv.weight)
        self.conv_post.weight.mul_(0.05)

    def forward(self, mel_bstm: Tensor) -> Tensor:
        """Synthesise a waveform.

        Args:
            mel_bstm: (b, 2, t, mel_bins) natural-log mel, t ≥ 1.

        Returns:
            (b, 2, t · samples_per_frame).

        Raises:
            ValueError: `mel_bstm` has another shape.
        """
        _check_mel(mel_bstm, self.config.mel_bins)
        x_bcn = self.conv_pre(mel_bstm.transpose(2, 3).flatten(1, 2))
        kernels = len(self.config.res_kernels)
        for i, up in enumerate(self.ups):
            if self.config.activation == "leaky_relu":
                x_bcn = F.leaky_relu(x_bcn, 0.1)
            x_bcn = up(x_bcn)
            blocks = self.resblocks[i * kernels : (i + 1) * kernels]
            x_bcn = torch.stack([block(x_bcn) for block in blocks]).mean(dim=0)
        wave_bsn = self.conv_post(self.act_post(x_bcn))
        if self.config.final == "tanh":
            return wave_bsn.tanh()
        return wave_bsn.clamp(-1, 1) if self.config.final == "clamp" else wave_bsn


class CausalSTFT(nn.Module):
    """Short-time Fourier transform as a convolution: Hann-windowed DFT rows, the real ones, then the imaginary ones.

    The bases are buffers because the checkpoint holds them, rounded as they were in training. Nothing reads the inverse
    basis; it exists because the published layout has it.
    """

    def __init__(self, fft_length: int, hop_length: int) -> None:
        super().__init__()
        self.fft_length = fft_length
        self.hop_length = hop_length
        rows = 2 * (fft_length // 2 + 1)
        self.register_buffer("forward_basis", torch.empty(rows, 1, fft_length))
        self.register_buffer("inverse_basis", torch.empty(rows, 1, fft_length))

    def reset(self) -> None:
        """Fill the forward basis, computed in float64 and rounded; set the inverse basis to zero."""
        n = self.fft_length
        time = torch.arange(n, dtype=torch.float64, device="cpu")
        phase = 2 * math.pi / n * torch.outer(torch.arange(n // 2 + 1, dtype=torch.float64, device="cpu"), time)
        window = torch.hann_window(n, dtype=torch.float64, device="cpu")
        basis = torch.cat([phase.cos(), -phase.sin()]) * window
        self.get_buffer("forward_basis").copy_(basis[:, None])
        self.get_buffer("inverse_basis").zero_()

    def forward(self, wave_bn: Tensor) -> Tensor:
        """Waveform (b, n) → magnitudes (b, fft_length // 2 + 1, n / hop_length); pads the past side only."""
        padded = F.pad(wave_bn[:, None], (self.fft_length - self.hop_length, 0))
        spectrum = F.conv1d(padded, self.get_buffer("forward_basis"), stride=self.hop_length)
        real, imaginary = spectrum.chunk(2, dim=1)
        # The slope of the square root is infinite at silence; this floor is far below the mel's.
        return (real.square() + imaginary.square()).clamp(min=1e-14).sqrt()


class MelSTFT(nn.Module):
    """Causal log-mel of the first generator's waveform."""

    def __init__(self, sample_rate: int, fft_length: int, hop_length: int, bins: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.bins = bins
        self.stft_fn = CausalSTFT(fft_length, hop_length)
        self.register_buffer("mel_basis", torch.empty(bins, fft_length // 2 + 1))

    def reset(self) -> None:
        """Fill the bases of the Fourier transform and the filterbank."""
        self.stft_fn.reset()
        bank = slaney_filterbank(self.sample_rate, self.stft_fn.fft_length, self.bins)
        self.get_buffer("mel_basis").copy_(bank.T)

    def forward(self, wave_bn: Tensor) -> Tensor:
        """Waveform (b, n) → natural-log mel (b, bins, n / hop_length)."""
        return (self.get_buffer("mel_basis") @ self.stft_fn(wave_bn)).clamp(min=1e-5).log()


class VocoderWithBWE(nn.Module):
    """Two generators: log-mel (b, 2, t, mel_bins) → waveform (b, 2, t · 480) at 48 kHz in [−1, 1].

    It runs in float32 only, also under autocast: SnakeBeta's sine of large arguments is noise in half precision.
    """

    def __init__(self, config: VocoderWithBWEConfig) -> None:
        super().__init__()
        self.config = config
        self.vocoder = Vocoder(config.vocoder)
        self.bwe_generator = Vocoder(config.bwe)
        self.mel_stft = MelSTFT(config.vocoder.sample_rate, config.fft_length, config.hop_length, config.bwe.mel_bins)
        self.resampler = UpSample1d(config.ratio, "hann")
        self.init_weights()

    @property
    def sample_rate(self) -> int:
        """Sample rate of the output, in Hz."""
        return self.config.bwe.sample_rate

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise both generators as `Vocoder.init_weights` does; fill the buffers of filters and bases."""
        self.vocoder.init_weights()
        self.bwe_generator.init_weights()
        self.mel_stft.reset()
        self.resampler.reset()

    def forward(self, mel_bstm: Tensor) -> Tensor:
        """Synthesise a waveform.

        Args:
            mel_bstm: (b, 2, t, mel_bins) natural-log mel, t ≥ 1.

        Returns:
            (b, 2, t · 480) float32.

        Raises:
            ValueError: `mel_bstm` has another shape, or the weights are not float32.
        """
        if self.vocoder.conv_pre.weight.dtype != torch.float32:
            dtype = str(self.vocoder.conv_pre.weight.dtype).removeprefix("torch.")
            raise ValueError(
                f"the 48 kHz vocoder runs in float32 only and its weights are {dtype}: call .float() on it"
            )
        device = mel_bstm.device.type
        # The meta device, on which FLOPs are counted, has no autocast.
        full = torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext()
        with full:
            wave_bsn = self.vocoder(mel_bstm.float())
            b, s, n = wave_bsn.shape
            # Pad to complete hops, so that the second generator's frames cover the waveform exactly.
            wave_bsn = F.pad(wave_bsn, (0, -n % self.config.hop_length))
            mel_bsmt = self.mel_stft(wave_bsn.flatten(0, 1)).unflatten(0, (b, s))
            extension_bsn = self.bwe_generator(mel_bsmt.transpose(2, 3))
            wave_bsn = (extension_bsn + self.resampler(wave_bsn)).clamp(-1, 1)
            return wave_bsn[..., : n * self.config.ratio]


def _check_mel(mel_bstm: Tensor, bins: int) -> None:
    """Raise ValueError unless the mel is (batch, 2, time ≥ 1, bins)."""
    if mel_bstm.dim() != 4 or mel_bstm.shape[1] != 2 or mel_bstm.shape[3] != bins or mel_bstm.shape[2] < 1:
        raise ValueError(f"mel has shape {tuple(mel_bstm.shape)}; expected (batch, 2, time ≥ 1, {bins})")
