"""Task `audio-vae`: train the audio VAE to encode, sample and decode log-mel spectrograms.

Reconstruction loss: absolute error of the log-mel, of coarser log-mels (averages of its magnitudes over blocks), and of
its differences in time and frequency. The other terms of the loss are in `helpers.vae`.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.audio_vae import AudioVAE
from model.mel import MelConfig
from model.modality import patchify_audio
from pipelines.training.tasks.helpers.adversary import Discriminators, patch_discriminators
from pipelines.training.tasks.helpers.clips import SoundBatch, SoundClips
from pipelines.training.tasks.helpers.errors import edge_error
from pipelines.training.tasks.helpers.vae import VAETask, VAETrainee

COARSER = (2, 4, 8)  # a block of n frames × n mel bands is averaged, for each n
DECODE_RATE = 48_000  # Hz; the waveform is decoded at this rate, then resampled to the mel's


class AudioVAETrainee(VAETrainee):
    """The audio VAE with its loss.

    Args:
        vae: the module to train.
        task: the task of the run.
    """

    def __init__(self, vae: AudioVAE, task: "AudioVAETask") -> None:
        super().__init__("audio_vae", vae, task.settings.audio_vae, task.settings.seed, lambda mel: mel)
        self._options = task.settings.audio_vae

    def input(self, batch: SoundBatch) -> Tensor:
        """Return the log-mel (B, 2, T, 64)."""
        return batch.mel

    def reconstruction(self, decoded: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum (B,) of the log-mel errors, and each error (B,) by its name in the log.

        Args:
            decoded: log-mel (B, 2, T, 64).
            target: log-mel of the same shape.
        """
        o = self._options
        l1 = (decoded - target).abs().flatten(1).mean(1)
        edges = edge_error(decoded, target)
        coarse = coarse_error(decoded, target)
        loss = o.l1 * l1 + o.coarse * coarse + o.gradient * edges
        return loss, {"loss/l1": l1, "loss/coarse": coarse, "loss/edges": edges}


def coarse_error(x_bctm: Tensor, y_bctm: Tensor) -> Tensor:
    """Return (B,): mean absolute error of log-mels with 2, 4 and 8 times fewer frames and bands, mean over the three.

    Magnitudes, not their logarithms, are averaged over blocks, as in a spectrogram with fewer frames and bands.

    Args:
        x_bctm: log-mel (B, C, T, 64).
        y_bctm: log-mel of the same shape.
    """
    errors = []
    for block in COARSER:
        x, y = (F.avg_pool2d(mel.exp(), block).clamp(min=MelConfig.floor).log() for mel in (x_bctm, y_bctm))
        errors.append((x - y).abs().flatten(1).mean(1))
    return torch.stack(errors).mean(0)


class AudioVAETask(VAETask):
    """The task that trains the audio VAE on crops of a curated set's sound."""

    name = "audio-vae"
    uses = ("audio_vae",)

    def dataset(self) -> SoundClips:
        """Open the clips that are at least as long as a crop."""
        s = self.settings
        return SoundClips(s.input, 4 * s.audio_vae.crop_latents - 3, DECODE_RATE, s.seed, s.cache_mb)

    def build(self, components: dict[str, nn.Module]) -> AudioVAETrainee:
        """Build the trainee around the audio VAE."""
        return AudioVAETrainee(cast(AudioVAE, components["audio_vae"]), self)

    def discriminators(self) -> Discriminators | None:
        """Build a PatchGAN for log-mels; None when the adversarial loss has weight 0."""
        return patch_discriminators(self.settings.audio_vae.adversary, dims=2, channels=2)

    def clip(self, dataset: SoundClips, row: int) -> Tensor:
        """Return the log-mel (1, 2, T, 64) of a clip."""
        return dataset.clip_sound(row)[0][None]

    def by_channel(self, latent: Tensor) -> Tensor:
        """Reshape a latent (1, C, t, 16) to (C·16, t), because each channel and band has its own statistics."""
        return patchify_audio(latent)[0].T
