"""The task `dit` with workers that record which samples they train on."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipelines.training.metrics import Mean
from pipelines.training.tasks.dit import DiTTask
from pipelines.training.tasks.helpers.diffusion import DiffusionTrainee


class RecordedTrainee(DiffusionTrainee):
    """Appends (step, ids of the samples with a weight) to one file per process, beside the data."""

    def __init__(self, components: dict[str, nn.Module], task: DiTTask) -> None:
        super().__init__(components, task)
        folder = Path(task.settings.input).with_name("seen")
        folder.mkdir(exist_ok=True)
        self._record = folder / f"{os.getpid()}.jsonl"

    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Mean]]:
        ids = [name for name, weight in zip(batch.ids, batch.weights.tolist(), strict=True) if weight]
        with self._record.open("a") as out:
            out.write(json.dumps([step, ids]) + "\n")
        return super().forward(batch, step)


class RecordedDiT(DiTTask):
    def build(self, components: dict[str, nn.Module]) -> RecordedTrainee:
        return RecordedTrainee(components, self)


def seen(data: Path, steps: range) -> list[str]:
    """Return the ids of the samples of some steps, sorted, from the records of all processes."""
    found: Counter[str] = Counter()
    for file in data.with_name("seen").iterdir():
        for line in file.read_text().splitlines():
            step, ids = json.loads(line)
            if step in steps:
                found.update(ids)
    return sorted(found.elements())
