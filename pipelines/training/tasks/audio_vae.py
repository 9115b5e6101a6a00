"""Task `audio-vae`: log-mel spectrograms, encoded, sampled and decoded.

Loss: absolute error of the log-mel, of coarser ones (block averages of its magnitudes), of its differences in time and
frequency, and a small KL divergence to N(0, 1). Where it has an adversary: the hinge loss against a PatchGAN on mels,
weighted so that it pulls at the decoder's last layer as hard as reconstruction does (VQGAN, arXiv 2012.09841 §3.1). The
latent statistics are computed at the end, in one pass.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.audio_vae import AudioVAE
from model.modality import patchify_audio
from pipelines.training.flops import forward_flops
from pipelines.training.tasks.base import Dataset, Mean, Task, Trainee, noise_like, per_sample, weight_type
from pipelines.training.tasks.helpers.adaptive_weight import LastLayer
from pipelines.training.tasks.helpers.adversary import Adversary, Discriminators, patch_discriminators
from pipelines.training.tasks.helpers.clips import SoundBatch, SoundClips
from pipelines.training.tasks.helpers.statistics import Moments, spread

COARSER = (2, 4, 8)  # frames and bands of a block
_FLOOR = 1e-5  # the mel's own
DECODE_RATE = 48_000  # Hz; the mel is made from what is resampled from it


class AudioVAETrainee(Trainee):
    def __init__(self, vae: AudioVAE, task: "AudioVAETask") -> None:
        super().__init__()
        self.vae = vae
        self._options, self._seed = task.settings.audio_vae, task.settings.seed
        if self._options.adversary.weight:
            self._last = LastLayer(vae.decoder.conv_out, lambda mel: mel)

    def components(self) -> dict[str, nn.Module]:
        return {"audio_vae": self.vae}

    def forward(
        self, batch: SoundBatch, step: int, adversary: Adversary | None = None
    ) -> tuple[Tensor, dict[str, Mean]]:
        mean, log_variance = self.vae.encode_distribution(batch.mel.to(weight_type(self.vae)))
        log_variance = log_variance.clamp(-30.0, 20.0)
        noise = noise_like(mean, self._seed, batch.ids, step)
        mel = self.vae.decode_raw(mean + noise * (0.5 * log_variance).exp()).float()
        target = batch.mel[:, :, : mel.shape[2]]
        l1 = (mel - target).abs().flatten(1).mean(1)
        edges = sum(
            ((mel.diff(dim=dim) - target.diff(dim=dim)).abs().flatten(1).mean(1) for dim in (2, 3)),
            torch.zeros_like(l1),
        )
        mean, log_variance = mean.float(), log_variance.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
        o = self._options
        coarse = coarse_error(mel, target)
        reconstruction = o.l1 * l1 + o.coarse * coarse + o.gradient * edges
        loss = reconstruction + o.kl * kl
        means = {"loss": loss, "loss/l1": l1, "loss/coarse": coarse, "loss/edges": edges, "loss/kl": kl}
        total, logged = per_sample(loss, batch.weights, means)
        if adversary is None:
            return total, logged
        verdict = adversary.judge(target, mel, batch.weights)
        balance = self._last.balance((batch.weights * reconstruction).mean(), mel, verdict.gradient)
        logged |= verdict.means | {"adaptive_weight": (balance, torch.ones_like(balance))}
        return total + o.adversary.weight * balance * verdict.loss(mel), logged


def coarse_error(x_bctm: Tensor, y_bctm: Tensor) -> Tensor:
    """(B,): mean absolute error of the log-mels of 2, 4 and 8 times fewer frames and bands, their mean.

    What a coarser analysis hears: magnitudes are averaged over blocks, before the logarithm.
    """
    errors = []
    for block in COARSER:
        x, y = (F.avg_pool2d(mel.exp(), block).clamp(min=_FLOOR).log() for mel in (x_bctm, y_bctm))
        errors.append((x - y).abs().flatten(1).mean(1))
    return torch.stack(errors).mean(0)


class AudioVAETask(Task):
    name = "audio-vae"
    uses = ("audio_vae",)

    def dataset(self) -> SoundClips:
        s = self.settings
        return SoundClips(s.input, 4 * s.audio_vae.crop_latents - 3, DECODE_RATE, s.seed, s.cache_mb)

    def build(self, components: dict[str, nn.Module]) -> AudioVAETrainee:
        return AudioVAETrainee(cast(AudioVAE, components["audio_vae"]), self)

    def discriminators(self) -> Discriminators | None:
        return patch_discriminators(self.settings.audio_vae.adversary, dims=2, channels=2)

    def flops(self, trainee: Trainee, batch: SoundBatch) -> float:
        vae = cast(AudioVAETrainee, trainee).vae
        return 3 * forward_flops(vae, tuple(batch.mel.shape), lambda m, x: m.decode_raw(m.encode_distribution(x)[0]))

    def finish(self, trainee: Trainee, dataset: Dataset, rank: int, world: int) -> None:
        vae = cast(AudioVAETrainee, trainee).vae
        data = cast(SoundClips, dataset)
        device = next(vae.parameters()).device
        moments = Moments(vae.config.token_width, device)
        for row, counted in spread(len(data.clips), rank, world, self.settings.statistics_clips):
            mean, _ = vae.encode_distribution(data.whole(row)[0][None].to(device, weight_type(vae)))
            if counted:
                moments.add(patchify_audio(mean)[0].T)
        vae.set_statistics(*moments.mean_and_std())
