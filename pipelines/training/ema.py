"""Exponential moving average (EMA) of the weights, in fp32, on the partitions of each rank.

The decay after n updates is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage, so that the
average of a short run is not dominated by the random start.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class MovingAverage:
    """The moving average of this rank's fp32 partitions.

    Args:
        partitions: from `partitions.local_partitions`: the tensors that the optimizer updates, not copies.
        spans: from `partitions.spans`: where each partition begins in its parameter, and the parameter's size.
        decay: in [0, 1).

    Attributes:
        weights: parameter name → the average.
        updates: number of updates so far.
    """

    def __init__(self, partitions: dict[str, Tensor], spans: dict[str, tuple[int, int]], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._partitions, self._spans = partitions, spans
        self.weights = {name: part.detach().clone() for name, part in partitions.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Set average ← d · average + (1 − d) · weights, with the smaller of `decay` and (1 + n) / (10 + n) as d."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, part in self._partitions.items():
            self.weights[name].lerp_(part, 1 - decay)

    def state(self) -> dict[str, Any]:
        """Return this rank's average, where its partitions begin, and the number of updates, for a checkpoint."""
        begins = {name: begin for name, (begin, _) in self._spans.items()}
        return {"average": self.weights, "begins": begins, "updates": self.updates}

    def load(self, states: Iterable[dict[str, Any]]) -> None:
        """Restore the average from what `state` returned.

        Args:
            states: this rank's state; when the world size changed, those of all ranks that wrote the checkpoint.
        """
        missing = {name: self._unpadded(name) for name in self.weights}
        for state in states:
            self.updates = state["updates"]
            for name, weights in self.weights.items():
                if name not in state["average"]:
                    continue  # with ZeRO-1 and 2 a rank may have no element of a parameter
                begin, saved = state["begins"][name], state["average"][name]
                ours = self._spans[name][0]
                start, end = max(begin, ours), min(begin + len(saved), ours + len(weights))
                if start < end:
                    weights[start - ours : end - ours].copy_(saved[start - begin : end - begin])
                    missing[name] -= max(0, min(end, ours + self._unpadded(name)) - start)
        assert not any(missing.values()), f"elements of the average that no rank saved: {missing}"

    def _unpadded(self, name: str) -> int:
        """Return the number of elements of this rank's partition, without the padding of the last one (ZeRO-3).

        Args:
            name: of the parameter.
        """
        begin, size = self._spans[name]
        return max(0, min(len(self.weights[name]), size - begin))
