"""Start the workers of a run under Ray Train, and wait until they are done.

Before they start, the newest checkpoint is converted when another number of workers wrote it (`reshard`).
"""

import logging
import signal
import threading

from pipelines.cluster import ray_running
from pipelines.tracking.node_metrics import node_metrics_logged
from pipelines.tracking.run import Run
from pipelines.training import checkpoint, reshard
from pipelines.training.settings import TrainSettings
from pipelines.training.worker import Job, run_worker

log = logging.getLogger("kinotone.training")


def run_workers(job: Job, run: Run) -> None:
    """Start the workers, and return when they have trained until the last step.

    Args:
        job: what every worker gets.
        run: the run to which the metrics of the nodes are logged.

    Raises:
        ValueError: the cluster is too small.
        RuntimeError: a worker failed; says where and why. The same call resumes.
        KeyboardInterrupt: Ctrl-C. The same call resumes.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    task, workers = job.task.name, job.settings.workers
    interrupted = False
    before = signal.getsignal(signal.SIGINT)
    try:
        with ray_running(workers.count * workers.cpus):
            _check_resources(job)
            _reshard(job)
            trainer = TorchTrainer(
                run_worker,
                train_loop_config={"job": job},
                torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if workers.gpu else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=_resources(job.settings)
                ),
                # Ray keeps its own state under this name and path; the training state is in <output>/checkpoints.
                run_config=RunConfig(
                    name=task,
                    storage_path=str(job.output / "ray"),
                    failure_config=FailureConfig(max_failures=workers.max_failures),
                ),
            )
            logging.getLogger("ray.train").setLevel(logging.WARNING)
            with node_metrics_logged(run):
                trainer.fit()
    except SystemExit:
        interrupted = True  # Ray raises it after Ctrl-C
    except ValueError:
        raise
    except Exception as error:
        raise RuntimeError(f"train {task}: {_reason(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
    found = checkpoint.latest(job.output / "checkpoints")
    if interrupted or found is None or found[0] < job.settings.steps:
        raise KeyboardInterrupt


def _reshard(job: Job) -> None:
    """Convert the newest checkpoint to the universal format when another number of workers wrote it."""
    import ray

    workers, root = job.settings.workers, job.output / "checkpoints"
    found = checkpoint.latest(root)
    if found is None or found[1]["world"] == workers.count:
        return
    step, world = found[0], found[1]["world"]
    log.warning("train %s: resumes at step %d with workers.count %d, was %d", job.task.name, step, workers.count, world)
    # On a worker's node, because the driver's node may be small.
    ray.get(ray.remote(num_cpus=workers.cpus)(reshard.convert).remote(root, step, workers.cpus))


def _resources(settings: TrainSettings) -> dict[str, float]:
    """Return what one worker needs: Ray's name of a resource → amount."""
    gpu = {"GPU": 1.0} if settings.workers.gpu else {}
    return {"CPU": float(settings.workers.cpus), **gpu}


def _check_resources(job: Job) -> None:
    """Raise ValueError when the cluster has too few CPUs or GPUs, because Ray would wait for them forever."""
    import ray

    count = job.settings.workers.count
    available = ray.cluster_resources()
    for name, each in _resources(job.settings).items():
        if available.get(name, 0) < each * count:
            raise ValueError(
                f"{count} workers need {each * count:g} {name}s, the Ray cluster has {available.get(name, 0):g}; "
                f"lower train.workers.count or train.workers.{name.lower()}s"
            )


def _reason(error: Exception) -> str:
    """Return a one-line reason: the last line of the first failed worker's error, with the worker's rank.

    Ray's own error is long: it has the traceback of every rank.
    """
    failures = getattr(error, "worker_failures", None) or {}
    text = str(next(iter(failures.values()), error)).strip()
    last = text.splitlines()[-1].strip() if text else type(error).__name__
    rank = f"worker {next(iter(failures))}: " if failures else ""
    return f"{rank}{last}"
