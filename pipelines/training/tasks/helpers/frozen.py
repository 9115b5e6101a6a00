"""A module that a task uses but does not train; DeepSpeed does not shard, cast or save it."""

from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Frozen(Generic[M]):
    """A wrapper that is no `nn.Module`, so that torch does not register the module inside it as a submodule.

    Args:
        module: is set to evaluation mode, and its parameters to need no gradients.
    """

    def __init__(self, module: M) -> None:
        self._module = module.requires_grad_(False).eval()

    def on(self, device: torch.device) -> M:
        """Move the module to a device and return it."""
        return self._module.to(device)
