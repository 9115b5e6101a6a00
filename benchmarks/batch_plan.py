"""Measure the time and memory that all ranks of a node need to plan their first batch from a large index.

`python -m benchmarks.batch_plan [--samples 10000000] [--ranks 8]`

The benchmark writes an index of random clips as `encode` would (40 samples per shard, twelve buckets). Then one process
per rank starts, all at the same time. Each reads the index, plans, and looks up the byte ranges of its first
micro-batch. This is measured twice: before and after the machine has cached the index.

It prints the seconds until the last process is done, and the peak of the processes' total memory beyond their imports
(proportional set size, which counts shared memory once). `torch` is imported before the clock starts.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dataset.index import INDEX_SCHEMA
from pipelines.background import background_thread

ROWS_PER_WRITE = 1 << 20
PER_SHARD = 40
BUCKETS = [f"f{f}_h{h}_w{w}_a{a}" for f, a in ((121, 126), (241, 251)) for h, w in
           ((512, 768), (768, 512), (640, 640), (352, 544), (544, 352), (448, 448))]  # fmt: skip


def write_index(root: Path, samples: int) -> None:
    """Write `<root>/index.parquet`, `ROWS_PER_WRITE` rows at a time."""
    random = np.random.default_rng(0)

    def names(count: int) -> list[str]:
        text = random.bytes(10 * count).hex()
        return [text[at : at + 20] for at in range(0, len(text), 20)]

    with pq.ParquetWriter(root / "index.parquet", INDEX_SCHEMA, compression="zstd") as out:
        for first in range(0, samples, ROWS_PER_WRITE):
            count = min(ROWS_PER_WRITE, samples - first)
            sizes = random.integers(1_800_000, 4_800_000, count)
            shards = [f"shards/{name}.tar" for name in sorted(names(-(-count // PER_SHARD)))]
            buckets = random.integers(len(BUCKETS), size=count)
            columns = {
                "clip_id": names(count),
                "shard": [shards[n // PER_SHARD] for n in range(count)],
                "offset": np.arange(count) % PER_SHARD * 5_000_000,
                "size": sizes,
                "bucket": [BUCKETS[n] for n in buckets],
                "video_tokens": np.full(count, 6144),
                "audio_tokens": np.full(count, 126),
                "text_tokens": random.integers(20, 400, count),
            }
            out.write_table(pa.table(columns, schema=INDEX_SCHEMA))


def rank(number: int, ranks: int, root: str, start: Barrier, done: Barrier, measured: Barrier) -> None:
    """The process of one rank: do what the training loop does before it reads its first batch."""
    import torch  # noqa: F401  (a training rank has it in memory too)

    from data_prep.loading.batch_plan import plan
    from data_prep.loading.buckets import parse_key
    from data_prep.loading.loader import EncodedSamples
    from data_prep.settings import BatchSettings

    start.wait()
    samples = EncodedSamples(root)
    keys = {key: parse_key(key) for key in samples.index["bucket"].unique().to_pylist()}
    tokens = {key: shape.video_tokens + shape.audio_tokens for key, shape in keys.items()}
    settings = BatchSettings(tokens=max(tokens.values()), max_samples=16, micro_batches=64)
    planned = plan(samples.index["bucket"], tokens, settings, seed=0, world=64)
    rows = planned.step(0).ranks[number % 64][0].rows
    ranges = [tuple(samples.index[name][row].as_py() for name in ("shard", "offset", "size")) for row in rows]
    assert all(size > 0 for _, _, size in ranges)
    done.wait()
    measured.wait()


def proportional_mb(pids: list[int]) -> float:
    """The sum of the processes' proportional set sizes (PSS), MB."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total * 1024 / 1e6


def measure(root: str, ranks: int) -> tuple[float, float]:
    """Measure all ranks together: (seconds, MB)."""
    context = multiprocessing.get_context("spawn")
    start, done, measured = (context.Barrier(ranks + 1) for _ in range(3))
    processes = [
        context.Process(target=rank, args=(n, ranks, root, start, done, measured), daemon=True) for n in range(ranks)
    ]
    for process in processes:
        process.start()
    pids = [process.pid for process in processes if process.pid is not None]
    while start.n_waiting < ranks:
        time.sleep(0.1)
    before, peak = proportional_mb(pids), 0.0

    def watch(ended: threading.Event) -> None:
        nonlocal peak
        while not ended.wait(0.2):
            peak = max(peak, proportional_mb(pids))

    with background_thread(watch, "peak-memory"):
        began = time.perf_counter()
        start.wait()
        done.wait()
        seconds = time.perf_counter() - began
    peak = max(peak, proportional_mb(pids))
    measured.wait()
    for process in processes:
        process.join()
    return seconds, peak - before


def main() -> None:
    """Parse the arguments and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, default=8, help="processes of the node")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kinotone-bench-") as root:
        os.environ["KINOTONE_CACHE"] = f"{root}/cache"
        write_index(Path(root), asked.samples)
        size = (Path(root) / "index.parquet").stat().st_size / 1e6
        for name in ("first time", "again"):
            seconds, mb = measure(root, asked.ranks)
            print(
                f"{asked.samples} samples ({size:.0f} MB of index), {asked.ranks} ranks, {name}: first batch planned "
                f"in {seconds:.1f} s, {mb:.0f} MB of memory together"
            )


if __name__ == "__main__":
    main()
