"""What every node of the cluster is doing while a run is on: processor, memory, disk and network, for the run's page.

MLflow has a monitor of its own, which sends from each node and ends for good when the server does not answer once. Here
the driver asks the nodes and its records wait for the server. The names are MLflow's, so that its page draws them under
"System metrics"; a node's name stands in each. GPUs are not among them.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.tracking.run import Run

EVERY_S = 10.0
_ANSWER_S = 5.0


class Node:
    """On one node: what it has done since it was last asked."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        psutil.cpu_percent()
        self._began = psutil.net_io_counters()

    def sample(self) -> dict[str, float]:
        """In percent, and in MB (10⁶ bytes); of the network, since the beginning."""
        memory, disk = self._psutil.virtual_memory(), self._psutil.disk_usage("/")
        now = self._psutil.net_io_counters()
        return {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "network_receive_megabytes": (now.bytes_recv - self._began.bytes_recv) / 1e6,
            "network_transmit_megabytes": (now.bytes_sent - self._began.bytes_sent) / 1e6,
        }


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Ask each node every ten seconds for the length of the block, in which Ray stands; from a thread."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(run, over), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(run: Run, over: threading.Event) -> None:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actors: dict[str, Any] = {}
    began = time.monotonic()
    while not over.wait(EVERY_S):
        try:
            nodes = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
            for node in nodes.keys() - actors.keys():
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                actors[node] = ray.remote(Node).options(num_cpus=0, scheduling_strategy=there).remote()
            asked = {actors[node].sample.remote(): nodes[node] for node in nodes}
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
            for answer in answered:
                found = ray.get(answer)
                second = round(time.monotonic() - began)
                run.metrics({f"system/{asked[answer]}/{name}": value for name, value in found.items()}, second)
        except RayError:
            # A node that dies takes its actor along; the run itself decides what that means.
            actors.clear()
    for actor in actors.values():
        ray.kill(actor)
