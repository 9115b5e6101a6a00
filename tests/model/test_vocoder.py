"""Vocoders: parameter counts, equality with the published classes, filters, shapes, initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from model.mel import MelConfig, MelSpectrogram
from model.vocoder import UpSample1d, Vocoder, VocoderConfig, VocoderWithBWE, VocoderWithBWEConfig
from tests.model.helpers import count, fill_with_noise

SMALL = VocoderConfig(channels=32)
PUBLISHED_BWE = VocoderWithBWEConfig()
SMALL_BWE = replace(
    PUBLISHED_BWE,
    vocoder=replace(PUBLISHED_BWE.vocoder, channels=64),
    bwe=replace(PUBLISHED_BWE.bwe, channels=32),
)


def section(config: VocoderConfig) -> dict[str, Any]:
    """Return the published metadata that corresponds to `config`."""
    return {
        "upsample_initial_channel": config.channels,
        "upsample_rates": list(config.upsample_rates),
        "upsample_kernel_sizes": list(config.upsample_kernels),
        "resblock_kernel_sizes": list(config.res_kernels),
        "resblock_dilation_sizes": [list(d) for d in config.res_dilations],
        "resblock": "AMP1" if config.activation == "snakebeta" else "1",
        "activation": "snakebeta" if config.activation == "snakebeta" else "snake",
        "use_tanh_at_final": config.final == "tanh",
        "use_bias_at_final": config.final_bias,
        "output_sampling_rate": config.sample_rate,
        "stereo": True,
    }


def mel(time: int = 10, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(1, 2, time, 64, generator=torch.Generator().manual_seed(1)) * scale


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert count(Vocoder(VocoderConfig())) == 55_592_802
        bwe = VocoderWithBWE(VocoderWithBWEConfig())
    assert (count(bwe.vocoder), count(bwe.bwe_generator), count(bwe)) == (115_075_032, 13_462_416, 128_537_448)


def test_hifi_gan_equals_ltx_core() -> None:
    pytest.importorskip("ltx_core", reason="the published classes are an oracle of the development set-up")
    from ltx_core.model.audio_vae.model_configurator import VocoderConfigurator

    configurator: Any = VocoderConfigurator
    vocoder = Vocoder(SMALL)
    fill_with_noise(vocoder)
    theirs = configurator.from_config({"vocoder": section(SMALL)})
    theirs.load_state_dict(vocoder.state_dict(), strict=True)
    Vocoder(SMALL).load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        wave = vocoder(mel())
        assert wave.shape == (1, 2, 2400)
        assert wave.std() > 0.01
        torch.testing.assert_close(wave, theirs(mel()), atol=1e-5, rtol=0)


def test_bandwidth_extension_equals_ltx_core() -> None:
    pytest.importorskip("ltx_core", reason="the published classes are an oracle of the development set-up")
    from ltx_core.model.audio_vae.model_configurator import VocoderConfigurator

    configurator: Any = VocoderConfigurator
    ours = VocoderWithBWE(SMALL_BWE)
    fill_with_noise(ours)
    config = {
        "vocoder": section(SMALL_BWE.vocoder),
        "bwe": section(SMALL_BWE.bwe)
        | {"input_sampling_rate": 16_000, "n_fft": 512, "hop_length": 80, "num_mels": 64, "win_size": 512},
    }
    theirs = configurator.from_config({"vocoder": config})
    computed = {k: v for k, v in theirs.state_dict().items() if k.endswith("filter")}
    for name, value in computed.items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-6, rtol=0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    VocoderWithBWE(SMALL_BWE).load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        # At the level of speech: full-scale waves of random weights differ by 4e-4 from float64 in either code.
        for generator in (ours.vocoder, ours.bwe_generator, theirs.vocoder, theirs.bwe_generator):
            generator.conv_post.weight.mul_(0.01)
        wave = ours(mel())
        assert wave.shape == (1, 2, 4800)
        assert 0.01 < wave.std() < 0.3
        torch.testing.assert_close(wave, theirs(mel()), atol=1e-5, rtol=0)

        # The limits of the first generator apply exactly.
        ours.vocoder.conv_post.weight.mul_(100)
        theirs.vocoder.conv_post.weight.mul_(100)
        loud = ours.vocoder.double()(mel().double())
        assert (loud.abs() == 1).any()
        torch.testing.assert_close(loud, theirs.vocoder.double()(mel().double()), atol=1e-6, rtol=0)


def test_the_resampler_keeps_a_tone() -> None:
    up = UpSample1d(3, "hann")
    up.reset()
    low, high = torch.arange(1600) / 16_000, torch.arange(4800) / 48_000
    out = up(torch.sin(2 * math.pi * 440 * low)[None, None])[0, 0]
    inside = slice(300, -300)
    torch.testing.assert_close(out[inside], torch.sin(2 * math.pi * 440 * high)[inside], atol=2e-3, rtol=0)


def test_the_computed_mel_of_the_bandwidth_extension_is_a_mel() -> None:
    """A causal frame and a centred one over the same samples have the same magnitudes."""
    vocoder = VocoderWithBWE(SMALL_BWE)
    wave = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    causal = vocoder.mel_stft(wave[0])[0].T
    centred = MelSpectrogram(MelConfig(fft_length=512, hop_length=80))(wave[..., 64:])[0, 0]
    # The middle of causal frame i, which spans [80i − 432, 80i + 80), is 80i − 176; of centred frame j here, 64 + 80j.
    torch.testing.assert_close(causal[10:40], centred[7:37], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("build", "most"),
    [
        (lambda: Vocoder(SMALL), 0.3),
        (lambda: Vocoder(replace(SMALL, channels=256)), 0.3),
        (lambda: VocoderWithBWE(SMALL_BWE), 0.5),
    ],
    ids=["narrow", "wide", "bandwidth extension"],
)
def test_initialisation_is_stable(build: Callable[[], Vocoder | VocoderWithBWE], most: float) -> None:
    torch.manual_seed(0)
    vocoder = build()
    wave = vocoder(mel(20, 3.0) - 6)
    assert 1e-4 < wave.std().item() < most
    wave.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in vocoder.parameters() if p.grad is not None)


def test_everything_computed_comes_back_after_to_empty() -> None:
    whole = VocoderWithBWE(SMALL_BWE)
    with torch.device("meta"):
        other = VocoderWithBWE(SMALL_BWE)
    other = other.to_empty(device="cpu")
    other.init_weights()
    other.load_state_dict(whole.state_dict())
    with torch.no_grad():
        assert torch.equal(other(mel(3)), whole(mel(3)))


def test_the_rate_and_the_configuration_survive_json() -> None:
    assert Vocoder(SMALL).sample_rate == 24_000
    assert VocoderWithBWE(SMALL_BWE).sample_rate == 48_000
    assert VocoderWithBWEConfig(**asdict(SMALL_BWE)) == SMALL_BWE


def test_half_precision_is_refused_at_48_khz() -> None:
    with pytest.raises(ValueError, match=r"float32 only and its weights are bfloat16: call \.float\(\)"):
        VocoderWithBWE(SMALL_BWE).bfloat16()(mel())


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"mel has shape \(1, 2, 64, 10\); expected"):
        Vocoder(SMALL)(mel().transpose(2, 3))
    with pytest.raises(ValueError, match=r"channels = 48 .* nearest valid value is 64"):
        VocoderConfig(channels=48)
    with pytest.raises(ValueError, match="each rate needs its kernel"):
        VocoderConfig(upsample_rates=(6, 5))
    with pytest.raises(ValueError, match=r"make 480 samples per frame; .* takes 240"):
        replace(SMALL_BWE, bwe=replace(SMALL_BWE.bwe, upsample_rates=(6, 5, 2, 2, 4)))
