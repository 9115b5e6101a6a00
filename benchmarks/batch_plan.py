"""What does the first batch of a large index cost a node: seconds and memory of all its ranks together?

`python -m benchmarks.batch_plan [--samples 10000000] [--ranks 8]`

An index of random clips is written as `encode` leaves it (40 samples a shard, twelve buckets). Then as many processes
as a node has ranks start at once: each reads the index, plans, and looks up where the samples of its first micro-batch
lie. Printed are the seconds until the last of them has done so, when the machine has not seen this index before and
when it has; and the highest sum of the processes' memory (proportional set size: what they share is counted once)
beyond what they held after their imports. `torch` is imported before the clock starts.
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

PIECE = 1 << 20
PER_SHARD = 40
BUCKETS = [f"f{f}_h{h}_w{w}_a{a}" for f, a in ((121, 126), (241, 251)) for h, w in
           ((512, 768), (768, 512), (640, 640), (352, 544), (544, 352), (448, 448))]  # fmt: skip


def write_index(root: Path, samples: int) -> None:
    """`<root>/index.parquet`, a million rows at a time."""
    random = np.random.default_rng(0)

    def names(count: int) -> list[str]:
        text = random.bytes(10 * count).hex()
        return [text[at : at + 20] for at in range(0, len(text), 20)]

    with pq.ParquetWriter(root / "index.parquet", INDEX_SCHEMA, compression="zstd") as out:
        for first in range(0, samples, PIECE):
            count = min(PIECE, samples - first)
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


def rank(number: int, ranks: int, root: str, start: Barrier, done: Barrier, checked: Barrier) -> None:
    """One rank's process: what the loop does before its first batch is read."""
    import torch  # noqa: F401  (a rank holds it)

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
    places = [tuple(samples.index[name][row].as_py() for name in ("shard", "offset", "size")) for row in rows]
    assert all(size > 0 for _, _, size in places)
    done.wait()
    checked.wait()


def proportional_mb(pids: list[int]) -> float:
    """The sum of the processes' proportional set sizes, MB."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total * 1024 / 1e6


def measure(root: str, ranks: int) -> tuple[float, float]:
    """(seconds, MB) of all ranks together."""
    context = multiprocessing.get_context("spawn")
    start, done, checked = (context.Barrier(ranks + 1) for _ in range(3))
    made = [
        context.Process(target=rank, args=(n, ranks, root, start, done, checked), daemon=True) for n in range(ranks)
    ]
    for process in made:
        process.start()
    pids = [process.pid for process in made if process.pid is not None]
    while start.n_waiting < ranks:
        time.sleep(0.1)
    before, peak = proportional_mb(pids), 0.0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.2):
            peak = max(peak, proportional_mb(pids))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    start.wait()
    done.wait()
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    peak = max(peak, proportional_mb(pids))
    checked.wait()
    for process in made:
        process.join()
    return seconds, peak - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, default=8, help="processes of the node")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kinotone-bench-") as root:
        os.environ["KINOTONE_CACHE"] = f"{root}/cache"
        write_index(Path(root), asked.samples)
        size = (Path(root) / "index.parquet").stat().st_size / 1e6
        for name in ("the first time", "again"):
            seconds, mb = measure(root, asked.ranks)
            print(
                f"{asked.samples} samples ({size:.0f} MB of index), {asked.ranks} ranks, {name}: first batch planned "
                f"in {seconds:.1f} s, {mb:.0f} MB of memory together"
            )


if __name__ == "__main__":
    main()
