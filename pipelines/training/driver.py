"""`train`: one training run of one task, from the driver's side.

Everything a user can get wrong is checked here, before a worker starts. While the workers train, the driver reads
what rank 0 appends to `<output>/metrics.jsonl` and passes it on to the tracking server and the progress display.

    <output>/settings.yaml  summary.json  metrics.jsonl
    <output>/checkpoints/   the newest whole ones (see `checkpoint`)
    <output>/weights/       a model folder: what was trained (its moving average) and the parts that were given
"""

import hashlib
import json
import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from data_prep.dataset import storage
from data_prep.loading import batch_plan
from data_prep.settings import differences
from model import COMPONENTS
from model.layouts import open_components
from model.lora import adapter_path
from pipelines.background import background_thread
from pipelines.cluster import ray_running
from pipelines.model_folder import model_folder
from pipelines.settings import TrackingSettings
from pipelines.tracking.node_metrics import node_metrics_logged
from pipelines.tracking.run import Run, send_unsent, start_run
from pipelines.training import checkpoint, reshard
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.base import Dataset, Task
from pipelines.training.worker import METRICS, Job, read_metrics, run_worker

log = logging.getLogger("kinotone.training")

Progress = Callable[[str, int, int], None]

# What may change between the runs that share an output; anything else would make the curve two runs' in one.
_MAY_CHANGE = frozenset({"steps", "log_every", "checkpoint", "cache_mb"})
_WORKERS_MAY_CHANGE = frozenset({"count", "cpus", "recompute", "max_failures"})


def tasks() -> dict[str, type[Task]]:
    """The tasks by name."""
    from pipelines.training.tasks.audio_vae import AudioVAETask
    from pipelines.training.tasks.dit import DiTTask
    from pipelines.training.tasks.text_projection import TextProjectionTask
    from pipelines.training.tasks.upscaler import UpscalerTask
    from pipelines.training.tasks.video_vae import VideoVAETask
    from pipelines.training.tasks.vocoder import VocoderTask

    known = (DiTTask, TextProjectionTask, VideoVAETask, AudioVAETask, VocoderTask, UpscalerTask)
    return {task.name: task for task in known}


