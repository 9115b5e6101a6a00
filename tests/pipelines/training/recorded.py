"""The task `dit`, whose workers write down the samples that they train on."""

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
    """Each process appends (step, ids of the samples that count) to a file of its own beside the data."""

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
    """The ids of the samples of some steps, sorted, by what all processes wrote down."""
    found: Counter[str] = Counter()
    for file in data.with_name("seen").iterdir():
        for line in file.read_text().splitlines():
            step, ids = json.loads(line)
            if step in steps:
                found.update(ids)
    return sorted(found.elements())
