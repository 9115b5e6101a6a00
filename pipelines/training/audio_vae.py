"""Task `audio-vae`: log-mel spectrograms, encoded, sampled and decoded.

Loss: absolute error of the log-mel, of its differences in time and frequency, and a small KL divergence to N(0, 1).
The mel discriminator is not here. The latent statistics are computed at the end, in one pass.
"""

from typing import cast

import torch
from torch import Tensor, nn

from model.audio_vae import AudioVAE
from model.modality import patchify_audio
from pipelines.training.clips import SoundBatch, SoundClips
from pipelines.training.flops import forward_flops
from pipelines.training.statistics import Moments, spread
from pipelines.training.task import Dataset, Mean, Task, Trainee, noise_like, per_sample

DECODE_RATE = 48_000  # Hz; the mel is made from what is resampled from it


class AudioVAETrainee(Trainee):
    def __init__(self, vae: AudioVAE, task: "AudioVAETask") -> None:
        super().__init__()
        self.vae = vae
        self._options, self._seed = task.settings.audio_vae, task.settings.seed

    def components(self) -> dict[str, nn.Module]:
        return {"audio_vae": self.vae}

    def forward(self, batch: SoundBatch, step: int) -> tuple[Tensor, dict[str, Mean]]:
        mean, log_variance = self.vae.encode_distribution(batch.mel)
        log_variance = log_variance.clamp(-30.0, 20.0)
        noise = noise_like(mean, self._seed, batch.ids, step)
        mel = self.vae.decode_raw(mean + noise * (0.5 * log_variance).exp())
        target = batch.mel[:, :, : mel.shape[2]]
        l1 = (mel - target).abs().flatten(1).mean(1)
        edges = sum(
            ((mel.diff(dim=dim) - target.diff(dim=dim)).abs().flatten(1).mean(1) for dim in (2, 3)),
            torch.zeros_like(l1),
        )
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
        o = self._options
        loss = o.l1 * l1 + o.gradient * edges + o.kl * kl
        return per_sample(loss, batch.weights, {"loss": loss, "loss/l1": l1, "loss/edges": edges, "loss/kl": kl})


class AudioVAETask(Task):
    name = "audio-vae"
    uses = ("audio_vae",)

    def dataset(self) -> SoundClips:
        s = self.settings
        return SoundClips(s.input, 4 * s.audio_vae.crop_latents - 3, DECODE_RATE, s.seed, s.cache_mb)

    def build(self, parts: dict[str, nn.Module]) -> AudioVAETrainee:
        return AudioVAETrainee(cast(AudioVAE, parts["audio_vae"]), self)

    def flops(self, trainee: Trainee, batch: SoundBatch) -> float:
        vae = cast(AudioVAETrainee, trainee).vae
        return 3 * forward_flops(vae, tuple(batch.mel.shape), lambda m, x: m.decode_raw(m.encode_distribution(x)[0]))

    def finish(self, trainee: Trainee, dataset: Dataset, rank: int, world: int) -> None:
        vae = cast(AudioVAETrainee, trainee).vae
        data = cast(SoundClips, dataset)
        device = next(vae.parameters()).device
        moments = Moments(vae.config.token_width, device)
        for row, counted in spread(len(data.clips), rank, world, self.settings.statistics_clips):
            mean, _ = vae.encode_distribution(data.whole(row)[0][None].to(device))
            if counted:
                moments.add(patchify_audio(mean)[0].T)
        vae.set_statistics(*moments.mean_and_std())
