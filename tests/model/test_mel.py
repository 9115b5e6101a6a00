"""Log-mel spectrogram: definition of the Slaney scale, band of a tone, equality with other implementations."""

from __future__ import annotations

import math

import pytest
import torch

from model.mel import MelConfig, MelSpectrogram, slaney_filterbank


def test_shape_and_floor() -> None:
    mel = MelSpectrogram()(torch.zeros(2, 2, 16_000))
    assert mel.shape == (2, 2, 101, 64)
    torch.testing.assert_close(mel, torch.full_like(mel, math.log(1e-5)))


def test_a_tone_peaks_in_its_band() -> None:
    """1 kHz is mel 15 on the Slaney scale, whose 64 bands end at 8 kHz = mel 45.25: the centre of band 15/45.25·65."""
    time = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * math.pi * 1000 * time)
    mel = MelSpectrogram()(torch.stack([tone, torch.zeros_like(tone)])[None])
    top_mel = 15 + 27 * math.log(8) / math.log(6.4)
    assert mel[0, 0, 50].argmax().item() == round(15 / top_mel * 65) - 1
    assert mel[0, 1].max() < -11


def test_filters_have_area_one() -> None:
    bank = slaney_filterbank(16_000, 65_536, 64)  # fine enough for the sum to be an integral
    area = bank.sum(dim=0) * (8000 / 32_768)
    torch.testing.assert_close(area, torch.ones(64), atol=1e-3, rtol=0)


def test_equals_torchaudio() -> None:
    torchaudio = pytest.importorskip("torchaudio", reason="an independent implementation, not needed to run")
    transform = torchaudio.transforms.MelSpectrogram(
        sample_rate=16_000, n_fft=1024, hop_length=160, n_mels=64, power=1.0, mel_scale="slaney", norm="slaney"
    )
    waveform = torch.randn(2, 2, 12_345, generator=torch.Generator().manual_seed(0)) * 0.1
    theirs = transform(waveform).clamp(min=1e-5).log().transpose(2, 3)
    torch.testing.assert_close(MelSpectrogram()(waveform), theirs, atol=1e-5, rtol=0)


def test_half_precision_input_is_computed_in_float32() -> None:
    waveform = (torch.randn(1, 2, 4000, generator=torch.Generator().manual_seed(0)) * 0.1).bfloat16()
    mel = MelSpectrogram().bfloat16()
    assert mel(waveform).dtype == torch.float32
    assert (mel(waveform) - MelSpectrogram()(waveform.float())).abs().mean() < 0.02


def test_fixed_numbers_stay_out_of_the_state_dict_and_come_back_after_to_empty() -> None:
    mel = MelSpectrogram(MelConfig(fft_length=256, hop_length=64, bins=16))
    assert mel.state_dict() == {}
    with torch.device("meta"):
        other = MelSpectrogram(MelConfig(fft_length=256, hop_length=64, bins=16))
    other = other.to_empty(device="cpu")
    other.init_weights()
    waveform = torch.randn(1, 2, 1000)
    assert torch.equal(mel(waveform), other(waveform))


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 16_000), "expected"), ((1, 2, 512), "512 samples; the shortest .* is 513")]
)
def test_bad_input_is_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelSpectrogram()(torch.zeros(shape))
