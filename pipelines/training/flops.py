"""Floating-point operations of a convolutional model, counted once per input shape on shapes alone."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_COUNTED: dict[tuple[type, tuple[int, ...]], float] = {}


def forward_flops(module: nn.Module, shape: tuple[int, ...], run: Callable[[Any, Tensor], Any]) -> float:
    """FLOPs of `run(module, x)` for an x of `shape`, by torch's counter on the meta device."""
    key = type(module), shape
    if key not in _COUNTED:
        from torch.utils.flop_counter import FlopCounterMode

        from model.ltx2 import build_component

        # Built anew from its configuration: the module at hand may be partitioned, without its shapes.
        config: Any = copy.deepcopy(module.config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(build_component(config, device="meta"), torch.empty(shape, device="meta"))
        _COUNTED[key] = float(counter.get_total_flops())
    return _COUNTED[key]
