"""Helpers for training tests: short training in this process, and bit-exact comparison of runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.training.driver import train
from pipelines.training.metrics import METRICS, read_metrics
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.base import Trainee

# Fields of a record that depend on time; all others are exactly reproducible.
RATES = frozenset({"samples_per_s", "tokens_per_s", "tflop_per_s", "steps_per_s"})
TIMES = RATES | {"loader_wait", "checkpoint_s", "checkpoint_write_s"}


def exact(output: Path) -> list[dict[str, float]]:
    """Return the records without what depends on time."""
    return [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(output / METRICS)]


def mistake(task: str, chosen: TrainSettings, output: Path) -> str:
    """Return the one-line error of a run that is rejected before anything is written."""
    with pytest.raises(ValueError, match=r".") as caught:
        train(task, chosen, output)
    assert not output.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def learn(trainee: Trainee, batch: Any, steps: int) -> list[float]:
    """Train on one batch in this process, with AdamW without weight decay; return the losses."""
    trained = [p for p in trainee.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    losses = []
    for step in range(steps):
        loss, _ = trainee(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copy all tensors of a module, by name."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the tensors that changed, compared bit by bit."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
