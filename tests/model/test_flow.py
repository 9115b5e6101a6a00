"""Noise, targets, schedules and the distribution of training σ."""

import math

import pytest
import torch

from model.flow import TrainingSigma, add_noise, denoised, inference_schedule, token_shift, velocity_target


def test_golden_schedules() -> None:
    long = inference_schedule(40)
    assert long.shape == (41,)
    torch.testing.assert_close(long[:4], torch.tensor([1, 0.99645, 0.99274, 0.98885]), atol=1e-5, rtol=0)
    torch.testing.assert_close(long[-4:], torch.tensor([0.33781, 0.23394, 0.1, 0]), atol=1e-5, rtol=0)
    short = torch.tensor([1, 0.96571, 0.92187, 0.86386, 0.78345, 0.66458, 0.471, 0.1, 0])
    torch.testing.assert_close(inference_schedule(8), short, atol=1e-5, rtol=0)
    more = torch.tensor([1, 0.97391, 0.93983, 0.89342, 0.82651, 0.72165, 0.53381, 0.1, 0])
    torch.testing.assert_close(inference_schedule(8, tokens=6144), more, atol=1e-5, rtol=0)
    assert inference_schedule(1).tolist() == [1, 0]
    with pytest.raises(ValueError, match="at least 1 step"):
        inference_schedule(0)


@pytest.mark.parametrize("steps", [2, 8, 30, 40])
def test_schedule_equals_the_published_ones(steps: int) -> None:
    schedulers = pytest.importorskip("ltx_core.components.schedulers")
    from diffusers import FlowMatchEulerDiscreteScheduler  # pyright: ignore[reportPrivateImportUsage]

    torch.testing.assert_close(inference_schedule(steps), schedulers.LTX2Scheduler().execute(steps=steps))
    theirs = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    )
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=2.05)
    torch.testing.assert_close(inference_schedule(steps), theirs.sigmas, atol=1e-6, rtol=0)


def test_path_and_target() -> None:
    x0, noise = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    sigma = torch.tensor([0.0, 0.7])
    noisy = add_noise(x0, noise, sigma)
    assert torch.equal(noisy[0], x0[0])
    torch.testing.assert_close(noisy[1], 0.3 * x0[1] + 0.7 * noise[1])
    torch.testing.assert_close(denoised(noisy, velocity_target(x0, noise), sigma), x0)
    per_token = torch.rand(2, 5)
    torch.testing.assert_close(
        add_noise(x0, noise, per_token)[1, 3], torch.lerp(x0[1, 3], noise[1, 3], per_token[1, 3])
    )
    assert add_noise(x0.bfloat16(), noise, sigma).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="does not lead"):
        add_noise(x0, noise, torch.rand(3))


def test_shift_is_linear_and_clamped() -> None:
    assert token_shift(1024, clamp=True) == pytest.approx(0.95)
    assert token_shift(4096, clamp=True) == pytest.approx(2.05)
    assert token_shift(126, clamp=True) == pytest.approx(0.95)
    assert token_shift(6144, clamp=True) == pytest.approx(2.05)
    assert token_shift(6144, clamp=False) == pytest.approx(2.05 + 1.1 * 2048 / 3072)


def test_training_sigma_has_the_stated_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    sigma = TrainingSigma(uniform_share=0.0).sample(200_000, 4096, generator)
    assert sigma.min() >= 0
    assert sigma.max() <= 1
    low, high = (1 / (1 + math.exp(-(2.05 + z))) for z in (-2.5758, 3.0902))
    median = (1 / (1 + math.exp(-2.05)) - low) / (high - low)
    assert sigma.median().item() == pytest.approx(median, abs=0.005)
    mixed = TrainingSigma(uniform_share=1.0, floor=0.1).sample(100_000, 4096, generator)
    assert mixed.min() >= 0.1
    assert mixed.mean().item() == pytest.approx(0.55, abs=0.005)
    # More tokens get more noise; the default floor keeps σ above 0.
    few, many = (TrainingSigma().sample(50_000, n, generator) for n in (1024, 4096))
    assert many.mean() > few.mean() + 0.05
    assert TrainingSigma().sample(100_000, 1024, generator).min() > 0


def test_training_sigma_repeats_and_couples() -> None:
    def draw(sigma: TrainingSigma):
        return sigma.sample_pair(64, 4096, 126, torch.Generator().manual_seed(7))

    first, again = draw(TrainingSigma()), draw(TrainingSigma())
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    shared = draw(TrainingSigma(coupling="shared"))
    assert torch.equal(shared[0], shared[1])


@pytest.mark.parametrize("wrong", [{"std": 0}, {"uniform_share": 1.5}, {"floor": 0.7}, {"coupling": "both"}])
def test_training_sigma_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingSigma(**wrong)
