"""The policy on sounds with known labels; `python -m benchmarks.sound_policy` prints the same figures."""

import numpy as np
import pytest

from benchmarks.sound_policy import measure
from data_prep.synthetic.mixtures import KINDS, RATE, mixture


def test_a_mixture_is_a_function_of_seed_and_index():
    for index in range(len(KINDS)):
        one = mixture(3, index)
        assert one.sound.dtype == np.float32
        assert one.sound.shape[0] == 2
        assert 2 * RATE <= one.sound.shape[1] <= 30 * RATE
        assert np.abs(one.sound).max() <= 1.0
        assert index > 3 or np.array_equal(one.sound, mixture(3, index).sound)
        assert one.informative == (one.sound_class not in ("noise", "silence"))


def test_the_verdict_on_some_mixtures():
    found = measure(19, seed=77)
    assert found["precision"] >= 0.95, found["wrong"]
    assert found["recall"] >= 0.9, found["wrong"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1009, 2027])
def test_precision_and_recall_on_320_mixtures(seed):
    found = measure(320, seed)
    assert found["precision"] >= 0.97, found["wrong"]
    assert found["recall"] >= 0.95, found["wrong"]
