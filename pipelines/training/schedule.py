"""The learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

import math
from typing import Any

from pipelines.training.settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then constant, or half a cosine down to `lr` · `final_lr`.

    Args:
        settings: of the optimizer.
        step: counted from 0.
        steps: number of steps of the run.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    done = (step - settings.warmup_steps) / max(1, steps - 1 - settings.warmup_steps)
    return settings.lr * (settings.final_lr + (1 - settings.final_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2)


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of all parameter groups of a DeepSpeed engine."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
