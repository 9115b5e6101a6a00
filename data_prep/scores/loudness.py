"""Measure integrated loudness by ITU-R BS.1770-4: how loud a clip is to a listener.

The filters are those of pyloudnorm. Its own meter is not used, because it takes four times as long.
"""

from functools import cache

import numpy as np
import pyloudnorm
from scipy.signal import sosfilt

from data_prep.media.decode import padded

BLOCK_S = 0.4  # length of the blocks whose levels are averaged; a shorter sound has no integrated loudness
HOPS = 4  # blocks begin every 1/4 block: 100 ms
QUIETEST = -70.0  # the standard ignores quieter blocks, LUFS
RELATIVE_GATE = 10.0  # and blocks that are this much quieter than the mean of the others, LU


def loudness(sound: np.ndarray, sample_rate: int) -> float:
    """Return the loudness of (2, N) samples in LUFS; −70, the standard's minimum, if they are quieter or too short."""
    if sound.shape[1] <= BLOCK_S * sample_rate:
        return QUIETEST
    hop = round(BLOCK_S * sample_rate / HOPS)
    count = round(sound.shape[1] / hop - HOPS) + HOPS  # the last block may be half a hop short
    weighted = padded(np.asarray(sosfilt(_k_weighting(sample_rate), sound)), 0, count * hop).reshape(2, count, hop)
    energy = np.einsum("cnf,cnf->n", weighted, weighted)
    power = np.convolve(energy, np.ones(HOPS), "valid") / (HOPS * hop)
    heard = power[_lufs(power) >= QUIETEST]
    if not len(heard):
        return QUIETEST
    heard = heard[_lufs(heard) > _lufs(heard.mean()) - RELATIVE_GATE]
    return max(QUIETEST, float(_lufs(heard.mean())))


def _lufs(power):
    """Convert the power of filtered sound, summed over channels, to LUFS."""
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-14))


@cache
def _k_weighting(sample_rate: int) -> np.ndarray:
    """Return the standard's filter "K-weighting", a model of head and ear, as second-order sections (2, 6)."""
    stages = pyloudnorm.Meter(sample_rate)._filters.values()
    return np.array([np.concatenate([stage.b, stage.a]) for stage in stages])
