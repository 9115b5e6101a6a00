"""Training in this process, or as a real process that is killed, and what two runs must have in common to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.settings import TrainSettings
from pipelines.training.loop import METRICS, read_metrics
from pipelines.training.task import Trainee

_RUN = """
import sys, pathlib
from pipelines.settings import TrainSettings
from pipelines.training.engine import train
train(sys.argv[1], TrainSettings.model_validate_json(pathlib.Path(sys.argv[2]).read_text()), sys.argv[3])
"""


def exact(output: Path) -> list[dict[str, float]]:
    """What the steps' arithmetic gives; the rest of a record is about time."""
    named = ("step", "grad_norm", "lr", "skipped_steps", "psnr_db")
    return [
        {key: value for key, value in record.items() if key in named or key.startswith("loss")}
        for record in read_metrics(output / METRICS)
    ]


def killed(task: str, settings: TrainSettings, output: Path, records: int) -> None:
    """Start a run and SIGKILL its driver and workers once `records` records are written."""
    asked = output.parent / "settings.json"
    asked.write_text(settings.model_dump_json())
    driver = subprocess.Popen(
        [sys.executable, "-c", _RUN, task, str(asked), str(output)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 500
        while len(read_metrics(output / METRICS)) < records:
            assert driver.poll() is None, "the driver ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    _wait_until_still(output)
    assert not (output / "summary.json").exists()


def _wait_until_still(output: Path) -> None:
    """Workers outlive their driver by moments: until nothing has been written for 5 s."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        newest = max(path.stat().st_mtime for path in output.rglob("*") if path.is_file())
        if time.time() - newest > 5:
            return
        time.sleep(0.5)


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
