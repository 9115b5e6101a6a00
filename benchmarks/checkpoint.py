"""Measure how long training blocks for a checkpoint, and how long the checkpoint takes until it is complete.

    python -m benchmarks.checkpoint --width 2048 --layers 8 --saves 5

Two worker processes train a stack of linear layers with AdamW under DeepSpeed ZeRO-3 (gloo, fp32, on the CPU). They
save with `pipelines.training.checkpoint.Writer`, as the training loop does: fp32 weights, both moments and the moving
average, 16 bytes per parameter over both ranks. The first save also allocates the memory for its copies, so it is
reported separately. After a save the ranks wait until the checkpoint is complete; when steps run at the same time,
writing takes longer.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from pipelines.training.checkpoint import Writer
from pipelines.training.deepspeed import start_engine
from pipelines.training.ema import MovingAverage
from pipelines.training.partitions import local_partitions, spans
from pipelines.training.settings import TrainSettings

WORLD = 2


def work(rank: int, options: argparse.Namespace, root: str) -> None:
    """The process of one rank: train, save and measure. Rank 0 prints."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    dist.init_process_group("gloo", init_method=f"file://{root}/group", rank=rank, world_size=WORLD)
    module = nn.Sequential(*(nn.Linear(options.width, options.width) for _ in range(options.layers)))
    settings = TrainSettings()
    start = partial(start_engine, stage=3, settings=settings, device=torch.device("cpu"))
    engine = start(module, settings.optimizer, precision="fp32", load_universal=False)
    average = MovingAverage(local_partitions(engine.module), spans(engine.module), 0.99)
    folder = Path(root) / "checkpoints"
    writer = Writer(folder, {"": engine}, {}, keep=1)

    def step() -> None:
        loss = engine(torch.randn(4, options.width)).square().mean()
        engine.backward(loss)
        engine.step()
        average.update()

    step()
    rows = []
    for number in range(options.saves + 1):
        dist.barrier()
        began = time.perf_counter()
        writer.save(number, {"average": average.state()})
        blocked_s = time.perf_counter() - began
        writer.wait()
        step()
        rows.append((blocked_s, writer.write_s))
    if rank == 0:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        parameters = sum(p.ds_numel for p in engine.module.parameters())
        print(f"{parameters / 1e6:.1f} M parameters, {WORLD} ranks, {size / 2**20:.0f} MiB a checkpoint")
        for name, (blocked_s, write_s) in zip(("first", *["later"] * options.saves), rows, strict=True):
            share = 100 * blocked_s / write_s
            print(f"{name}: blocked for {blocked_s:.3f} s, complete after {write_s:.3f} s: {share:.1f} %")
        blocked, written = zip(*rows[1:], strict=True)
        shares = [100 * blocked_s / write_s for blocked_s, write_s in rows[1:]]
        print(
            f"medians after the first: {statistics.median(blocked):.3f} s of {statistics.median(written):.3f} s, "
            f"{statistics.median(shares):.1f} %"
        )


def main() -> None:
    """Parse the arguments and start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--saves", type=int, default=5, help="measured saves, after the first")
    parser.add_argument("--folder", default=None, help="where the checkpoints are written; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        ranks = [
            multiprocessing.get_context("spawn").Process(target=work, args=(n, options, root)) for n in range(WORLD)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()


if __name__ == "__main__":
    main()
