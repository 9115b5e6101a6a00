"""Log-mel spectrogram: the input of the audio VAE and the target of its reconstruction.

LTX-2 (arXiv 2601.03233 §3): 16 kHz, FFT and Hann window of 1024 samples, hop 160 (100 frames/s), 64 Slaney mel bands
from 0 to 8 kHz, magnitude (not power), natural logarithm of at least 1e-5; each frame is centred on its hop, with
reflection at both ends.

Slaney mel scale and area normalisation: Slaney, Auditory Toolbox (1998); the `"slaney"` options of librosa and
torchaudio.

Shapes (suffixes of the tensors below): b batch, c audio channels, n samples, t mel frames, m bins.
Waveform (b, c, n) → mel (b, c, t, m), t = 1 + n // hop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MelConfig:
    """Settings of the spectrogram; the defaults are LTX-2's.

    Attributes:
        sample_rate: in Hz; the top band ends at half of it.
        fft_length: length of FFT and window in samples.
        hop_length: distance between two frames in samples.
        bins: number of mel bands.
        floor: smallest magnitude before the logarithm.
    """

    sample_rate: int = 16_000
    fft_length: int = 1024
    hop_length: int = 160
    bins: int = 64
    floor: float = 1e-5

    @property
    def frames_per_second(self) -> float:
        """Mel frames per second."""
        return self.sample_rate / self.hop_length


def _hz_to_mel(hz: Tensor) -> Tensor:
    """Convert Hz to Slaney's mel: linear (200/3 Hz per mel) below 1 kHz, logarithmic (27 mel per factor 6.4) above."""
    linear = hz / (200.0 / 3.0)
    log = 15.0 + torch.log(hz.clamp(min=1e-10) / 1000.0) * (27.0 / math.log(6.4))
    return torch.where(hz >= 1000.0, log, linear)


def _mel_to_hz(mel: Tensor) -> Tensor:
    """Convert Slaney's mel to Hz, the inverse of `_hz_to_mel`."""
    linear = mel * (200.0 / 3.0)
    log = 1000.0 * torch.exp((mel - 15.0) * (math.log(6.4) / 27.0))
    return torch.where(mel >= 15.0, log, linear)


def slaney_filterbank(sample_rate: int, fft_length: int, bins: int) -> Tensor:
    """Return triangular filters, spaced evenly in mel from 0 Hz to half the sample rate, each of area 1 in Hz.

    Args:
        sample_rate: in Hz.
        fft_length: in samples.
        bins: number of filters.

    Returns:
        (fft_length // 2 + 1, bins) float32, computed in float64.
    """
    top = sample_rate / 2
    frequencies = torch.linspace(0.0, top, fft_length // 2 + 1, dtype=torch.float64, device="cpu")
    top_mel = _hz_to_mel(torch.tensor(top, dtype=torch.float64, device="cpu")).item()
    edges = _mel_to_hz(torch.linspace(0.0, top_mel, bins + 2, dtype=torch.float64, device="cpu"))
    width = edges.diff()
    distance = edges[None, :] - frequencies[:, None]
    rising = -distance[:, :-2] / width[:-1]
    falling = distance[:, 2:] / width[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))).float()


class MelSpectrogram(nn.Module):
    """Natural-log mel spectrogram of a waveform."""

    def __init__(self, config: MelConfig | None = None) -> None:
        super().__init__()
        self.config = config or MelConfig()
        # Not persistent: the configuration determines both, so no checkpoint holds them.
        self.register_buffer("window", torch.empty(self.config.fft_length), persistent=False)
        self.register_buffer(
            "filterbank", torch.empty(self.config.fft_length // 2 + 1, self.config.bins), persistent=False
        )
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill the buffers `window` and `filterbank`. Call it after `Module.to_empty`, which leaves them undefined."""
        config = self.config
        self.get_buffer("window").copy_(torch.hann_window(config.fft_length, device="cpu"))
        bank = slaney_filterbank(config.sample_rate, config.fft_length, config.bins)
        self.get_buffer("filterbank").copy_(bank)

    def forward(self, waveform_bcn: Tensor) -> Tensor:
        """Compute the log-mel.

        Args:
            waveform_bcn: (b, c, n).

        Returns:
            (b, c, 1 + n // hop, bins) float32.

        Raises:
            ValueError: the waveform is not 3-D, or shorter than half an FFT window, which reflection needs.
        """
        if waveform_bcn.dim() != 3:
            raise ValueError(f"waveform has shape {tuple(waveform_bcn.shape)}; expected (batch, channels, samples)")
        shortest = self.config.fft_length // 2 + 1
        b, c, n = waveform_bcn.shape
        if n < shortest:
            raise ValueError(f"waveform has {n} samples; the shortest that a mel frame can be made of is {shortest}")
        # float32 for any dtype of the model: half precision loses the quiet bands before the logarithm.
        spectrum = torch.stft(
            waveform_bcn.reshape(b * c, n).float(),
            self.config.fft_length,
            self.config.hop_length,
            window=self.get_buffer("window").float(),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        mel_btm = spectrum.abs().transpose(1, 2) @ self.get_buffer("filterbank").float()
        return mel_btm.clamp(min=self.config.floor).log().unflatten(0, (b, c))
