"""Mean and standard deviation of latents over a data set, in one pass over all ranks."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


class Moments:
    """Running sums of the values of C channels, and of their squares, in float64: the input of mean and deviation."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.device = device
        self._sums = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self._count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, values_cn: Tensor) -> None:
        """Add N values of each channel. values_cn: (C, N)."""
        values_cn = values_cn.double()
        self._sums += torch.stack([values_cn.sum(1), values_cn.square().sum(1)])
        self._count += values_cn.shape[1]

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation over all ranks' values, (C,) float32 each; every rank calls it.

        The deviation is at least 1e-3, for channels that are constant.
        """
        dist.all_reduce(self._sums)
        dist.all_reduce(self._count)
        mean, square = self._sums / self._count
        return mean.float(), (square - mean.square()).clamp(min=1e-6).sqrt().float()


def rank_rows(samples: int, rank: int, world: int, limit: int) -> Iterator[tuple[int, bool]]:
    """Divide at most `limit` rows, spaced evenly over the samples, among the ranks.

    Args:
        samples: number of samples in the set.
        rank: of this process.
        world: number of ranks.
        limit: largest number of rows.

    Yields:
        (row, counts) for each row of this rank. Every rank gets the same number of rows, because all ranks must run the
        same modules. If there are too few rows for this, some ranks get the last row again, with counts = False.
    """
    taken = min(samples, limit)
    rows = [i * samples // taken for i in range(taken)]
    for start in range(0, taken, world):
        at = start + rank
        yield (rows[at], True) if at < taken else (rows[-1], False)
