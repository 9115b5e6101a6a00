"""Latent upscaler: parameter counts, equality with the published classes, shapes, initialisation."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from model.upscaler import LatentUpscaler, UpscalerConfig
from model.video_vae import VideoVAE, VideoVAEConfig
from tests.model.helpers import fill_with_noise

SMALL = UpscalerConfig(in_channels=8, mid_channels=32, num_blocks_per_stage=1)
VARIANTS = {
    "x2": (SMALL, (3, 4, 6), (3, 8, 12)),
    "x1.5": (replace(SMALL, spatial_scale=1.5, rational_resampler=True), (3, 4, 6), (3, 6, 9)),
    "x0.75": (replace(SMALL, spatial_scale=0.75, rational_resampler=True), (3, 4, 8), (3, 3, 6)),
    "time": (replace(SMALL, spatial_upsample=False, temporal_upsample=True), (5, 4, 6), (9, 4, 6)),
    "both": (replace(SMALL, temporal_upsample=True), (3, 4, 6), (5, 8, 12)),
}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (UpscalerConfig(), 497_867_904),
        (UpscalerConfig.ltx2_x1_5(), 545_058_944),
        (UpscalerConfig.ltx2_temporal(), 130_968_192),
    ],
)
def test_parameter_counts(config: UpscalerConfig, count: int) -> None:
    with torch.device("meta"):
        upscaler = LatentUpscaler(config)
    assert sum(p.numel() for p in upscaler.parameters()) == count


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_ltx_core(name: str) -> None:
    pytest.importorskip("ltx_core", reason="the published classes are an oracle of the development set-up")
    from ltx_core.model.upsampler.model import LatentUpsampler

    config, size, expected = VARIANTS[name]
    ours, theirs = LatentUpscaler(config), LatentUpsampler(dims=3, **asdict(config))
    for key, value in theirs.state_dict().items():
        if key.endswith("kernel"):
            torch.testing.assert_close(ours.state_dict()[key], value, atol=1e-6, rtol=0)
    fill_with_noise(ours, vector_std=0.5)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    LatentUpscaler(config).load_state_dict(theirs.state_dict(), strict=True)
    z = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = ours(z)
        assert out.shape == (2, 8, *expected)
        assert out.std() > 0.1
        torch.testing.assert_close(out, theirs(z), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_diffusers(name: str) -> None:
    upsampler = pytest.importorskip("diffusers.pipelines.ltx2.latent_upsampler", reason="an oracle of development")
    config, size, _ = VARIANTS[name]
    options = asdict(config)
    rational = options.pop("rational_resampler")
    scale = options.pop("spatial_scale")
    theirs = upsampler.LTX2LatentUpsamplerModel(
        dims=3, rational_spatial_scale=scale if rational else None, use_rational_resampler=rational, **options
    )
    ours = LatentUpscaler(config)
    fill_with_noise(ours, vector_std=0.5)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    z = torch.randn(1, 8, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(z), theirs(z), atol=1e-5, rtol=0)


def test_normalised_latents_stay_normalised() -> None:
    vae = VideoVAE(
        VideoVAEConfig(latent_channels=8, encoder_layers=(0,) * 5, decoder_base_channels=8, decoder_layers=(0, 0, 0, 0))
    )
    vae.set_statistics(torch.arange(8.0), torch.arange(8.0) + 1)
    upscaler = LatentUpscaler(SMALL)
    latent = torch.randn(1, 8, 2, 3, 4)
    with torch.no_grad():
        up = upscaler.upscale(latent, vae)
        torch.testing.assert_close(vae.denormalize(up), upscaler(vae.denormalize(latent)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_initialisation_is_stable_and_without_checkerboard(name: str) -> None:
    torch.manual_seed(0)
    config, size, _ = VARIANTS[name]
    config = replace(config, num_blocks_per_stage=4)
    upscaler = LatentUpscaler(config)
    out = upscaler(torch.randn(1, 8, *size))
    assert 0.3 < out.std().item() < 3
    out.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in upscaler.parameters())
    if name == "x2":
        with torch.no_grad():
            raised = upscaler.upsampler(torch.randn(1, 32, 1, 3, 3))
        # Up to rounding: on some CPUs a convolution adds up one output channel in another order than the next.
        torch.testing.assert_close(raised[..., ::2, ::2], raised[..., 1::2, 1::2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mid_channels": 50}, r"mid_channels = 50 .* nearest valid value is 64"),
        ({"spatial_scale": 1.5}, "needs rational_resampler"),
        ({"spatial_scale": 3.0, "rational_resampler": True}, "choose 0.75, 1.5, 2, 4"),
        ({"spatial_upsample": False}, "both off"),
        ({"temporal_upsample": True, "rational_resampler": True}, "switch temporal_upsample off"),
    ],
)
def test_configurations_that_do_not_fit_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UpscalerConfig(**options)


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, 8, frames, height, width\)"):
        LatentUpscaler(SMALL)(torch.zeros(1, 4, 2, 2, 2))
