"""`kinotone plan`: print the memory, time and traffic of a recipe on a cluster, or what would make it fit."""

from rich.console import Console
from rich.table import Table

from data_prep.loading.buckets import Bucket
from pipelines.training.budget import GIB, RESERVE_GIB, Budget, Cluster, budget, remedies
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.dit import DiTTask


def show(settings: TrainSettings, buckets: list[Bucket], cluster: Cluster, console: Console) -> None:
    """Print the plan of a training run of task dit.

    Args:
        settings: the training settings of task dit.
        buckets: the buckets of the encoded set.
        cluster: the cluster to plan for.
        console: where to print.

    Raises:
        ValueError: the run does not fit into a GPU's memory; the message names changes that make it fit.
    """
    found = budget(settings, buckets, cluster)
    console.print(
        f"{settings.preset}, task dit, {cluster.nodes} × {cluster.gpus_per_node} {cluster.gpu}, "
        f"ZeRO-{DiTTask(settings).stage}, {settings.workers.precision}: "
        f"{found.trained / 1e9:.3f} G parameters trained, {found.frozen / 1e9:.3f} G frozen"
    )
    console.print(_memory(found))
    console.print(_steps(found, settings, cluster))
    days = found.step_s * settings.steps / 86_400
    console.print(
        f"{settings.steps:,} steps: {days:.1f} days, {days * 24 * cluster.gpus:,.0f} GPU-hours, if all buckets are "
        f"equally frequent, at {100 * cluster.mfu:.0f} % MFU and {cluster.bandwidth:.0f} GB/s per GPU (assumed, not "
        f"measured); without loading, checkpoints and validation"
    )
    if found.total > found.available:
        fixes = list(remedies(settings, buckets, cluster))
        raise ValueError(
            f"plan: needs {found.total / GIB:.1f} GiB per GPU, {cluster.gpu} has {found.available / GIB:.1f} "
            f"({RESERVE_GIB:.0f} are reserved); "
            + (f"what would fit: {'; or '.join(fixes)}" if fixes else "no single change that is known makes it fit")
        )


def _memory(found: Budget) -> Table:
    """Return the table of the memory that a GPU needs, by purpose."""
    table = Table(title="GiB per GPU, for the bucket that needs the most", title_justify="left")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    for name, size in found.memory.items():
        table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("total", f"{found.total / GIB:.2f}")
    table.add_row("available", f"{found.available / GIB:.2f}")
    return table


def _steps(found: Budget, settings: TrainSettings, cluster: Cluster) -> Table:
    """Return the table of what an optimizer step costs, with a row for each bucket."""
    table = Table(title="An optimizer step of each bucket", title_justify="left")
    for name in ("bucket", "clips", "tokens", "PFLOP", "compute s", "traffic s", "step s", "saved GiB"):
        table.add_column(name, justify="left" if name == "bucket" else "right", no_wrap=True)
    for cost in found.buckets:
        count = settings.batch.micro_batches
        table.add_row(
            f"{cost.bucket.frames}×{cost.bucket.height}×{cost.bucket.width}",
            f"{cost.samples * count:,}",
            f"{cost.tokens * count:,}",
            f"{cost.flops / 1e15:.2f}",
            f"{cost.compute_s:.2f}",
            f"{cost.communication_s:.2f}",
            f"{cost.step_s:.2f}",
            f"{cost.activations / GIB:.2f}",
        )
    return table
