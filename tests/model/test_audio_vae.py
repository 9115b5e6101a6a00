"""Audio VAE: parameter counts, equality with the published classes, shapes, causality, statistics, initialisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from model.audio_vae import AudioVAE, AudioVAEConfig, latent_frames
from tests.model.helpers import count, fill_with_noise

SMALL = AudioVAEConfig(base_channels=32, latent_channels=2, res_blocks=1)


def published(configurator: Any, config: AudioVAEConfig) -> nn.Module:
    """Build the published class from the metadata that corresponds to `config`."""
    ddconfig = {
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multipliers),
        "num_res_blocks": config.res_blocks,
        "z_channels": config.latent_channels,
        "mel_bins": config.mel_bins,
        "in_channels": config.mel_channels,
        "out_ch": config.mel_channels,
        "attn_resolutions": [],
        "mid_block_add_attention": False,
    }
    return configurator.from_config({"audio_vae": {"model": {"params": {"ddconfig": ddconfig}}}})


def test_parameter_counts() -> None:
    with torch.device("meta"):
        vae = AudioVAE(AudioVAEConfig())
    assert (count(vae.encoder), count(vae.decoder), count(vae)) == (21_333_008, 31_915_138, 53_248_146)
    assert vae.config.token_width == 128


def test_equals_ltx_core() -> None:
    pytest.importorskip("ltx_core", reason="the published classes are an oracle of the development set-up")
    from ltx_core.model.audio_vae.model_configurator import AudioDecoderConfigurator, AudioEncoderConfigurator

    vae = AudioVAE(SMALL)
    fill_with_noise(vae)
    their_encoder = published(AudioEncoderConfigurator, SMALL)
    their_decoder = published(AudioDecoderConfigurator, SMALL)

    # Load strictly in both directions: ours into theirs, theirs into ours.
    merged = {}
    for part, other, module in (("encoder", "decoder", their_encoder), ("decoder", "encoder", their_decoder)):
        state = {k.removeprefix(part + "."): v for k, v in vae.state_dict().items() if not k.startswith(other)}
        module.load_state_dict(state, strict=True)
        merged |= {k if k.startswith("per_channel") else f"{part}.{k}": v for k, v in module.state_dict().items()}
    AudioVAE(SMALL).load_state_dict(merged, strict=True)

    mel = torch.randn(2, 2, 101, 64, generator=torch.Generator().manual_seed(1)) * 3 - 5
    latent = vae.encode(mel)
    assert latent.shape == (2, 2, 26, 16)
    assert latent.std() > 0.1
    theirs = their_encoder(mel)
    torch.testing.assert_close(latent, theirs, atol=1e-5, rtol=0)
    decoded = vae.decode(latent)
    assert decoded.shape == mel.shape
    torch.testing.assert_close(decoded, their_decoder(latent), atol=1e-5, rtol=0)

    theirs.square().mean().backward()
    latent.square().mean().backward()
    ours = dict(vae.encoder.named_parameters())
    for name, parameter in their_encoder.named_parameters():
        gradient = ours[name].grad
        assert gradient is not None, name
        assert parameter.grad is not None, name
        assert (gradient - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-9, name


@pytest.mark.parametrize(("mel_frames", "latents"), [(1, 1), (4, 1), (5, 2), (100, 25), (101, 26), (504, 126)])
def test_lengths(mel_frames: int, latents: int) -> None:
    vae = AudioVAE(AudioVAEConfig(base_channels=4, latent_channels=2, channel_multipliers=(1, 1, 1), res_blocks=1))
    with torch.no_grad():
        latent = vae.encode(torch.zeros(1, 2, mel_frames, 64))
        assert latent.shape[2] == latents == latent_frames(mel_frames)
        assert vae.decode(latent).shape == (1, 2, 4 * latents - 3, 64)


def test_causal_in_time() -> None:
    vae = AudioVAE(SMALL)
    fill_with_noise(vae)
    mel = torch.randn(1, 2, 41, 64)
    changed = mel.clone()
    changed[:, :, 21:] = 0
    with torch.no_grad():
        a, b = vae.encode(mel), vae.encode(changed)
        torch.testing.assert_close(a[:, :, :6], b[:, :, :6], atol=1e-6, rtol=0)
        assert not torch.allclose(a[:, :, 6:], b[:, :, 6:])
        torch.testing.assert_close(vae.decode(a)[:, :, :21], vae.decode(a[:, :, :6]), atol=1e-5, rtol=0)


def test_statistics_follow_the_token() -> None:
    """Statistics have one entry per channel · 16 + bin, the order of the transformer's audio tokens."""
    vae = AudioVAE(SMALL)
    mel = torch.randn(1, 2, 41, 64)
    with torch.no_grad():
        raw, _ = vae.encode_distribution(mel)
        mean = torch.arange(32.0)
        vae.set_statistics(mean, torch.full((32,), 2.0))
        tokens = vae.encode(mel).permute(0, 2, 1, 3).flatten(2)
        torch.testing.assert_close(tokens, (raw.permute(0, 2, 1, 3).flatten(2) - mean) / 2)
        torch.testing.assert_close(vae.decode(vae.encode(mel)), vae.decode_raw(raw), atol=1e-4, rtol=0)


def test_initialisation_is_stable() -> None:
    torch.manual_seed(0)
    vae = AudioVAE(AudioVAEConfig(base_channels=32))
    mel = torch.randn(2, 2, 41, 64) * 2 - 6
    mean, log_variance = vae.encode_distribution(mel)
    assert 0.3 < mean.std().item() < 2
    assert torch.equal(log_variance, torch.full_like(log_variance, -4.0))
    decoded = vae.decode_raw(mean)
    assert abs(decoded.mean().item() + 6) < 0.2
    assert decoded.std().item() < 0.3
    (decoded - mel).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("shape", "verb", "message"),
    [
        ((1, 1, 40, 64), "encode", r"mel has shape .* expected \(batch, 2, time ≥ 1, 64\)"),
        ((1, 2, 40, 80), "encode", r"mel has shape"),
        ((1, 2, 0, 64), "encode", r"mel has shape"),
        ((1, 8, 10, 16), "decode", r"latent has shape .* expected \(batch, 2, time ≥ 1, 16\)"),
    ],
)
def test_bad_shapes_are_named(shape: tuple[int, ...], verb: str, message: str) -> None:
    vae = AudioVAE(SMALL)
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        vae.encode(x) if verb == "encode" else vae.decode_raw(x)


def test_configurations_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"mel_bins = 66 .* nearest valid value is 64"):
        AudioVAEConfig(mel_bins=66)
