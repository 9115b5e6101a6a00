"""System metrics of each node of the cluster, logged to the MLflow run while it is open: CPU, memory, disk, network.

MLflow's built-in monitor sends from each node, and stops for the rest of the run when the server does not answer once.
Here the driver asks the nodes, and its records wait for the server. The metric names are MLflow's with the node's name
in front (`system/NODE/cpu_utilization_percentage`), so that MLflow shows them under "System metrics". GPUs are not
measured.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.background import background_thread
from pipelines.tracking.run import Run

EVERY_S = 10.0
_ANSWER_TIMEOUT_S = 5.0


class NodeSampler:
    """A Ray actor that measures the node it runs on."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        psutil.cpu_percent()
        self._network_at_start = psutil.net_io_counters()

    def sample(self) -> dict[str, float]:
        """Measure the node.

        Returns:
            Values by name, in percent or MB (10⁶ bytes). CPU is the mean since the last call; network traffic is the
            total since the actor was created.
        """
        memory, disk = self._psutil.virtual_memory(), self._psutil.disk_usage("/")
        network = self._psutil.net_io_counters()
        return {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "network_receive_megabytes": (network.bytes_recv - self._network_at_start.bytes_recv) / 1e6,
            "network_transmit_megabytes": (network.bytes_sent - self._network_at_start.bytes_sent) / 1e6,
        }


@contextmanager
def node_metrics_logged(run: Run) -> Iterator[None]:
    """Log every node's metrics to `run` each `EVERY_S` seconds while the block runs. Needs a running Ray."""
    with background_thread(lambda ended: _log_until(ended, run), "system-metrics"):
        yield


def _log_until(ended: threading.Event, run: Run) -> None:
    """Measure all nodes and log the values to `run`, every `EVERY_S` seconds until `ended` is set."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    samplers: dict[str, Any] = {}
    start = time.monotonic()
    while not ended.wait(EVERY_S):
        try:
            nodes = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
            for node in nodes.keys() - samplers.keys():
                on_node = NodeAffinitySchedulingStrategy(node, soft=False)
                samplers[node] = ray.remote(NodeSampler).options(num_cpus=0, scheduling_strategy=on_node).remote()
            requests = {samplers[node].sample.remote(): nodes[node] for node in nodes}
            answered, _ = ray.wait(list(requests), num_returns=len(requests), timeout=_ANSWER_TIMEOUT_S)
            for request in answered:
                values = ray.get(request)
                second = round(time.monotonic() - start)
                run.metrics({f"system/{requests[request]}/{name}": value for name, value in values.items()}, second)
        except RayError:
            # The samplers of a dead node are gone. Create all of them again; the run itself handles the dead node.
            samplers.clear()
    for sampler in samplers.values():
        ray.kill(sampler)
