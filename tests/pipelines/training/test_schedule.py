"""The learning rate."""

from itertools import pairwise

import pytest

from pipelines.training.schedule import learning_rate
from pipelines.training.settings import OptimizerSettings


def test_the_learning_rate_warms_up_and_falls():
    settings = OptimizerSettings(lr=1.0, warmup_steps=4, schedule="cosine", final_lr=0.1)
    rates = [learning_rate(settings, step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(OptimizerSettings(lr=2.0, warmup_steps=0, schedule="constant"), 15, 20) == 2.0
