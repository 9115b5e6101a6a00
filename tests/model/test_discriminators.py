"""Discriminators and their losses: shapes, gradients, known values, and learning to separate real from fake."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.discriminators import (
    Judgement,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    WaveDiscriminator,
    WaveDiscriminatorConfig,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
)

VIDEO = PatchDiscriminatorConfig(dims=3, in_channels=3, channels=8)
MEL = PatchDiscriminatorConfig(dims=2, in_channels=2, channels=8)
WAVE = WaveDiscriminatorConfig(channels=4)


def test_patches_of_video_and_mel() -> None:
    (video,) = PatchDiscriminator(VIDEO)(torch.randn(2, 3, 9, 64, 96))
    assert video.logits.shape == (2, 1, 2, 8, 12)
    assert len(video.features) == 4
    (mel,) = PatchDiscriminator(MEL)(torch.randn(2, 2, 100, 64))
    assert mel.logits.shape == (2, 1, 12, 8)


def test_judges_of_waveforms() -> None:
    wave = torch.randn(2, 2, 2401)
    assert len(MultiPeriodDiscriminator(WAVE)(wave)) == 5
    assert len(MultiScaleDiscriminator(WAVE)(wave)) == 3
    assert len(WaveDiscriminator(WAVE)(wave)) == 8


def test_published_sizes() -> None:
    """HiFi-GAN has 41.1M parameters for the periods and 29.6M for the scales (one channel, with weight norm)."""
    config = WaveDiscriminatorConfig(audio_channels=1)
    with torch.device("meta"):
        periods, scales = MultiPeriodDiscriminator(config), MultiScaleDiscriminator(config)
    assert sum(p.numel() for p in periods.parameters()) == pytest.approx(41.1e6, rel=0.01)
    assert sum(p.numel() for p in scales.parameters()) == pytest.approx(29.6e6, rel=0.01)


def test_a_period_judge_sees_samples_a_period_apart() -> None:
    judge = MultiPeriodDiscriminator(WaveDiscriminatorConfig(channels=4, periods=(3,)))
    wave = torch.randn(1, 2, 300)
    changed = wave.clone()
    changed[..., ::3] += 1
    a, b = judge(wave)[0].features[0], judge(changed)[0].features[0]
    torch.testing.assert_close(a[..., 1:], b[..., 1:])
    assert not torch.allclose(a[..., 0], b[..., 0])


def says(*logits: float) -> list[Judgement]:
    return [Judgement(torch.full((2, 1, 4), float(value)), [torch.full((2, 3), float(value))]) for value in logits]


def test_losses_at_known_points() -> None:
    """Losses are per sample, summed over discriminators and layers."""
    for loss, value in (
        (hinge_discriminator_loss(says(0, 0), says(0, 0)), 2),
        (hinge_discriminator_loss(says(2), says(-3)), 0),
        (hinge_discriminator_loss(says(-1), says(1)), 2),
        (hinge_generator_loss(says(0.5, 1.5)), -2),
        (least_squares_discriminator_loss(says(1), says(0)), 0),
        (least_squares_discriminator_loss(says(0), says(1)), 2),
        (least_squares_generator_loss(says(0, 1)), 1),
        (feature_matching_loss(says(1, 1), says(3, 2)), 3),
    ):
        assert loss.tolist() == [value, value]


def test_a_still_is_judged_as_a_video_that_does_not_move() -> None:
    judge = PatchDiscriminator(VIDEO).eval()
    still = torch.randn(2, 3, 1, 32, 32)
    assert torch.equal(judge(still)[0].logits, judge(still.repeat(1, 1, 4, 1, 1))[0].logits)


def test_feature_matching_teaches_the_generator_only() -> None:
    judge = PatchDiscriminator(MEL)
    real = torch.randn(1, 2, 16, 16, requires_grad=True)
    fake = torch.randn(1, 2, 16, 16, requires_grad=True)
    feature_matching_loss(judge(real), judge(fake)).sum().backward()
    assert real.grad is None
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0


def _tone() -> Tensor:
    phase = torch.rand(2, 2, 1) * 2 * math.pi
    return torch.sin(torch.arange(480) * 0.2 + phase) * 0.5


def _stripes() -> Tensor:
    return torch.sin(torch.arange(32) * 0.5 + torch.rand(2, 3, 5, 32, 1) * 6.28)


@pytest.mark.parametrize(
    ("judge", "real", "steps"),
    [(WaveDiscriminator(WAVE), _tone, 20), (PatchDiscriminator(VIDEO), _stripes, 60)],
    ids=["wave", "video"],
)
def test_they_learn_to_tell_and_their_gradient_reaches_the_generator(
    judge: nn.Module, real: Callable[[], Tensor], steps: int
) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(judge.parameters(), 2e-3, betas=(0.5, 0.9))
    for _ in range(steps):
        x = real()
        loss = hinge_discriminator_loss(judge(x), judge(torch.randn_like(x) * 0.5)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x = real()
        truth, noise = judge(x), judge(torch.randn_like(x) * 0.5)
    assert hinge_discriminator_loss(truth, noise).mean() < 0.8 * len(truth)
    fake = (torch.randn_like(x) * 0.5).requires_grad_()
    hinge_generator_loss(judge(fake)).mean().backward()
    assert fake.grad is not None
    assert torch.isfinite(fake.grad).all()
    assert (fake.grad != 0).float().mean() > 0.9


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, 3, ≥ 4, ≥ 8, ≥ 8\)"):
        PatchDiscriminator(VIDEO)(torch.zeros(1, 3, 9, 4, 64))
    with pytest.raises(ValueError, match=r"expected \(batch, 2, samples ≥ 11\)"):
        MultiPeriodDiscriminator(WAVE)(torch.zeros(1, 1, 480))
    with pytest.raises(ValueError, match=r"channels = 6 .* nearest valid value is 8"):
        WaveDiscriminatorConfig(channels=6)
    with pytest.raises(ValueError, match="dims = 1"):
        PatchDiscriminatorConfig(dims=1, in_channels=1)
