"""Training in this process, and what two runs must have in common to the bit."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.training.loop import METRICS, read_metrics
from pipelines.training.task import Trainee


def exact(output: Path) -> list[dict[str, float]]:
    """What the steps' arithmetic gives; the rest of a record is about time."""
    named = ("step", "grad_norm", "lr", "skipped_steps", "psnr_db")
    return [
        {key: value for key, value in record.items() if key in named or key.startswith("loss")}
        for record in read_metrics(output / METRICS)
    ]


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
