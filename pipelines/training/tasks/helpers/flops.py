"""Floating-point operations of a convolutional model, counted on the meta device, once per input shape."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_COUNTED: dict[tuple[type, tuple[int, ...]], float] = {}


def forward_flops(module: nn.Module, shape: tuple[int, ...], run: Callable[[Any, Tensor], Any]) -> float:
    """Return the number of operations of `run(module, x)`, counted by torch on the meta device.

    Args:
        module: a component with a `config`. The result is stored per class and shape, and not counted again.
        shape: of x.
        run: the call to count, such as the forward.
    """
    key = type(module), shape
    if key not in _COUNTED:
        from torch.utils.flop_counter import FlopCounterMode

        from model.ltx2 import build_component

        # Build a new one from the configuration: the parameters of this module may be partitioned, without a shape.
        config: Any = copy.deepcopy(module.config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(build_component(config, device="meta"), torch.empty(shape, device="meta"))
        _COUNTED[key] = float(counter.get_total_flops())
    return _COUNTED[key]
