"""Video VAE: parameter counts, equality with the published classes, sizes, statistics, initialisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from model.video_vae import (
    TimeStream,
    VideoVAE,
    VideoVAEConfig,
    latent_size,
    patchify,
    pixel_size,
    unpatchify,
)
from tests.model.helpers import count, fill_with_noise

SMALL = VideoVAEConfig(
    latent_channels=8, encoder_layers=(1, 1, 1, 1, 1), decoder_base_channels=8, decoder_layers=(1, 1, 1, 1)
)
SMALL_2_3 = replace(
    VideoVAEConfig.ltx2_3(),
    latent_channels=8,
    encoder_layers=(1, 1, 1, 1, 1),
    decoder_base_channels=8,
    decoder_layers=(1, 1, 1, 1, 1),
)


def published_config(config: VideoVAEConfig) -> dict:
    """Return the `vae` section of the published metadata that corresponds to `config`."""
    names = {"space": "compress_space", "time": "compress_time", "all": "compress_all"}
    encoder: list = [("res_x", {"num_layers": config.encoder_layers[0]})]
    for (axes, factor), layers in zip(config.downsample, config.encoder_layers[1:], strict=True):
        encoder += [(names[axes] + "_res", {"multiplier": factor}), ("res_x", {"num_layers": layers})]
    decoder: list = [("res_x", {"num_layers": config.decoder_layers[0]})]
    for (axes, factor), layers in zip(config.upsample, config.decoder_layers[1:], strict=True):
        options = {"multiplier": factor, "residual": config.upsample_residual}
        decoder += [(names[axes], options), ("res_x", {"num_layers": layers})]
    return {
        "latent_channels": config.latent_channels,
        "patch_size": config.patch_size,
        "encoder_blocks": encoder,
        "decoder_blocks": decoder[::-1],  # the published order is from pixels to latent
        "decoder_base_channels": config.decoder_base_channels,
        "timestep_conditioning": False,
    }


def published(configurator: Any, section: dict) -> nn.Module:
    return configurator.from_config({"vae": section})


@pytest.mark.parametrize(
    ("config", "encoder", "decoder", "total"),
    [
        (VideoVAEConfig(), 694_098_881, 528_380_720, 1_222_479_601),
        (VideoVAEConfig.ltx2_3(), 318_936_897, 407_169_072, 726_105_969),
    ],
    ids=["2.0", "2.3"],
)
def test_parameter_counts(config: VideoVAEConfig, encoder: int, decoder: int, total: int) -> None:
    with torch.device("meta"):
        vae = VideoVAE(config)
    assert (count(vae.encoder), count(vae.decoder), count(vae)) == (encoder, decoder, total)


@pytest.mark.parametrize("config", [SMALL, SMALL_2_3], ids=["2.0", "2.3"])
def test_equals_ltx_core(config: VideoVAEConfig) -> None:
    pytest.importorskip("ltx_core", reason="the published classes are an oracle of the development set-up")
    from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator, VideoEncoderConfigurator

    vae = VideoVAE(config)
    fill_with_noise(vae)
    section = published_config(config)
    their_encoder = published(VideoEncoderConfigurator, section)
    padding = {"spatial_padding_mode": config.decoder_padding}
    their_decoder = published(VideoDecoderConfigurator, section | padding)
    ours = vae.state_dict()

    # Load strictly in both directions: ours into theirs, theirs into ours.
    merged = {}
    for part, other, module in (("encoder", "decoder", their_encoder), ("decoder", "encoder", their_decoder)):
        state = {k.removeprefix(part + "."): v for k, v in ours.items() if not k.startswith(other)}
        module.load_state_dict(state, strict=True)
        merged |= {k if k.startswith("per_channel") else f"{part}.{k}": v for k, v in module.state_dict().items()}
    VideoVAE(config).load_state_dict(merged, strict=True)

    pixels = torch.rand(1, 3, 17, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(pixels)
        assert latent.shape == (1, config.latent_channels, 3, 2, 3)
        assert latent.std() > 0.1
        torch.testing.assert_close(latent, their_encoder(pixels), atol=1e-5, rtol=0)
        decoded = vae.decode(latent)
        assert decoded.shape == pixels.shape
        torch.testing.assert_close(decoded, their_decoder(latent), atol=1e-5, rtol=0)


def test_gradients_equal_ltx_core() -> None:
    pytest.importorskip("ltx_core", reason="the published classes are an oracle of the development set-up")
    from ltx_core.model.video_vae.model_configurator import VideoEncoderConfigurator

    vae = VideoVAE(SMALL)
    fill_with_noise(vae)
    theirs = published(VideoEncoderConfigurator, published_config(SMALL))
    theirs.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in vae.state_dict().items() if not k.startswith("decoder.")}
    )
    pixels = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vae.encode(pixels).square().mean().backward()
    theirs(pixels).square().mean().backward()
    ours = dict(vae.encoder.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        gradient = ours[name].grad
        assert gradient is not None
        difference = (gradient - parameter.grad).norm()
        assert difference <= 1e-4 * parameter.grad.norm() + 1e-9, name


def test_patchify_puts_the_width_offset_first() -> None:
    pixels = torch.arange(16.0).reshape(1, 1, 1, 4, 4)
    patches = patchify(pixels, 4)
    assert patches.flatten().tolist() == pixels[0, 0, 0].T.flatten().tolist()
    assert torch.equal(unpatchify(patches, 4), pixels)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 64, 64), r"frames = 16 .* nearest valid value is 17"),
        ((1, 3, 4, 64, 64), r"frames = 4 .* nearest valid value is 1"),
        ((1, 3, 9, 70, 64), r"height = 70 .* nearest valid value is 64"),
        ((1, 3, 9, 64, 90), r"width = 90 .* nearest valid value is 96"),
        ((1, 4, 9, 64, 64), r"expected \(batch, 3, frames"),
    ],
)
def test_bad_sizes_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoVAE(SMALL).encode(torch.zeros(shape))


def test_a_latent_too_small_to_reflect_is_named() -> None:
    with pytest.raises(ValueError, match="latent width = 1"):
        VideoVAE(SMALL).decode(torch.zeros(1, 8, 1, 2, 1))
    assert VideoVAE(SMALL_2_3).decode(torch.zeros(1, 8, 1, 1, 1)).shape == (1, 3, 1, 32, 32)


def test_configurations_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="decoder_layers has 3 entries"):
        VideoVAEConfig(decoder_layers=(5, 5, 5))
    with pytest.raises(ValueError, match="compress 4 in time"):
        VideoVAEConfig(upsample=(("all", 2), ("all", 2), ("space", 2)))


def test_sizes() -> None:
    assert latent_size(121, 512, 768) == (16, 16, 24)
    assert pixel_size(16, 16, 24) == (121, 512, 768)


def test_statistics() -> None:
    vae = VideoVAE(SMALL)
    assert torch.equal(vae.per_channel_statistics.mean, torch.zeros(8))
    assert torch.equal(vae.per_channel_statistics.std, torch.ones(8))
    pixels = torch.rand(1, 3, 9, 64, 64) * 2 - 1
    with torch.no_grad():
        raw, _ = vae.encode_distribution(pixels)
        mean, std = raw.mean(dim=(0, 2, 3, 4)), raw.std(dim=(0, 2, 3, 4))
        vae.set_statistics(mean, std)
        latent = vae.encode(pixels)
        torch.testing.assert_close(latent.mean(dim=(0, 2, 3, 4)), torch.zeros(8), atol=1e-5, rtol=0)
        torch.testing.assert_close(latent.std(dim=(0, 2, 3, 4)), torch.ones(8), atol=1e-5, rtol=0)
        torch.testing.assert_close(vae.decode(latent), vae.decode_raw(raw), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="dead"):
        vae.set_statistics(mean, std * 0)
    with pytest.raises(ValueError, match="not finite"):
        vae.set_statistics(mean * float("nan"), std)
    with pytest.raises(ValueError, match=r"needs \(8,\)"):
        vae.set_statistics(mean[:3], std)


@pytest.mark.parametrize("config", [SMALL, SMALL_2_3], ids=["2.0", "2.3"])
def test_initialisation_is_stable(config: VideoVAEConfig) -> None:
    """Means have unit scale, pixels are near grey, and each parameter that the first step can reach has a gradient."""
    torch.manual_seed(0)
    vae = VideoVAE(config)
    pixels = torch.rand(1, 3, 9, 64, 64) * 2 - 1
    mean, log_variance = vae.encode_distribution(pixels)
    assert mean.shape[1] == config.latent_channels
    assert log_variance.shape[1] == 1
    assert 0.3 < mean.std().item() < 2
    assert torch.equal(log_variance, torch.full_like(log_variance, -4.0))
    decoded = vae.decode_raw(mean)
    assert decoded.abs().mean().item() < 0.2
    (decoded - pixels).square().mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name.endswith("weight") and "conv1" not in name:  # conv1 has no gradient while conv2 behind it is zero
            assert parameter.grad.abs().sum() > 0, name


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    vae = VideoVAE(SMALL_2_3)
    ramp = torch.linspace(-1, 1, 32)
    pixels = torch.stack([ramp.expand(9, 32, 32), ramp[:, None].expand(9, 32, 32), torch.zeros(9, 32, 32)])[None]
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    losses = []
    for _ in range(25):
        mean, log_variance = vae.encode_distribution(pixels)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        loss = (vae.decode_raw(z) - pixels).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_encoder_is_causal() -> None:
    vae = VideoVAE(SMALL)
    fill_with_noise(vae)
    pixels = torch.rand(1, 3, 17, 64, 64)
    changed = pixels.clone()
    changed[:, :, 9:] = 0
    with torch.no_grad():
        a, b = vae.encode(pixels), vae.encode(changed)
    torch.testing.assert_close(a[:, :, :2], b[:, :, :2], atol=1e-6, rtol=0)
    assert not torch.allclose(a[:, :, 2:], b[:, :, 2:])


@pytest.mark.parametrize("config", [SMALL, SMALL_2_3], ids=["2.0", "2.3"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3), (5,)])
def test_chunks_in_time_change_nothing(config: VideoVAEConfig, sizes: tuple[int, ...]) -> None:
    vae = VideoVAE(config)
    fill_with_noise(vae)
    z = torch.randn(1, 8, 5, 2, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = vae.decoder(z)
        stream = TimeStream()
        parts = [vae.decoder(chunk, stream) for chunk in z.split(sizes, dim=2)]
        while sum(part.shape[2] for part in parts) < whole.shape[2]:
            stream.release(2)
            parts.append(vae.decoder(z[:, :, :0], stream))
            assert parts[-1].shape[2] <= 2 * 8
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=0)

        pixels = torch.rand(1, 3, 33, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
        frames = [8 * n for n in sizes]
        frames[0] -= 7
        stream = TimeStream()
        parts = [vae.encoder(chunk, stream) for chunk in pixels.split(frames, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=2), vae.encoder(pixels), atol=1e-5, rtol=0)
