"""The driver of a training run: `train` checks the user's input, starts the workers, and writes the summary.

Every mistake of the user is found here, before a worker starts. While the workers train (`launch`), the driver passes
the metrics of rank 0 on to the tracking server and the progress display (`relay`).

    <output>/settings.yaml  summary.json  metrics.jsonl
    <output>/checkpoints/   the newest complete checkpoints (see `checkpoint`)
    <output>/weights/       a model folder: the trained components (their moving average) and the given ones
"""

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from data_prep.dataset import storage
from data_prep.loading import batch_plan
from data_prep.settings import differences
from model import COMPONENTS
from model.layouts import open_components
from model.lora import adapter_path
from pipelines.model_folder import model_folder
from pipelines.settings import TrackingSettings
from pipelines.tracking.run import send_unsent, start_run
from pipelines.training import checkpoint
from pipelines.training.launch import run_workers
from pipelines.training.metrics import METRICS, read_metrics
from pipelines.training.relay import Progress, relayed
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.audio_vae import AudioVAETask
from pipelines.training.tasks.base import Dataset, Task
from pipelines.training.tasks.dit import DiTTask
from pipelines.training.tasks.text_projection import TextProjectionTask
from pipelines.training.tasks.upscaler import UpscalerTask
from pipelines.training.tasks.video_vae import VideoVAETask
from pipelines.training.tasks.vocoder import VocoderTask
from pipelines.training.worker import Job

log = logging.getLogger("kinotone.training")

# Settings that may change when a run resumes. After any other change, its curves would mix two different runs.
_MAY_CHANGE = frozenset({"steps", "log_every", "checkpoint", "cache_mb"})
_WORKERS_MAY_CHANGE = frozenset({"count", "cpus", "recompute", "max_failures"})


def tasks() -> dict[str, type[Task]]:
    """Return name → class of every task."""
    known = (DiTTask, TextProjectionTask, VideoVAETask, AudioVAETask, VocoderTask, UpscalerTask)
    return {task.name: task for task in known}


