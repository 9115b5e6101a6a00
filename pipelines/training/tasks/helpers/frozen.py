"""A module that a task uses and does not train: it is neither sharded, nor cast, nor saved with what is trained."""

from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Frozen(Generic[M]):
    """Holds a module where torch does not look for submodules, in evaluation mode and without gradients of its own."""

    def __init__(self, module: M) -> None:
        self._module = module.requires_grad_(False).eval()

    def on(self, device: torch.device) -> M:
        """The module on a device, where it then stays."""
        return self._module.to(device)
