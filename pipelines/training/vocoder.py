"""Task `vocoder`: waveforms out of ground-truth log-mel spectrograms.

Loss: spectral convergence and log-magnitude error at three resolutions (multi-resolution STFT loss, arXiv 1910.11480
§2.2, in the stereo channels and in their sum and difference) and the error of the log-mel. The multi-period and
multi-scale discriminators are not here.
"""

from typing import cast

import torch
from torch import Tensor, nn

from model.mel import MelConfig, MelSpectrogram
from model.presets import preset
from model.vocoder import Vocoder, VocoderConfig
from pipelines.training.clips import SoundBatch, SoundClips
from pipelines.training.flops import forward_flops
from pipelines.training.task import Mean, Task, Trainee, per_sample

# FFT length, hop (samples).
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))
_FLOOR = 1e-5


class VocoderTrainee(Trainee):
    def __init__(self, vocoder: Vocoder, task: "VocoderTask") -> None:
        super().__init__()
        self.vocoder = vocoder
        self._options = task.settings.vocoder
        # At the output's rate, up to its own highest frequency.
        self._mel = MelSpectrogram(MelConfig(sample_rate=vocoder.sample_rate, hop_length=vocoder.sample_rate // 100))

    def components(self) -> dict[str, nn.Module]:
        return {"vocoder": self.vocoder}

    def forward(self, batch: SoundBatch, step: int) -> tuple[Tensor, dict[str, Mean]]:
        waveform = self.vocoder(batch.mel)
        stft = stft_error(with_sum_and_difference(waveform), with_sum_and_difference(batch.waveform))
        mel = (self._mel(waveform) - self._mel(batch.waveform)).abs().flatten(1).mean(1)
        loss = self._options.stft * stft + self._options.mel * mel
        return per_sample(loss, batch.weights, {"loss": loss, "loss/stft": stft, "loss/mel": mel})


def with_sum_and_difference(x_bsn: Tensor) -> Tensor:
    """(B, 2, N) left and right → (B, 4, N) left, right, mid, side: what the ear hears of the stereo image."""
    left, right = x_bsn.unbind(1)
    return torch.stack([left, right, (left + right) / 2, (left - right) / 2], dim=1)


def stft_error(x_bsn: Tensor, y_bsn: Tensor) -> Tensor:
    """(B,): spectral convergence + log-magnitude error, mean over the resolutions."""
    total = torch.zeros(x_bsn.shape[0], dtype=x_bsn.dtype, device=x_bsn.device)
    for length, hop in RESOLUTIONS:
        x, y = (_magnitude(side, length, hop) for side in (x_bsn, y_bsn))
        difference = (y - x).flatten(1).norm(dim=1)
        # A silent target has no norm to compare with; the floor keeps its convergence finite.
        convergence = difference / y.flatten(1).norm(dim=1).clamp(min=1.0)
        logs = (y.clamp(min=_FLOOR).log() - x.clamp(min=_FLOOR).log()).abs().flatten(1).mean(1)
        total = total + convergence + logs
    return total / len(RESOLUTIONS)


def _magnitude(x_bsn: Tensor, length: int, hop: int) -> Tensor:
    window = torch.hann_window(length, device=x_bsn.device, dtype=x_bsn.dtype)
    spectrum = torch.stft(x_bsn.flatten(0, 1), length, hop, window=window, return_complex=True)
    # The magnitude has no gradient at 0.
    magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-10)
    return magnitude.unflatten(0, x_bsn.shape[:2])


class VocoderTask(Task):
    name = "vocoder"
    uses = ("vocoder",)

    def dataset(self) -> SoundClips:
        s = self.settings
        config = preset(s.preset).vocoder
        if not isinstance(config, VocoderConfig):
            raise ValueError(
                f"preset {s.preset}: a vocoder with bandwidth extension cannot be trained yet; take another"
            )
        return SoundClips(s.input, s.vocoder.crop_mel_frames, config.sample_rate, s.seed, s.cache_mb)

    def build(self, parts: dict[str, nn.Module]) -> VocoderTrainee:
        return VocoderTrainee(cast(Vocoder, parts["vocoder"]), self)

    def flops(self, trainee: Trainee, batch: SoundBatch) -> float:
        vocoder = cast(VocoderTrainee, trainee).vocoder
        return 3 * forward_flops(vocoder, tuple(batch.mel.shape), lambda m, x: m(x))