def train(
    task: str,
    settings: TrainSettings,
    output: str | Path,
    tracking: TrackingSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a task, or resume the run in `output`; a finished run is not run again.

    Args:
        task: "dit", "text-projection", "video-vae", "audio-vae", "vocoder" or "upscaler".
        settings: of the run.
        output: folder of checkpoints and final weights.
        tracking: the tracking server; default: an SQLite store in the folder that contains `output`.
        progress: called with (task, steps done, steps) at the start and for each record of metrics.jsonl.

    Returns:
        The content of `<output>/summary.json`: task, steps, losses at the start and the end, throughput, samples.

    Raises:
        ValueError: a mistake of the user, found before any worker starts; says how to fix it.
        RuntimeError: a worker failed; says where and why. The same call resumes.
        KeyboardInterrupt: Ctrl-C. The same call resumes.
    """
    tracking = tracking or TrackingSettings.model_validate({})
    output = storage.local(output).resolve()
    known = tasks()
    if task not in known:
        raise ValueError(f"unknown task {task!r}; choose {', '.join(known)}")
    if not settings.input:
        raise ValueError(f"train.input is not set; train {task} needs {known[task].needs}")
    # Absolute, because a worker has another working directory than the user.
    settings = settings.model_copy(update={"input": storage.absolute(settings.input)})
    chosen = known[task](settings)
    files = component_files(settings.init_from)
    dataset = chosen.dataset()
    workers = settings.workers
    if workers.sequence_parallel > 1 and not chosen.shares_samples:
        able = " and ".join(name for name, kind in known.items() if kind.shares_samples)
        raise ValueError(f"train {task}: train.workers.sequence_parallel is for {able}; set it to 1")
    plan = batch_plan.plan(dataset.buckets, dataset.tokens, settings.batch, seed=settings.seed, world=workers.replicas)
    chosen.validate(dataset, files)
    given = {name: open_components(path, components=[name])[0].identity() for name, path in files.items()}
    _check_resumable(task, settings, output, plan.steps_per_epoch, given)

    summary_path = output / "summary.json"
    if summary_path.exists():
        summary = json.loads(summary_path.read_text())
        if summary["steps"] == settings.steps:
            if progress is not None:
                progress(task, settings.steps, settings.steps)
            send_unsent(tracking, "kinotone", f"train-{task}", output)
            return summary

    output.mkdir(parents=True, exist_ok=True)
    with storage.atomic_write(output / "settings.yaml") as out:
        about = {"task": task, **settings.model_dump(mode="json"), "given": given}
        out.write(yaml.safe_dump(about, sort_keys=False).encode())
    for reason, count in dataset.skipped.items():
        log.warning("train %s: %d clips are not used: %s", task, count, reason)

    began = time.monotonic()
    tags = {"task": task, "dataset": settings.input}
    with start_run(tracking, "kinotone", f"train-{task}", tags, settings.model_dump(mode="json"), output) as run:
        run.dataset(*_lineage(settings.input))
        with relayed(output / METRICS, run, task, settings.steps, progress):
            run_workers(Job(known[task], settings, output, files), run)
        summary = _summary(task, settings, dataset, plan, output, time.monotonic() - began)
        _copy_given(files, output / "weights")
        with storage.atomic_write(summary_path) as out:
            out.write(json.dumps(summary, indent=1).encode())
        run.artifact(output / "settings.yaml")
        run.artifact(summary_path)
    return summary


def component_files(init_from: tuple[str, ...]) -> dict[str, Path]:
    """Return component → its file, or the folder or file that contains it, if it has no file of its own.

    Args:
        init_from: model folders or files. A component of a later one replaces that of an earlier one.

    Raises:
        ValueError: a folder or file does not exist, or contains no weights.
    """
    found: dict[str, Path] = {}
    for given in init_from:
        path = model_folder(Path(given))
        for component in open_components(path):
            file = path / f"{component.name}.safetensors"
            found[component.name] = (file if file.is_file() else path).resolve()
    return {name: found[name] for name in COMPONENTS if name in found}


def _check_resumable(
    task: str, settings: TrainSettings, output: Path, steps_per_epoch: int, given: dict[str, str]
) -> None:
    """Check that the run in `output`, if there is one with a checkpoint, can be resumed.

    Args:
        task: name of the task.
        settings: of the call.
        output: folder of the run.
        steps_per_epoch: of the batch plan.
        given: component → identity of its file.

    Raises:
        ValueError: it is a run with another task, other settings, another set or other given components.
    """
    path = output / "settings.yaml"
    found = checkpoint.latest(output / "checkpoints")
    if found is None or not path.exists():
        return
    held = yaml.safe_load(path.read_text())
    asked = {"task": task, **settings.model_dump(mode="json")}
    for name in _WORKERS_MAY_CHANGE:
        held["workers"][name] = asked["workers"][name]
    fixed = [key for key in asked if key not in _MAY_CHANGE]
    changes = differences({key: held.get(key) for key in fixed}, {key: asked[key] for key in fixed})
    if changes:
        key, before, now = changes[0]
        raise ValueError(
            f"{output} holds a run with another {key} ({before!r}, now {now!r}); choose another output, or remove it"
        )
    # A checkpoint does not contain frozen weights: a resumed run reads them from their file again.
    for name, identity in held.get("given", given).items():
        if given.get(name) != identity:
            raise ValueError(
                f"the {name} of train.init_from is not what {output} was started with; "
                f"give the same, or choose another output"
            )
    step, marker = found
    if marker["steps_per_epoch"] != steps_per_epoch:
        raise ValueError(
            f"{settings.input} has changed since {output} was started "
            f"({marker['steps_per_epoch']} steps per epoch then, {steps_per_epoch} now); choose another output"
        )
    if step > settings.steps:
        raise ValueError(f"{output} is at step {step}, beyond train.steps = {settings.steps}; choose another output")


def _lineage(root: str) -> tuple[str, str, str]:
    """Return name, digest and URI of a set, for the tracking server.

    The digest is that of the set's summary.json, whose counts differ for another set; without one, of the URI.
    """
    try:
        summary = storage.read(storage.at(root, "summary.json"))
    except FileNotFoundError:
        summary = root.encode()
    return root.rsplit("/", 1)[-1], hashlib.sha256(summary).hexdigest()[:16], root


def _summary(
    task: str, settings: TrainSettings, dataset: Dataset, plan: batch_plan.Plan, output: Path, seconds: float
) -> dict[str, Any]:
    """Return the content of summary.json. seconds: duration of this call of `train`."""
    records = read_metrics(output / METRICS)
    part = max(1, len(records) // 10)
    losses = sorted(key for key in records[-1] if key.startswith("loss") and "/sigma" not in key)

    def mean(key: str, chosen: slice) -> float:
        values = [record[key] for record in records if key in record][chosen]
        return sum(values) / len(values)

    return {
        "task": task,
        "steps": settings.steps,
        "samples": plan.samples,
        "skipped_samples": dataset.skipped,
        "repeats_per_epoch": plan.repeats,
        "epochs": settings.steps / plan.steps_per_epoch,
        # Means over the first and the last tenth of the run's records. A loss that begins later (an adversary's) has
        # its mean over as many of its own first records.
        "loss_at_start": {key: mean(key, slice(part)) for key in losses},
        "loss_at_end": {key: mean(key, slice(-part, None)) for key in losses},
        "skipped_steps": int(records[-1]["skipped_steps"]),
        "steps_per_s": mean("steps_per_s", slice(None)),
        "wall_s": round(seconds, 1),
        "weights": str(output / "weights"),
    }


def _copy_given(files: dict[str, Path], folder: Path) -> None:
    """Copy the given components that were not trained to the model folder of the run, so that it is complete.

    Args:
        files: component → the file that it started from.
        folder: <output>/weights, with the trained components.
    """
    from model import weights

    for name, path in files.items():
        target = folder / f"{name}.safetensors"
        if target.exists():
            continue
        if path.name == target.name and not adapter_path(path).is_file():
            with storage.atomic_write(target) as out, path.open("rb") as source:
                shutil.copyfileobj(source, out)
        else:
            weights.convert(path, folder, "kinotone", [name])
