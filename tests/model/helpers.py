"""Helpers of several tests of model/: count parameters, and fill modules with weights that keep a signal alive."""

from collections.abc import Callable

import torch
from torch import nn

from model.vae import LatentStatistics


def count(module: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> int:
    """Count the values of the parameters whose name is wanted."""
    return sum(p.numel() for name, p in module.named_parameters() if wanted(name))


@torch.no_grad()
def fill_with_noise(module: nn.Module, seed: int = 0, vector_std: float = 0.1) -> None:
    """Draw parameters that keep the signal alive at every depth, and latent statistics; computed buffers stay.

    Args:
        module: changed in place.
        seed: of the generator.
        vector_std: standard deviation of biases and other vectors; that of a matrix is 1/√fan_in.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        std = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else vector_std
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    for part in module.modules():
        if isinstance(part, LatentStatistics):
            part.std.copy_(torch.rand(part.std.shape, generator=generator) + 0.5)
            part.mean.copy_(torch.randn(part.mean.shape, generator=generator) * 0.1)
