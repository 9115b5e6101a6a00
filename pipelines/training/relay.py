"""Pass on what the workers write, metrics and checkpoints, to the tracking server and the progress display.

The driver does this in a thread while the workers train, so that no training step waits for a server.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipelines.background import background_thread
from pipelines.tracking.run import Run
from pipelines.training import checkpoint
from pipelines.training.metrics import read_metrics

Progress = Callable[[str, int, int], None]


@contextmanager
def relayed(path: Path, run: Run, task: str, steps: int, progress: Progress | None) -> Iterator[None]:
    """Send new records of metrics.jsonl and new checkpoints to `run` and `progress`, until the `with` block ends.

    Args:
        path: <output>/metrics.jsonl.
        run: the run at the tracking server.
        task: name of the task.
        steps: number of steps of the run.
        progress: called with (task, steps done, steps) at the start and for each new record; None: not called.
    """
    root = path.parent / "checkpoints"
    last = max((int(record["step"]) for record in read_metrics(path)), default=0)
    last_saved = max(_committed_steps(root), default=0)

    def follow(last: int, last_saved: int, ended: threading.Event) -> None:
        """Read the files every 0.5 s, and once more after `ended` is set."""
        # step → (metrics, time in ms at which they were logged), for the steps since the last checkpoint.
        logged: dict[int, tuple[dict[str, float], int]] = {}
        while True:
            ending = ended.wait(0.5)
            for record in read_metrics(path):
                step = int(record["step"])
                # After a resume, the records after the checkpoint are removed, and come again with the same values.
                if step > last:
                    last = step
                    values = {key: value for key, value in record.items() if key != "step"}
                    logged[step] = (values, run.metrics(values, step))
                    if progress is not None:
                        progress(task, step, steps)
            for saved in (step for step in _committed_steps(root) if step > last_saved):
                last_saved = saved
                values, time_ms = logged.get(saved, ({}, 0))  # empty when that step was not a log step
                losses = {key: value for key, value in values.items() if key.startswith("loss")}
                run.model(f"{task}-{saved}", saved, checkpoint.folder(root, saved), losses, time_ms)
                logged = {step: record for step, record in logged.items() if step > saved}
            if ending:
                return

    if progress is not None:
        progress(task, last, steps)
    with background_thread(partial(follow, last, last_saved), "relay-metrics"):
        yield


def _committed_steps(root: Path) -> list[int]:
    """Return the steps of the checkpoints that have a marker, in ascending order. root: <output>/checkpoints."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in root.glob(f"step-*/{checkpoint.MARKER}"))
