"""Exponential moving average of the weights, kept in fp32 on each rank's own partitions.

The decay warms up as (1 + n) / (10 + n) (as in TensorFlow's ExponentialMovingAverage), so that a short run's average
does not hold on to the random start.
"""

import torch
from torch import Tensor


class MovingAverage:
    """Average of the parts that `local_partitions` gives; `parts` must be the optimizer's own tensors, not copies."""

    def __init__(self, parts: dict[str, Tensor], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._parts = parts
        self.average = {name: part.detach().clone() for name, part in parts.items()}

    @torch.no_grad()
    def update(self) -> None:
        """average ← d · average + (1 − d) · weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, part in self._parts.items():
            self.average[name].lerp_(part, 1 - decay)

    def state(self) -> dict:
        return {"average": self.average, "updates": self.updates}

    def load(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in self.average.items():
            value.copy_(state["average"][name])
