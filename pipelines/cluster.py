"""Ray for the length of a block: the one that stands, the cluster that RAY_ADDRESS names, or a local one; silent.

And what a run remembers about its workers' deaths, which outlives a worker but not the run.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_running(cpus: int = 0) -> Iterator[None]:
    """Ray as it stands, or a local one (or the cluster that RAY_ADDRESS names) for the length of the block; silent.

    A local Ray has this machine's CPUs, and counts at least `cpus`.

    Worker output stays in Ray's log files: what a run has to say is in verdicts, summaries and exceptions.
    """
    quiet_ray()
    import ray

    started = not ray.is_initialized()
    if started:
        local = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, "num_cpus": max(cpus, _cores())}
        with _stderr_shut():
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **local)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


class Attempts:
    """Pieces of work that were begun and not ended, by how often; one more than that many deaths of the worker.

    Kept by the cluster's control store (Ray's key-value store), so that the next worker sees it. A run that is killed
    takes it along: what died with the driver or with Ray says nothing against a source.
    """

    def __init__(self, run: str) -> None:
        self.run = run

    def count(self, name: str) -> int:
        """How often work on `name` was begun and not ended."""
        from ray.experimental.internal_kv import _internal_kv_get

        return int(_internal_kv_get(f"{self.run}:{name}", namespace=_NAMESPACE) or 0)

    def begin(self, name: str, before: int) -> None:
        """Note that work on `name` begins, after it was begun `before` times and not ended."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(f"{self.run}:{name}", str(before + 1), namespace=_NAMESPACE)

    def end(self, name: str) -> None:
        """Note that work on `name` ended, well or not, with its worker alive."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(f"{self.run}:{name}", namespace=_NAMESPACE)


_NAMESPACE = "kinotone"


@contextmanager
def _stderr_shut() -> Iterator[None]:
    """The process's stderr goes nowhere: Ray's C++ core says there that it was told to be quiet."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def quiet_ray() -> None:
    """Keep Ray's hints off the terminal and its usage report at home; before `import ray`."""
    for key, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        # Ray Data's own actors make the C++ core complain on stderr; what matters arrives as an exception.
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }.items():
        os.environ.setdefault(key, value)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"ray\..*")


def _cores() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
