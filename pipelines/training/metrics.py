"""The numbers of a training run: the loss of a batch, means over steps and ranks, rates, and the file metrics.jsonl.

Losses stay on the device between log steps, so that no step waits for the host. At a log step `Means.take` reduces
them over all ranks, and rank 0 appends one line to `<output>/metrics.jsonl`. The driver reads that file.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

METRICS = "metrics.jsonl"

# A mean to log: (sum, count), each of shape () or (n,). `Means` adds them up over micro-batches, steps and ranks.
Mean = tuple[Tensor, Tensor]


def per_sample(loss: Tensor, weights: Tensor, means: dict[str, Tensor]) -> tuple[Tensor, dict[str, Mean]]:
    """Reduce per-sample values to the return value of `Trainee.forward`.

    Args:
        loss: (B,), the loss of each sample.
        weights: (B,), the loss weights of the batch; 0 for a repeated sample.
        means: values to log, (B,) each, by name.

    Returns:
        The weighted mean loss (), and the means over the samples with a weight above 0.
    """
    real = (weights > 0).float()
    # The value of a repeat (weight 0) may be infinite, and 0 · inf would make the sum NaN.
    logged = {name: (torch.where(real > 0, value, 0.0).sum(), real.sum()) for name, value in means.items()}
    return (weights * loss).mean(), logged


def gradient_norm(engine: Any) -> Mean:
    """Return the gradient norm of a DeepSpeed engine's last optimizer step, as a mean to log with count 1."""
    norm = torch.as_tensor(engine.get_global_grad_norm(), dtype=torch.float32, device=engine.device)
    return norm, torch.ones_like(norm)


class Means:
    """The means to log: running sums and counts by name, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, means: dict[str, Mean]) -> None:
        """Add to the running sums and counts. An entry whose sum is not finite is left out, with its count."""
        for name, (total, count) in means.items():
            total, count = total.detach().double(), count.detach().double()
            finite = torch.isfinite(total)
            total, count = torch.where(finite, total, 0.0), torch.where(finite, count, 0.0)
            if name in self._sums:
                before, number = self._sums[name]
                total, count = before + total, number + count
            self._sums[name] = (total, count)

    def take(self) -> dict[str, float]:
        """Return name → mean over all ranks since the last call, and start new sums.

        Every rank calls it; it waits for the device. A name whose count is 0 is left out. A mean of shape (n,) gets the
        names name/0, name/1, …
        """
        names = sorted(self._sums)
        if not names:
            return {}
        flat = torch.cat([torch.stack(self._sums[name]).reshape(2, -1) for name in names], dim=1)
        sizes = [self._sums[name][0].numel() for name in names]
        dist.all_reduce(flat)
        totals, counts = flat.cpu().tolist()
        self._sums.clear()
        found: dict[str, float] = {}
        at = 0
        for name, size in zip(names, sizes, strict=True):
            for i in range(size):
                if counts[at + i]:
                    found[name if size == 1 else f"{name}/{i}"] = totals[at + i] / counts[at + i]
            at += size
        return found

    def state(self) -> dict[str, list[Tensor]]:
        """Return the running sums, for a checkpoint."""
        return {name: list(pair) for name, pair in self._sums.items()}

    def load(self, states: list[dict[str, list[Tensor]]], among: int) -> None:
        """Restore the running sums from what `state` returned.

        When the world size changed, every rank loads the total of all old ranks, divided by the number of new ranks.

        Args:
            states: this rank's state; when the world size changed, those of all ranks that wrote the checkpoint.
            among: number of ranks that load the same states; 1 when the world size is the same.
        """
        for name in states[0]:
            total, count = (torch.stack([state[name][i] for state in states]).sum(0) / among for i in (0, 1))
            self._sums[name] = (total.to(self.device), count.to(self.device))


class Throughput:
    """Counts of the work since the last log step; `take` returns them as rates. The loop adds to the attributes.

    Attributes:
        samples: samples of all ranks, without repeats.
        tokens: tokens of these samples.
        flops: floating-point operations of all ranks.
        saving_s: seconds that the loop waited while checkpoints were copied; they do not count in the rates.
    """

    def __init__(self) -> None:
        self._waited_s = 0.0
        self._since = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        """Set all counts to 0."""
        self.samples = self.tokens = 0
        self.flops = self.saving_s = 0.0

    def take(self, steps: int, waited_s: float) -> dict[str, float]:
        """Return the rates since the last call, and start new counts.

        Args:
            steps: number of steps between two log steps.
            waited_s: seconds that the loop has waited for the loader since the start of the run.
        """
        now = time.perf_counter()
        seconds = now - self._since - self.saving_s
        rates = {
            "samples_per_s": self.samples / seconds,
            "tokens_per_s": self.tokens / seconds,
            "tflop_per_s": self.flops / seconds / 1e12,
            "steps_per_s": steps / seconds,
            "loader_wait": (waited_s - self._waited_s) / seconds,
            "checkpoint_s": self.saving_s,
        }
        self._since, self._waited_s = now, waited_s
        self._clear()
        return rates


class MetricsFile:
    """The file metrics.jsonl, opened to append records.

    Args:
        path: of the file. It need not exist.
        start: the step from which the run resumes; records of later steps are removed first.
    """

    def __init__(self, path: Path, start: int) -> None:
        lines = read_metrics(path)
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= start)
        half = path.with_name(f".{path.name}")
        half.write_text(kept)
        half.replace(path)
        self._file = path.open("a")

    def write(self, step: int, record: dict[str, float]) -> None:
        """Append one record and flush it to the disk."""
        # Python writes a float in the shortest form that is read back as exactly the same number.
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the records of a metrics.jsonl, without an incomplete last line; [] if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
