"""Task `vocoder`: train the vocoder to generate waveforms from log-mel spectrograms.

The input is the log-mel of the clip. In a share of the steps it is what a frozen audio VAE decodes from that log-mel.

Loss: spectral convergence and log-magnitude error at three resolutions (multi-resolution STFT loss, arXiv 1910.11480
§2.2, on the stereo channels and on their sum and difference), and the error of the log-mel. With an adversary: least
squares and feature matching against HiFi-GAN's multi-period and multi-scale discriminators on both stereo channels
together (arXiv 2010.05646 §2.3). A vocoder with bandwidth extension trains its two generators together, with the loss
of the final waveform.
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from model.audio_vae import AudioVAE
from model.discriminators import WaveDiscriminator, WaveDiscriminatorConfig
from model.mel import MelConfig, MelSpectrogram
from model.presets import preset
from model.vocoder import Vocoder, VocoderConfig, VocoderWithBWE, VocoderWithBWEConfig
from pipelines.training.metrics import Mean, per_sample
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.base import Dataset, Task, Trainee
from pipelines.training.tasks.helpers.adversary import Adversary, Discriminators
from pipelines.training.tasks.helpers.clips import SoundBatch, SoundClips
from pipelines.training.tasks.helpers.flops import forward_flops
from pipelines.training.tasks.helpers.frozen import Frozen
from pipelines.training.tasks.helpers.random_draws import generator

# (FFT length, hop), samples.
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))
_FLOOR = 1e-5  # smallest magnitude of which the logarithm is taken


class VocoderTrainee(Trainee):
    """The vocoder with its loss.

    Args:
        vocoder: the module to train.
        audio_vae: encodes and decodes the input mel in a share of the steps; None for never.
        task: the task of the run.
    """

    def __init__(self, vocoder: Vocoder | VocoderWithBWE, audio_vae: AudioVAE | None, task: "VocoderTask") -> None:
        super().__init__()
        self.vocoder = vocoder
        self._audio_vae = None if audio_vae is None else Frozen(audio_vae)
        self._options, self._seed = task.settings.vocoder, task.settings.seed
        # A mel at the sample rate of the output, with bands up to half that rate.
        self._mel = MelSpectrogram(MelConfig(sample_rate=vocoder.sample_rate, hop_length=vocoder.sample_rate // 100))

    def components(self) -> dict[str, nn.Module]:
        """Return the vocoder."""
        return {"vocoder": self.vocoder}

    def forward(
        self, batch: SoundBatch, step: int, adversary: Adversary | None = None
    ) -> tuple[Tensor, dict[str, Mean]]:
        """Generate the waveform of a batch's mel; return its loss and the means to log."""
        o = self._options
        mel_in = self._input_mel(batch.mel, step)
        waveform = self.vocoder(mel_in.to(self.compute_dtype)).float()
        target = batch.waveform[..., : waveform.shape[-1]]
        stft = stft_error(with_sum_and_difference(waveform), with_sum_and_difference(target))
        mel = (self._mel(waveform) - self._mel(target)).abs().flatten(1).mean(1)
        loss = o.stft * stft + o.mel * mel
        total, logged = per_sample(loss, batch.weights, {"loss": loss, "loss/stft": stft, "loss/mel": mel})
        if adversary is None:
            return total, logged
        verdict = adversary.judge(target, waveform, batch.weights)
        return total + o.adversary.weight * verdict.loss(waveform), logged | verdict.means

    @torch.no_grad()
    def _input_mel(self, mel: Tensor, step: int) -> Tensor:
        """Return the mel (B, 2, T, 64), or what the audio VAE decodes from it, up to 3 frames shorter.

        One random draw per step decides for all ranks, so that they run the same shapes.
        """
        if self._audio_vae is None:
            return mel
        if torch.rand((), generator=generator(self._seed, "decoded mels", step)) >= self._options.decoded_fraction:
            return mel
        vae = self._audio_vae.on(mel.device)
        mean, _ = vae.encode_distribution(mel)
        return vae.decode_raw(mean)[:, :, : mel.shape[2]]


