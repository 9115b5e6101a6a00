"""Integrated loudness, ITU-R BS.1770-4, by pyloudnorm: what a listener would call the level of a clip."""

import math
from functools import cache

import numpy as np
import pyloudnorm

BLOCK_S = 0.4  # the standard's gating block; a shorter sound has no integrated loudness
QUIETEST = -70.0  # the standard's absolute gate, LUFS


def loudness(sound: np.ndarray, sample_rate: int) -> float:
    """LUFS of (2, N) samples; −70, the standard's gate, for what is quieter or too short to be measured."""
    if sound.shape[1] <= BLOCK_S * sample_rate:
        return QUIETEST
    with np.errstate(divide="ignore", invalid="ignore"):
        found = float(_meter(sample_rate).integrated_loudness(np.ascontiguousarray(sound.T)))
    return max(QUIETEST, found) if math.isfinite(found) else QUIETEST


@cache
def _meter(sample_rate: int) -> pyloudnorm.Meter:
    return pyloudnorm.Meter(sample_rate)
