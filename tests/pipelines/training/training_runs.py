"""Training in this process, and what two runs must have in common to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.settings import TrainSettings
from pipelines.training.driver import train
from pipelines.training.metrics import METRICS, read_metrics
from pipelines.training.tasks.base import Trainee

# What of a record is about time; the rest is what the steps' arithmetic gives.
RATES = frozenset({"samples_per_s", "tokens_per_s", "tflop_per_s", "steps_per_s"})
TIMES = RATES | {"loader_wait", "checkpoint_s", "checkpoint_write_s"}


def exact(output: Path) -> list[dict[str, float]]:
    """What the steps' arithmetic gave."""
    return [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(output / METRICS)]


def mistake(task: str, chosen: TrainSettings, output: Path) -> str:
    """The one line that a run is refused with, before anything is written."""
    with pytest.raises(ValueError, match=r".") as caught:
        train(task, chosen, output)
    assert not output.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def learn(trainee: Trainee, batch: Any, steps: int) -> list[float]:
    """The losses of steps on one batch in this process, by AdamW without weight decay."""
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
    """A copy of all tensors."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that are not what they were, to the bit."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
