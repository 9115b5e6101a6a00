"""Discriminators and adversarial losses that train the VAEs and the vocoder.

LTX-2 publishes none, so these are the standard ones of the field:

- `PatchDiscriminator`: PatchGAN (Isola et al. 2017, arXiv 1611.07004 §3.2) on video (3-D) or mels (2-D), as VQGAN
  (Esser et al. 2021, arXiv 2012.09841 §3.1) uses it for autoencoders; one logit per patch.
- `MultiPeriodDiscriminator` and `MultiScaleDiscriminator`: HiFi-GAN (Kong et al. 2020, arXiv 2010.05646 §2.3); the
  first folds the waveform at prime periods, the second averages it to lower rates (MelGAN, Kumar et al. 2019, arXiv
  1910.06711).
- Losses: hinge (Lim & Ye 2017, arXiv 1705.02894) for the VAEs, least squares (Mao et al. 2017, arXiv 1611.04076) for
  the vocoder, feature matching (Larsen et al. 2016, arXiv 1512.09300; MelGAN §2.2) for all.

Every discriminator returns a list of `Judgement`, one per sub-discriminator; every loss takes such lists and sums over
them, as HiFi-GAN does (eq. 5, 6), so that HiFi-GAN's loss weights apply. A loss has one value per sample.

Shapes (suffixes of the tensors below): b batch, c channels, n samples; F, H, W frames, height, width of a video; T mel
frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Judgement(NamedTuple):
    """Output of one sub-discriminator.

    Attributes:
        logits: (b, …), high for real.
        features: activations of the hidden layers, (b, …) each.
    """

    logits: Tensor
    features: list[Tensor]


def _run(layers: nn.ModuleList, head: nn.Module, x: Tensor, *, slope: float) -> Judgement:
    """Run the hidden layers, each with a leaky ReLU of this slope, then the head; return logits and activations."""
    features: list[Tensor] = []
    for layer in layers:
        x = F.leaky_relu(layer(x), slope)
        features.append(x)
    return Judgement(head(x), features)


# ---------------------------------------------------------------------------------------------------------------------
# Patches: video and mel


@dataclass(frozen=True)
class PatchDiscriminatorConfig:
    """Shape of a PatchGAN discriminator.

    Attributes:
        dims: 3 for video (b, 3, F, H, W), 2 for mels (b, 2, T, bins).
        in_channels: channels of the input.
        channels: width after the first layer; later layers have up to 8 times as many.
        layers: number of strided convolutions.
    """

    dims: int
    in_channels: int
    channels: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ValueError(f"dims = {self.dims}: a patch discriminator sees mels (2) or video (3)")


class PatchDiscriminator(nn.Module):
    """PatchGAN discriminator of video or mels: one logit per patch.

    It has spectral normalisation (Miyato et al. 2018, arXiv 1802.05957) in place of batch statistics, which differ
    between ranks and between real and generated batches.
    """

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        # Any: the two classes annotate sizes per axis differently.
        conv: Any = nn.Conv3d if config.dims == 3 else nn.Conv2d
        widths = [config.in_channels, *(config.channels * min(2**i, 8) for i in range(config.layers + 1))]
        layers: list[nn.Module] = []
        for i in range(config.layers):
            # With stride 2, an even kernel covers all positions equally often, so the gradient shows no grid.
            kernel, stride, padding = [4] * config.dims, [2] * config.dims, [1] * config.dims
            if config.dims == 3 and i == 0:  # the first layer of video keeps the time resolution
                kernel[0], stride[0] = 3, 1
            layers.append(conv(widths[i], widths[i + 1], tuple(kernel), tuple(stride), tuple(padding)))
        layers.append(conv(widths[-2], widths[-1], 3, padding=1))
        self.layers = nn.ModuleList(parametrizations.spectral_norm(layer) for layer in layers)
        self.head = conv(widths[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> list[Judgement]:
        """Judge a batch.

        Args:
            x: (b, in_channels, F, H, W) or (b, in_channels, T, bins). A single frame (F = 1) is judged as a video
                that does not move.

        Returns:
            A list of one judgement.

        Raises:
            ValueError: `x` has another shape or is too small.
        """
        config = self.config
        shortest = 2 ** (config.layers - 1) if config.dims == 3 else 2**config.layers
        if config.dims == 3 and x.dim() == 5 and x.shape[2] == 1:
            x = x.expand(-1, -1, shortest, -1, -1)
        sizes = (shortest, *[2**config.layers] * (config.dims - 1))
        expected = ", ".join(f"≥ {size}" for size in sizes)
        if (
            x.dim() != config.dims + 2
            or x.shape[1] != config.in_channels
            or any(have < need for have, need in zip(x.shape[2:], sizes, strict=True))
        ):
            raise ValueError(f"input has shape {tuple(x.shape)}; expected (batch, {config.in_channels}, {expected})")
        return [_run(self.layers, self.head, x, slope=0.2)]


# ---------------------------------------------------------------------------------------------------------------------
# Waveforms


@dataclass(frozen=True)
class WaveDiscriminatorConfig:
    """Shape of HiFi-GAN's two waveform discriminators. The defaults are the published sizes, for stereo.

    Attributes:
        audio_channels: audio channels that a discriminator sees at once; with 2 it judges the stereo image.
        channels: width after the first layer of a period discriminator; a scale discriminator has four times as many.
        periods: of the period discriminators, in samples.
        scales: number of scale discriminators, each at half the rate of the one before.
    """

    audio_channels: int = 2
    channels: int = 32
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    scales: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "periods", tuple(self.periods))
        if self.channels % 4:
            nearest = 4 * max(1, round(self.channels / 4))
            raise ValueError(f"channels = {self.channels} is not a multiple of 4; the nearest valid value is {nearest}")


class PeriodDiscriminator(nn.Module):
    """2-D convolutions over the waveform folded to (n / period, period): they see samples that are `period` apart."""

    def __init__(self, config: WaveDiscriminatorConfig, period: int) -> None:
        super().__init__()
        self.period = period
        widths = [config.audio_channels, *(config.channels * m for m in (1, 4, 16, 32, 32))]
        self.layers = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv2d(widths[i], widths[i + 1], (5, 1), (3 if i < 4 else 1, 1), (2, 0)))
            for i in range(5)
        )
        self.head = parametrizations.weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave_bcn: Tensor) -> Judgement:
        """Judge a waveform (b, c, n), extended by reflection to a multiple of the period."""
        wave_bcn = F.pad(wave_bcn, (0, -wave_bcn.shape[-1] % self.period), mode="reflect")
        return _run(self.layers, self.head, wave_bcn.unflatten(2, (-1, self.period)), slope=0.1)


class ScaleDiscriminator(nn.Module):
    """Grouped, strided 1-D convolutions over a waveform.

    Args:
        config: sizes.
        spectral: use spectral normalisation (at the full rate) in place of weight normalisation (at lower rates).
    """

    def __init__(self, config: WaveDiscriminatorConfig, *, spectral: bool) -> None:
        super().__init__()
        norm = parametrizations.spectral_norm if spectral else parametrizations.weight_norm
        width = 4 * config.channels
        # (multiple of the width, kernel, stride, groups), HiFi-GAN appendix C; a narrow width limits the groups.
        plan = [
            (1, 15, 1, 1),
            (1, 41, 2, 4),
            (2, 41, 2, 16),
            (4, 41, 4, 16),
            (8, 41, 4, 16),
            (8, 41, 1, 16),
            (8, 5, 1, 1),
        ]
        layers: list[nn.Module] = []
        before = config.audio_channels
        for multiple, kernel, stride, groups in plan:
            groups = min(groups, width // 4)
            layers.append(norm(nn.Conv1d(before, width * multiple, kernel, stride, kernel // 2, groups=groups)))
            before = width * multiple
        self.layers = nn.ModuleList(layers)
        self.head = norm(nn.Conv1d(before, 1, 3, padding=1))

    def forward(self, wave_bcn: Tensor) -> Judgement:
        """Judge a waveform (b, c, n) that is already at the rate of this scale; it is not resampled here."""
        return _run(self.layers, self.head, wave_bcn, slope=0.1)


class MultiPeriodDiscriminator(nn.Module):
    """One `PeriodDiscriminator` for each period of the configuration."""

    def __init__(self, config: WaveDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminators = nn.ModuleList(PeriodDiscriminator(config, period) for period in config.periods)

    def forward(self, wave_bcn: Tensor) -> list[Judgement]:
        """Waveform (b, c, n) → one judgement per period; raises ValueError for another shape."""
        _check_wave(wave_bcn, self.config, at_least=max(self.config.periods))
        return [discriminator(wave_bcn) for discriminator in self.discriminators]


class MultiScaleDiscriminator(nn.Module):
    """One `ScaleDiscriminator` per scale: at full rate, half, quarter, and so on."""

    def __init__(self, config: WaveDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminators = nn.ModuleList(ScaleDiscriminator(config, spectral=i == 0) for i in range(config.scales))

    def forward(self, wave_bcn: Tensor) -> list[Judgement]:
        """Waveform (b, c, n) → one judgement per scale; raises ValueError for another shape."""
        _check_wave(wave_bcn, self.config, at_least=2**self.config.scales)
        judgements: list[Judgement] = []
        for i, discriminator in enumerate(self.discriminators):
            if i:
                wave_bcn = F.avg_pool1d(wave_bcn, 4, 2, padding=2)
            judgements.append(discriminator(wave_bcn))
        return judgements


class WaveDiscriminator(nn.Module):
    """Both waveform discriminators of HiFi-GAN."""

    def __init__(self, config: WaveDiscriminatorConfig) -> None:
        super().__init__()
        self.periods = MultiPeriodDiscriminator(config)
        self.scales = MultiScaleDiscriminator(config)

    def forward(self, wave_bcn: Tensor) -> list[Judgement]:
        """Waveform (b, c, n) → one judgement per period, then one per scale; raises ValueError for another shape."""
        return self.periods(wave_bcn) + self.scales(wave_bcn)


def _check_wave(wave_bcn: Tensor, config: WaveDiscriminatorConfig, *, at_least: int) -> None:
    """Raise ValueError unless the waveform is (batch, audio channels, samples ≥ `at_least`)."""
    if wave_bcn.dim() != 3 or wave_bcn.shape[1] != config.audio_channels or wave_bcn.shape[2] < at_least:
        expected = f"(batch, {config.audio_channels}, samples ≥ {at_least})"
        raise ValueError(f"waveform has shape {tuple(wave_bcn.shape)}; expected {expected}")


# ---------------------------------------------------------------------------------------------------------------------
# Losses: each returns (b,), so that the caller can weight each sample


def hinge_discriminator_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Return Σ (max(0, 1 − D(real)) + max(0, 1 + D(fake))) / 2 over the sub-discriminators, (b,).

    Logits are averaged per sample. A sub-discriminator whose logits are all 0 adds 1.
    """
    return 0.5 * _sum(_mean(F.relu(1 - r.logits)) + _mean(F.relu(1 + f.logits)) for r, f in _pairs(real, fake))