def with_sum_and_difference(x_bsn: Tensor) -> Tensor:
    """Convert (B, 2, N) left and right to (B, 4, N): left, right, half their sum, half their difference."""
    left, right = x_bsn.unbind(1)
    return torch.stack([left, right, (left + right) / 2, (left - right) / 2], dim=1)


def stft_error(x_bsn: Tensor, y_bsn: Tensor) -> Tensor:
    """Return (B,): spectral convergence + log-magnitude error of two waveforms, mean over the resolutions.

    Args:
        x_bsn: (B, S, N), the generated waveform.
        y_bsn: (B, S, N), the target.
    """
    total = torch.zeros(x_bsn.shape[0], dtype=x_bsn.dtype, device=x_bsn.device)
    for length, hop in RESOLUTIONS:
        x, y = (_magnitude(side, length, hop) for side in (x_bsn, y_bsn))
        difference = (y - x).flatten(1).norm(dim=1)
        # The norm of a silent target is 0: divide by at least 1, so that the convergence is finite.
        convergence = difference / y.flatten(1).norm(dim=1).clamp(min=1.0)
        logs = (y.clamp(min=_FLOOR).log() - x.clamp(min=_FLOOR).log()).abs().flatten(1).mean(1)
        total = total + convergence + logs
    return total / len(RESOLUTIONS)


def _magnitude(x_bsn: Tensor, length: int, hop: int) -> Tensor:
    """Return the STFT magnitudes (B, S, length / 2 + 1, frames) of (B, S, N) waveforms."""
    window = torch.hann_window(length, device=x_bsn.device, dtype=x_bsn.dtype)
    spectrum = torch.stft(x_bsn.flatten(0, 1), length, hop, window=window, return_complex=True)
    # Add a small value, because the square root has no finite gradient at 0.
    magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-10)
    return magnitude.unflatten(0, x_bsn.shape[:2])


class VocoderTask(Task):
    """The task that trains the vocoder on crops of a curated set's sound."""

    name = "vocoder"
    uses = ("vocoder",)

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__(settings)
        if settings.vocoder.decoded_fraction:
            self.uses = ("vocoder", "audio_vae")

    def dataset(self) -> SoundClips:
        """Open the clips that are at least as long as a crop, decoded at the sample rate of the vocoder's output."""
        s = self.settings
        config = preset(s.preset).vocoder
        rate = config.sample_rate if isinstance(config, VocoderConfig) else config.bwe.sample_rate
        return SoundClips(s.input, s.vocoder.crop_mel_frames, rate, s.seed, s.cache_mb)

    def validate(self, dataset: Dataset, files: dict[str, Path]) -> None:
        """Check that the audio VAE is given if it is needed, and that the vocoder can run in the precision."""
        s = self.settings
        if s.vocoder.decoded_fraction and "audio_vae" not in files:
            raise ValueError(
                f"train vocoder: vocoder.decoded_fraction is {s.vocoder.decoded_fraction} and init_from gives no "
                f"audio_vae; name the audio VAE's model folder, or set the fraction to 0"
            )
        if s.workers.precision == "bf16" and isinstance(preset(s.preset).vocoder, VocoderWithBWEConfig):
            raise ValueError(
                f"preset {s.preset}: a vocoder with bandwidth extension runs in float32 only; "
                f"set workers.precision to fp32"
            )

    def build(self, components: dict[str, nn.Module]) -> VocoderTrainee:
        """Build the trainee from the vocoder and, if it is used, the audio VAE."""
        vocoder = cast(Vocoder | VocoderWithBWE, components["vocoder"])
        return VocoderTrainee(vocoder, cast(AudioVAE | None, components.get("audio_vae")), self)

    def discriminators(self) -> Discriminators | None:
        """Build HiFi-GAN's discriminators; None when the adversarial loss has weight 0."""
        options = self.settings.vocoder.adversary
        if not options.weight:
            return None
        judge = WaveDiscriminator(WaveDiscriminatorConfig(channels=options.channels))
        return Discriminators(judge, "least-squares", options, options.feature_matching)

    def flops(self, trainee: Trainee, batch: SoundBatch) -> float:
        """Count the vocoder, forward and backward."""
        vocoder = cast(VocoderTrainee, trainee).vocoder
        return 3 * forward_flops(vocoder, tuple(batch.mel.shape), lambda m, x: m(x))
