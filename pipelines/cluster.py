"""Ray for the duration of a block of code, and counts of attempts that are not lost when a worker dies."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.quiet import quiet_ray, stderr_discarded

_NAMESPACE = "kinotone"


@contextmanager
def ray_running(cpus: int = 0) -> Iterator[None]:
    """Provide Ray inside the block: the running one, else the cluster that RAY_ADDRESS names, else a local one.

    Ray is shut down after the block only if it was started here. Worker output stays in Ray's log files.

    Args:
        cpus: a local Ray is told that it has at least this number of CPUs, even where this machine has fewer.
    """
    quiet_ray()
    import ray

    started = not ray.is_initialized()
    if started:
        on_cluster = bool(os.environ.get("RAY_ADDRESS"))
        local = {} if on_cluster else {"include_dashboard": False, "num_cpus": max(cpus, _usable_cpus())}
        with stderr_discarded():
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
    """The number of attempts on each segment that began and did not end, because the worker died.

    The counts are in the cluster's control store (Ray's key-value store), so that the next worker sees them. They are
    lost when the driver or Ray dies, as they should be: no segment caused that.

    Args:
        run: a unique name of the run; counts of other runs are not seen.
    """

    def __init__(self, run: str) -> None:
        self.run = run

    def count(self, name: str) -> int:
        """Return the number of attempts on the segment `name` that began and did not end."""
        from ray.experimental.internal_kv import _internal_kv_get

        return int(_internal_kv_get(f"{self.run}:{name}", namespace=_NAMESPACE) or 0)

    def begin(self, name: str, before: int) -> None:
        """Record that an attempt on the segment `name` begins; `before` is what `count` returned for it."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(f"{self.run}:{name}", str(before + 1), namespace=_NAMESPACE)

    def end(self, name: str) -> None:
        """Record that the attempt on `name` ended and the worker is alive. This sets its count to 0."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(f"{self.run}:{name}", namespace=_NAMESPACE)


def _usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