def train(
    task: str,
    settings: TrainSettings,
    output: str | Path,
    tracking: TrackingSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train, or go on training what `output` holds, or, when it is done, only say so.

    Args:
        task: "dit", "text-projection", "video-vae", "audio-vae", "vocoder" or "upscaler".
        output: folder of checkpoints and final weights.
        progress: called with (task, steps done, steps).

    Returns:
        What stands in `<output>/summary.json`: task, steps, losses at the start and the end, throughput, samples.

    Raises:
        ValueError: the user's mistake, with the mend, before any worker starts.
        RuntimeError: a worker failed; says where and why. The same call resumes.
        KeyboardInterrupt: Ctrl-C. The same call resumes.
    """
    tracking = tracking or TrackingSettings.model_validate({})
    output = storage.local(output).resolve()
    known = tasks()
    if task not in known:
        raise ValueError(f"unknown task {task!r}; choose {', '.join(known)}")
    if not settings.input:
        raise ValueError(f"train.input is not set; train {task} needs {_needs(task)}")
    # Absolute, since a worker's working directory is not the user's.
    settings = settings.model_copy(update={"input": storage.absolute(settings.input)})
    chosen = known[task](settings)
    files = component_files(settings.init_from)
    dataset = chosen.dataset()
    workers = settings.workers
    if workers.sequence_parallel > 1 and not chosen.shares_samples:
        raise ValueError(f"train {task}: train.workers.sequence_parallel is for dit and text-projection; set it to 1")
    plan = batch_plan.plan(dataset.buckets, dataset.tokens, settings.batch, seed=settings.seed, world=workers.replicas)
    chosen.check(dataset, files)
    given = {name: open_components(path, components=[name])[0].identity() for name, path in files.items()}
    _same_run(task, settings, output, plan.steps_per_epoch, given)

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
    with start_run(tracking, "kinotone", f"train-{task}", tags, _params(settings), output) as run:
        run.dataset(*_lineage(settings.input))
        with _following(output / METRICS, run, task, settings.steps, progress):
            _fit(Job(known[task], settings, output, files), task, output, run)
        summary = _summary(task, settings, dataset, plan, output, time.monotonic() - began)
        _copy_given(files, output / "weights")
        with storage.atomic_write(summary_path) as out:
            out.write(json.dumps(summary, indent=1).encode())
        run.artifact(output / "settings.yaml")
        run.artifact(summary_path)
    return summary


def component_files(init_from: tuple[str, ...]) -> dict[str, Path]:
    """Component → where it lies, out of model folders or files; a later one replaces an earlier one's component.

    Raises:
        ValueError: there is no such folder or file, or it holds no weights.
    """
    found: dict[str, Path] = {}
    for given in init_from:
        path = model_folder(Path(given))
        for part in open_components(path):
            own = path / f"{part.name}.safetensors"
            found[part.name] = (own if own.is_file() else path).resolve()
    return {name: found[name] for name in COMPONENTS if name in found}


def _needs(task: str) -> str:
    encoded = task in ("dit", "text-projection")
    return "an encoded set (kinotone encode)" if encoded else "a curated set (kinotone curate)"


def _same_run(task: str, settings: TrainSettings, output: Path, steps_per_epoch: int, given: dict[str, str]) -> None:
    """ValueError where `output` holds another run than the one asked for. given: component → identity of its file."""
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
    # A checkpoint has no frozen weights: they are read from their file again.
    for name, identity in held.get("given", given).items():
        if given.get(name) != identity:
            raise ValueError(
                f"the {name} of train.init_from is not what {output} was begun with; give that, or another output"
            )
    step, said = found
    if said["steps_per_epoch"] != steps_per_epoch:
        raise ValueError(
            f"{settings.input} has changed since {output} was begun ({said['steps_per_epoch']} steps an epoch then, "
            f"{steps_per_epoch} now); choose another output"
        )
    if step > settings.steps:
        raise ValueError(f"{output} is at step {step}, beyond train.steps = {settings.steps}; choose another output")


def _fit(job: Job, task: str, output: Path, run: Run) -> None:
    """Run the workers under Ray Train until they are done."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = job.settings.workers
    interrupted = False
    before = signal.getsignal(signal.SIGINT)
    try:
        with ray_running(workers.count * workers.cpus):
            _check_resources(job)
            _convert(job, task)
            trainer = TorchTrainer(
                run_worker,
                train_loop_config={"job": job},
                torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if workers.gpu else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=_resources(job.settings)
                ),
                # Ray resumes its own state by this name and path; the weights' state is in <output>/checkpoints.
                run_config=RunConfig(
                    name=task,
                    storage_path=str(output / "ray"),
                    failure_config=FailureConfig(max_failures=workers.max_failures),
                ),
            )
            logging.getLogger("ray.train").setLevel(logging.WARNING)
            with node_metrics_logged(run):
                trainer.fit()
    except SystemExit:
        interrupted = True  # Ray's own answer to Ctrl-C
    except ValueError:
        raise
    except Exception as error:
        raise RuntimeError(f"train {task}: {_reason(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
    found = checkpoint.latest(output / "checkpoints")
    if interrupted or found is None or found[0] < job.settings.steps:
        raise KeyboardInterrupt


def _convert(job: Job, task: str) -> None:
    """Where the newest checkpoint is another number of workers', bring it into the form that any number can load."""
    import ray

    workers, root = job.settings.workers, job.output / "checkpoints"
    found = checkpoint.latest(root)
    if found is None or found[1]["world"] == workers.count:
        return
    step, world = found[0], found[1]["world"]
    log.warning("train %s: goes on from step %d with workers.count %d, before %d", task, step, workers.count, world)
    # On a worker's node, for the driver's may be a small one.
    ray.get(ray.remote(num_cpus=workers.cpus)(reshard.convert).remote(root, step, workers.cpus))


def _resources(settings: TrainSettings) -> dict[str, float]:
    gpu = {"GPU": 1.0} if settings.workers.gpu else {}
    return {"CPU": float(settings.workers.cpus), **gpu}


def _check_resources(job: Job) -> None:
    """A worker group that the cluster can never hold would wait for ever."""
    import ray

    count = job.settings.workers.count
    there = ray.cluster_resources()
    for name, each in _resources(job.settings).items():
        if there.get(name, 0) < each * count:
            raise ValueError(
                f"{count} workers need {each * count:g} {name}s, the Ray cluster has {there.get(name, 0):g}; "
                f"lower train.workers.count or train.workers.{name.lower()}s"
            )


def _reason(error: Exception) -> str:
    """The last line of the first worker's error: Ray's own holds every rank's whole traceback."""
    failures = getattr(error, "worker_failures", None) or {}
    text = str(next(iter(failures.values()), error)).strip()
    last = text.splitlines()[-1].strip() if text else type(error).__name__
    rank = f"worker {next(iter(failures))}: " if failures else ""
    return f"{rank}{last}"


@contextmanager
def _following(path: Path, run: Run, task: str, steps: int, progress: Progress | None) -> Iterator[None]:
    """Pass on what is appended to `path`, and each checkpoint that is made, from a thread, until the block ends."""
    root = path.parent / "checkpoints"
    last = max((int(record["step"]) for record in read_metrics(path)), default=0)
    modelled = max(_whole(root), default=0)

    def follow(last: int, modelled: int, ended: threading.Event) -> None:
        logged: dict[int, tuple[dict[str, float], int]] = {}  # the metrics of the last steps, and when they came
        while True:
            ending = ended.wait(0.5)
            for record in read_metrics(path):
                step = int(record["step"])
                # After a resume the file is cut back, and the same steps come again with the same values.
                if step > last:
                    last = step
                    values = {key: value for key, value in record.items() if key != "step"}
                    logged[step] = (values, run.metrics(values, step))
                    if progress is not None:
                        progress(task, step, steps)
            for saved in (step for step in _whole(root) if step > modelled):
                modelled = saved
                values, time_ms = logged.get(saved, ({}, 0))  # none where no step was logged when it was saved
                losses = {key: value for key, value in values.items() if key.startswith("loss")}
                run.model(f"{task}-{saved}", saved, checkpoint.folder(root, saved), losses, time_ms)
                logged = {step: record for step, record in logged.items() if step > saved}
            if ending:
                return

    if progress is not None:
        progress(task, last, steps)
    with background_thread(partial(follow, last, modelled), "follow-metrics"):
        yield


def _whole(root: Path) -> list[int]:
    """The steps of the checkpoints that stand, in order."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in root.glob(f"step-*/{checkpoint.MARKER}"))


def _lineage(root: str) -> tuple[str, str, str]:
    """(name, digest, URI) of a set: the digest is that of its summary, which counts all that it holds."""
    try:
        said = storage.read(storage.at(root, "summary.json"))
    except FileNotFoundError:
        said = root.encode()
    return root.rsplit("/", 1)[-1], hashlib.sha256(said).hexdigest()[:16], root


def _params(settings: TrainSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def _summary(
    task: str, settings: TrainSettings, dataset: Dataset, plan: batch_plan.Plan, output: Path, seconds: float
) -> dict[str, Any]:
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
        # The first and the last tenth of the run; of a loss that joins later, its first ones.
        "loss_at_start": {key: mean(key, slice(part)) for key in losses},
        "loss_at_end": {key: mean(key, slice(-part, None)) for key in losses},
        "skipped_steps": int(records[-1]["skipped_steps"]),
        "steps_per_s": mean("steps_per_s", slice(None)),
        "wall_s": round(seconds, 1),
        "weights": str(output / "weights"),
    }


def _copy_given(files: dict[str, Path], folder: Path) -> None:
    """The parts that were given and not trained, so that `folder` is complete."""
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
