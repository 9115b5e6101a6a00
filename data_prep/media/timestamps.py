"""Compute when pieces of sound begin, from all their timestamps together.

A container may round each timestamp to a millisecond, and some decoders put a single block 10 ms off, while the samples
themselves are continuous. So consecutive pieces form a *run*, which begins at the median of the starts that its pieces
imply. A new run begins only where the timestamps jump and the next piece confirms the jump.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

LEAP_S = 0.0025  # a larger difference between timestamp and sample count is a jump, seconds


@dataclass(frozen=True)
class Run:
    """The pieces with index `first` to `last` − 1, without a gap between them; the first sample is at `begin_s`."""

    begin_s: float
    first: int
    last: int


def runs(times_s: Sequence[float] | np.ndarray, lengths: Sequence[int], rate: int) -> list[Run]:
    """Group consecutive pieces of sound into runs. Return the runs in order.

    Args:
        times_s: timestamp of each piece, seconds.
        lengths: number of samples of each piece.
        rate: samples per second.
    """
    if not len(times_s):
        return []
    before = np.concatenate([[0], np.cumsum(lengths[:-1])]) / rate
    starts = np.asarray(times_s, np.float64) - before  # where the run would begin by the timestamp of this piece alone
    middle = float(np.median(starts))
    if np.abs(starts - middle).max() <= LEAP_S:
        return [Run(middle, 0, len(starts))]
    starts = starts.tolist()  # for a few numbers Python's median is faster than numpy's
    edges, recent = [0], [starts[0]]
    for index in range(1, len(starts)):
        leaps = abs(starts[index] - median(recent)) > LEAP_S
        stays = index + 1 == len(starts) or abs(starts[index + 1] - starts[index]) <= LEAP_S
        if leaps and stays:
            edges.append(index)
            recent = []
        if not leaps or stays:
            recent = [*recent[-15:], starts[index]]
    edges.append(len(starts))
    found = []
    for first, last in pairwise(edges):
        found.append(Run(float(np.median(starts[first:last]) + before[first]), first, last))
    return found
