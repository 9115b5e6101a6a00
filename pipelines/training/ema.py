"""Exponential moving average of the weights, kept in fp32 on each rank's own partitions.

The decay warms up as (1 + n) / (10 + n) (as in TensorFlow's ExponentialMovingAverage), so that a short run's average
does not hold on to the random start.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class MovingAverage:
    """Average of the parts that `local_partitions` gives.

    Args:
        partitions: must be the optimizer's own tensors, not copies.
        spans: where each part lies, as `partitions.spans` gives it.
        decay: in [0, 1).
    """

    def __init__(self, partitions: dict[str, Tensor], spans: dict[str, tuple[int, int]], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._partitions, self._spans = partitions, spans
        self.weights = {name: part.detach().clone() for name, part in partitions.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Average ← d · average + (1 − d) · weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, part in self._partitions.items():
            self.weights[name].lerp_(part, 1 - decay)

    def state(self) -> dict[str, Any]:
        begins = {name: begin for name, (begin, _) in self._spans.items()}
        return {"average": self.weights, "begins": begins, "updates": self.updates}

    def load(self, states: Iterable[dict[str, Any]]) -> None:
        """Take what `state` gave: of this rank, or, where the parts were cut for another number of ranks, of all."""
        missing = {name: self._real(name) for name in self.weights}
        for state in states:
            self.updates = state["updates"]
            for name, weights in self.weights.items():
                if name not in state["average"]:
                    continue  # with ZeRO-1 and 2 a rank may have no part of it
                begin, theirs = state["begins"][name], state["average"][name]
                own = self._spans[name][0]
                start, end = max(begin, own), min(begin + len(theirs), own + len(weights))
                if start < end:
                    weights[start - own : end - own].copy_(theirs[start - begin : end - begin])
                    missing[name] -= max(0, min(end, own + self._real(name)) - start)
        assert not any(missing.values()), f"parts of the average that no rank had: {missing}"

    def _real(self, name: str) -> int:
        """Elements of this rank's part that are the parameter's: ZeRO-3 pads the last."""
        begin, size = self._spans[name]
        return max(0, min(len(self.weights[name]), size - begin))
