"""What `video-vae` and `audio-vae` share: the loss of a variational autoencoder, and its latent statistics.

Loss: reconstruction errors, which each task defines, and the KL divergence to N(0, 1) with a small weight. With an
adversary: also the hinge loss against a PatchGAN, with a weight that gives its gradient at the decoder's last layer the
same norm as the gradient of the reconstruction errors (VQGAN, arXiv 2012.09841 §3.1).
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.audio_vae import AudioVAE
from model.video_vae import VideoVAE
from pipelines.training.metrics import Mean, per_sample
from pipelines.training.settings import AudioVAESettings, VideoVAESettings
from pipelines.training.tasks.base import Dataset, Task, Trainee
from pipelines.training.tasks.helpers.adaptive_weight import LastLayer
from pipelines.training.tasks.helpers.adversary import Adversary
from pipelines.training.tasks.helpers.flops import forward_flops
from pipelines.training.tasks.helpers.random_draws import noise_like
from pipelines.training.tasks.helpers.statistics import Moments, rank_rows


class VAETrainee(Trainee):
    """A VAE with its loss.

    Args:
        name: of the component, "video_vae" or "audio_vae".
        vae: the module to train.
        options: the weights of the losses.
        seed: of the run.
        after: the function from the output of the decoder's last convolution to the decoder's output.
    """

    def __init__(
        self,
        name: str,
        vae: VideoVAE | AudioVAE,
        options: VideoVAESettings | AudioVAESettings,
        seed: int,
        after: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.vae = vae
        self._name, self._kl, self._adversary, self._seed = name, options.kl, options.adversary, seed
        if options.adversary.weight:
            self._last = LastLayer(vae.decoder.conv_out, after)

    def components(self) -> dict[str, nn.Module]:
        """Return the VAE."""
        return {self._name: self.vae}

    @abstractmethod
    def input(self, batch: Any) -> Tensor:
        """Return the tensor (B, C, T, …) of a batch that the VAE encodes."""

    @abstractmethod
    def reconstruction(self, decoded: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted reconstruction error (B,), and name → values (B,) to log.

        Args:
            decoded: what the VAE decoded, (B, C, T, …).
            target: of the same shape.
        """

    def forward(self, batch: Any, step: int, adversary: Adversary | None = None) -> tuple[Tensor, dict[str, Mean]]:
        """Encode, sample and decode the batch; return its loss and the means to log."""
        x = self.input(batch)
        mean, log_variance = self.vae.encode_distribution(x.to(self.compute_dtype))
        log_variance = log_variance.clamp(-30.0, 20.0)
        noise = noise_like(mean, self._seed, batch.ids, step)
        decoded = self.vae.decode_raw(mean + noise * (0.5 * log_variance).exp()).float()
        target = x[:, :, : decoded.shape[2]]  # the audio decoder returns up to 3 frames fewer
        reconstruction, means = self.reconstruction(decoded, target)
        mean, log_variance = mean.float(), log_variance.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
        loss = reconstruction + self._kl * kl
        total, logged = per_sample(loss, batch.weights, means | {"loss": loss, "loss/kl": kl})
        if adversary is None:
            return total, logged
        verdict = adversary.judge(target, decoded, batch.weights)
        weight = self._last.balance((batch.weights * reconstruction).mean(), decoded, verdict.gradient)
        logged |= verdict.means | {"adaptive_weight": (weight, torch.ones_like(weight))}
        return total + self._adversary.weight * weight * verdict.loss(decoded), logged


class VAETask(Task):
    """A task that trains a VAE. At the end it computes the mean and standard deviation of the latents over the set."""

    def flops(self, trainee: Trainee, batch: Any) -> float:
        """Count encoder and decoder, forward and backward."""
        trainee = cast(VAETrainee, trainee)
        shape = tuple(trainee.input(batch).shape)
        return 3 * forward_flops(trainee.vae, shape, lambda m, x: m.decode_raw(m.encode_distribution(x)[0]))

    @abstractmethod
    def clip(self, dataset: Any, row: int) -> Tensor:
        """Return the complete clip of a row as input of the encoder, (1, C, T, …)."""

    @abstractmethod
    def by_channel(self, latent: Tensor) -> Tensor:
        """Reshape a latent to (C, N), N values for each of the C channels that have statistics of their own."""

    def finish(self, trainee: Trainee, dataset: Dataset, rank: int, world: int) -> None:
        """Store mean and standard deviation of the latents of at most `statistics_clips` clips in the VAE.

        Every rank calls it.
        """
        vae, data = cast(VAETrainee, trainee).vae, cast(Any, dataset)
        moments = Moments(vae.per_channel_statistics.mean.numel(), next(vae.parameters()).device)
        for row, counted in rank_rows(len(data.clips), rank, world, self.settings.statistics_clips):
            mean, _ = vae.encode_distribution(self.clip(data, row).to(moments.device, trainee.compute_dtype))
            if counted:
                moments.add(self.by_channel(mean))
        vae.set_statistics(*moments.mean_and_std())
