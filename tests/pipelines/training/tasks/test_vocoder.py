"""Task vocoder: its loss."""

import pytest
import torch

from pipelines.training.tasks.vocoder import stft_error


def test_the_stft_error_hears_the_difference():
    t = torch.arange(12000) / 24000
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * t).expand(1, 2, -1)
    assert stft_error(tone, tone).item() == pytest.approx(0, abs=1e-5)
    octave = 0.3 * torch.sin(2 * torch.pi * 880 * t).expand(1, 2, -1)
    assert stft_error(octave, tone) > stft_error(0.9 * tone, tone) > 0
    silence = torch.zeros(1, 2, 12000, requires_grad=True)
    error = stft_error(silence, torch.zeros(1, 2, 12000))
    error.sum().backward()
    assert silence.grad is not None
    assert torch.isfinite(silence.grad).all()