def hinge_generator_loss(fake: list[Judgement]) -> Tensor:
    """Return Σ −D(fake) over the sub-discriminators, (b,)."""
    return _sum(_mean(-f.logits) for f in fake)


def least_squares_discriminator_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Return Σ (D(real) − 1)² + D(fake)² over the sub-discriminators, (b,) (HiFi-GAN eq. 1, 6)."""
    return _sum(_mean((r.logits - 1).square()) + _mean(f.logits.square()) for r, f in _pairs(real, fake))


def least_squares_generator_loss(fake: list[Judgement]) -> Tensor:
    """Return Σ (D(fake) − 1)² over the sub-discriminators, (b,) (HiFi-GAN eq. 2, 5)."""
    return _sum(_mean((f.logits - 1).square()) for f in fake)


def feature_matching_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Return the sum, over all hidden layers, of the mean absolute difference of real and fake activations, (b,).

    HiFi-GAN eq. 4. The real activations are targets: they get no gradient.
    """
    return _sum(
        _mean((a.detach() - b).abs())
        for r, f in _pairs(real, fake)
        for a, b in zip(r.features, f.features, strict=True)
    )


def _pairs(real: list[Judgement], fake: list[Judgement]) -> list[tuple[Judgement, Judgement]]:
    """Pair the judgements of real and fake samples by each sub-discriminator."""
    return list(zip(real, fake, strict=True))


def _mean(values: Tensor) -> Tensor:
    """Average each sample over all axes but the batch: (b, …) → (b,)."""
    return values.flatten(1).mean(1)


def _sum(values: Iterable[Tensor]) -> Tensor:
    """Add the terms of a loss, each (b,) → (b,)."""
    return torch.stack(list(values)).sum(0)
