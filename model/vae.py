"""Base of the video VAE and of the audio VAE: PixelNorm, latent statistics, and normalisation with the statistics.

The transformer and the losses see normalised latents, (z − mean) / std, with the statistics of the training set
(LTX-2, arXiv 2601.03233 §3); encoders and decoders work on un-normalised latents z.

Shapes (suffixes of the tensors below): b batch, c channels; n entries of the statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pixel_norm(x_bc: Tensor, eps: float) -> Tensor:
    """Divide x (b, c, …) at each position by the root mean square over its channels.

    Source: Karras et al. 2018, arXiv 1710.10196 §4.2. `eps` is added to the mean square.
    """
    return x_bc * torch.rsqrt(x_bc.square().mean(dim=1, keepdim=True) + eps)


class LatentStatistics(nn.Module):
    """Mean and standard deviation of the latents of the training set, each (n,); 0 and 1 until they are set.

    The buffers have the names of the published checkpoints.
    """

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.register_buffer("std-of-means", torch.ones(entries))
        self.register_buffer("mean-of-means", torch.zeros(entries))

    @property
    def mean(self) -> Tensor:
        """Mean of the un-normalised latents, (n,)."""
        return self.get_buffer("mean-of-means")

    @property
    def std(self) -> Tensor:
        """Standard deviation of the un-normalised latents, (n,)."""
        return self.get_buffer("std-of-means")

    def reset(self) -> None:
        """Set the mean to 0 and the standard deviation to 1."""
        self.mean.zero_()
        self.std.fill_(1.0)

    def set(self, mean: Tensor, std: Tensor) -> None:
        """Store measured statistics.

        Args:
            mean: (n,).
            std: (n,), above 0.

        Raises:
            ValueError: a length is wrong, a value is not finite, or a standard deviation is not above 0.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.mean.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; this VAE needs {tuple(self.mean.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds values that are not finite; measure the statistics again")
        if not (std > 0).all():
            raise ValueError("std holds values that are not above 0: a latent channel is dead; train the VAE further")
        self.mean.copy_(mean)
        self.std.copy_(std)


class VAE(nn.Module):
    """Base of both VAEs: `encode` and `decode` use normalised latents, `encode_distribution` and `decode_raw` do not.

    Attributes:
        per_channel_statistics: set by the subclass after its encoder and decoder, because the order of assignment is
            the order of the keys.
        statistics_shape: shape in which the statistics broadcast over a latent; set by the subclass.
    """

    per_channel_statistics: LatentStatistics
    statistics_shape: tuple[int, ...]

    # For training: un-normalised latents

    def encode_distribution(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the un-normalised latent's posterior."""
        raise NotImplementedError

    def decode_raw(self, z: Tensor, /) -> Tensor:
        """Decode an un-normalised latent."""
        raise NotImplementedError

    # For all other uses: normalised latents

    def encode(self, x: Tensor) -> Tensor:
        """Return the normalised mean of the posterior; arguments and errors are those of `encode_distribution`."""
        return self.normalize(self.encode_distribution(x)[0])

    def decode(self, latent: Tensor) -> Tensor:
        """Decode a normalised latent; arguments, result and errors are those of `decode_raw`."""
        return self.decode_raw(self.denormalize(latent))

    def normalize(self, z: Tensor) -> Tensor:
        """Convert an un-normalised latent to a normalised one of the same shape, (z − mean) / std."""
        mean, std = self._statistics(z)
        return (z - mean) / std

    def denormalize(self, latent: Tensor) -> Tensor:
        """Convert a normalised latent to an un-normalised one of the same shape, latent · std + mean."""
        mean, std = self._statistics(latent)
        return latent * std + mean

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the statistics of the un-normalised latents of the training set (see `LatentStatistics.set`)."""
        self.per_channel_statistics.set(mean, std)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation in the type and on the device of `like`, to which they broadcast."""
        statistics, shape = self.per_channel_statistics, self.statistics_shape
        return statistics.mean.to(like).view(shape), statistics.std.to(like).view(shape)
