"""Compare the speed of our loader with webdataset's, for shuffled batches from the same shards on the same cores.

`python -m benchmarks.loader [--shape ltx2|tiny] [--samples N]`

The benchmark writes an encoded set of random numbers with two buckets and 32 samples per shard. Shape `ltx2` has the
sizes of LTX-2's latents of 121 frames at 768 × 512 (128 channels) with 60 to 400 caption tokens of width 3840; `tiny`
has those of recipe tiny.

Both loaders return the same batches: stacked bfloat16 latents of one bucket, and text features padded to a multiple of
the registers. The first batches are compared tensor by tensor. webdataset uses `WebDataset(shards).shuffle(256)`
(`tiny`: 1000), the reader of safetensors, and grouping by bucket.

The loaders take turns, each with torch on one thread: first in the calling thread, then with one worker (ours: a
thread; webdataset: a `WebLoader` process). The benchmark prints the medians of samples per second and their ratio. The
shards are in the page cache, unless `--cold` asks the kernel to drop them before every turn.
"""

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load as load_tensors

from data_prep.dataset import storage
from data_prep.dataset.index import INDEX_SCHEMA
from data_prep.dataset.shards import write_tar
from data_prep.loading.batch_plan import plan
from data_prep.loading.buckets import Bucket
from data_prep.loading.loader import EncodedBatch, EncodedSamples, Prefetch
from data_prep.settings import BatchSettings
from pipelines.dataflow.encode import to_safetensors

PER_SHARD = 32


@dataclass(frozen=True)
class Shape:
    """The sizes of the samples and batches.

    Attributes:
        buckets: the buckets of the samples, in turn.
        channels: channels of the video latents.
        width: width of the text features.
        words: the lowest and highest number of caption tokens.
        batch: samples per batch.
        samples: samples of the set.
        buffer: samples in webdataset's shuffle buffer.
        registers: the text length is padded to a multiple of this.
    """

    buckets: tuple[Bucket, ...]
    channels: int
    width: int
    words: tuple[int, int]
    batch: int
    samples: int
    buffer: int
    registers: int = 128


SHAPES = {
    "ltx2": Shape(
        (Bucket(frames=121, height=512, width=768), Bucket(frames=121, height=768, width=512)),
        channels=128,
        width=3840,
        words=(60, 400),
        batch=2,
        samples=384,
        buffer=256,
    ),
    "tiny": Shape((Bucket(), Bucket(height=192, width=128)), 32, 640, (20, 120), batch=4, samples=4096, buffer=1000),
}


def write_set(root: str, shape: Shape, samples: int) -> None:
    """Write shards and index of an encoded set of random latents."""
    random_words = random.Random(0)
    g = torch.Generator().manual_seed(0)
    rows = []
    for first in range(0, samples, PER_SHARD):
        members, contents = [], {}
        for n in range(first, min(first + PER_SHARD, samples)):
            bucket = shape.buckets[n % len(shape.buckets)]
            clip_id, words = f"{n:032x}", random_words.randint(*shape.words)
            tensors = {
                "video_latent": torch.randn(shape.channels, *bucket.latent_shape, generator=g),
                "audio_latent": torch.randn(8, bucket.audio_tokens, 16, generator=g),
                "video_features": torch.randn(words, shape.width, generator=g),
            }
            info = {"bucket": bucket.key, "text_tokens": words}
            caption = "a dog " * 9
            record = {"clip_id": clip_id, "info": info, "scores": {"lufs": -23.0}}
            members += [
                (f"{clip_id}.safetensors", to_safetensors(tensors, {"fps": f"{bucket.fps:g}", "caption": caption})),
                (f"{clip_id}.json", json.dumps(record).encode()),
                (f"{clip_id}.caption.json", json.dumps({"text": caption}).encode()),
            ]
            contents[clip_id] = (bucket, words)
        name = f"shards/{first // PER_SHARD:06}.tar"
        tar = io.BytesIO()
        ranges = write_tar(tar, members)
        storage.put(storage.at(root, name), tar.getvalue())
        for clip_id, (bucket, words) in contents.items():
            offset, size = ranges[f"{clip_id}.safetensors"]
            tokens = (bucket.video_tokens, bucket.audio_tokens, words)
            row = (clip_id, name, offset, size, bucket.key, *tokens)
            rows.append(dict(zip(INDEX_SCHEMA.names, row, strict=True)))
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), table)
    storage.put(storage.at(root, "index.parquet"), table.getvalue())


@contextmanager
def ours(root: str, shape: Shape, seed: int, worker: bool) -> Iterator[Iterator[EncodedBatch]]:
    """Our batches, in the order of the plan."""
    data = EncodedSamples(root)
    tokens = {bucket.key: bucket.video_tokens + bucket.audio_tokens for bucket in shape.buckets}
    budget = BatchSettings(tokens=shape.batch * max(tokens.values()), max_samples=shape.batch, micro_batches=1)
    planned = plan(data.index["bucket"], tokens, budget, seed=seed, world=1)

    def make(number: int) -> EncodedBatch:
        micro = planned.step(number).ranks[0][0]
        return data.batch(micro.rows, micro.weights, shape.registers)

    if worker:
        with Prefetch(make, start=0) as batches:
            yield batches
    else:
        yield map(make, range(planned.steps_per_epoch * 1000))


def decoded(sample: dict[str, Any]) -> dict[str, Any]:
    """Decode the tensors and the bucket of a sample from webdataset."""
    data = sample["safetensors"]
    bucket = json.loads(sample["json"])["info"]["bucket"]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {
        "id": sample["__key__"],
        "bucket": bucket,
        "fps": float(header["__metadata__"]["fps"]),
        **load_tensors(data),
    }


class ByBucket:
    """Groups samples by bucket and collates a batch as soon as a bucket has enough samples."""

    def __init__(self, batch: int, registers: int) -> None:
        self.batch, self.registers = batch, registers

    def __call__(self, samples: Iterator[dict[str, Any]]) -> Iterator[EncodedBatch]:
        """Yield batches of decoded samples; a group that never fills is not returned."""
        waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for sample in samples:
            group = waiting[sample["bucket"]]
            group.append(sample)
            if len(group) == self.batch:
                yield self._collate(group)
                group.clear()

    def _collate(self, group: list[dict[str, Any]]) -> EncodedBatch:
        features, mask = pad_left([sample["video_features"] for sample in group], self.registers)
        return EncodedBatch(
            ids=tuple(sample["id"] for sample in group),
            weights=torch.ones(len(group)),
            video_latent=torch.stack([sample["video_latent"] for sample in group]),
            audio_latent=torch.stack([sample["audio_latent"] for sample in group]),
            fps=torch.tensor([sample["fps"] for sample in group]),
            video_features=features,
            audio_features=features,
            text_mask=mask,
        )


def pad_left(features: list[torch.Tensor], multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad features on the left.

    Args:
        features: B tensors (S_i, D).
        multiple: the length is padded to a multiple of this.

    Returns:
        Features (B, S, D) with zeros on the left; mask (B, S) bool, True for features.
    """
    length = -(-max(len(f) for f in features) // multiple) * multiple
    padded = features[0].new_zeros(len(features), length, features[0].shape[1])
    mask = torch.zeros(len(features), length, dtype=torch.bool)
    for row, feature in enumerate(features):
        padded[row, -len(feature) :] = feature
        mask[row, -len(feature) :] = True
    return padded, mask


@contextmanager
def theirs(shards: list[str], shape: Shape, seed: int, worker: bool) -> Iterator[Iterator[EncodedBatch]]:
    """The batches of webdataset: shards in random order, samples shuffled in a buffer."""
    from webdataset.compat import WebDataset, WebLoader

    shuffled = WebDataset(shards, shardshuffle=len(shards), seed=seed, empty_check=False).repeat()
    # Fill the buffer before the first sample leaves it; otherwise each sample would read two at the start.
    buffered = shuffled.shuffle(shape.buffer, initial=shape.buffer)  # pyright: ignore[reportAttributeAccessIssue]
    stream = buffered.map(decoded).compose(ByBucket(shape.batch, shape.registers))
    if not worker:
        yield iter(stream)
        return
    loader = WebLoader(stream, batch_size=None, num_workers=1, worker_init_fn=_one_thread)
    batches = iter(loader)
    yield batches
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def rate(batches: Iterator[EncodedBatch], seconds: float) -> float:
    """Samples per second after four batches, when the worker has started and the shuffle buffer is full."""
    for _ in range(4):
        next(batches)
    samples, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        samples += len(next(batches).ids)
    return samples / (time.perf_counter() - start)


def same(ours: Iterator[EncodedBatch], theirs: Iterator[EncodedBatch], samples: int) -> int:
    """Compare the samples that occur among the first `samples` of both loaders.

    Returns:
        The number of compared samples, all of which are equal.

    Raises:
        AssertionError: a sample differs.
    """

    def by_id(batches: Iterator[EncodedBatch]) -> dict[str, tuple[torch.Tensor, ...]]:
        found = {}
        while len(found) < samples:
            batch = next(batches)
            for row, name in enumerate(batch.ids):
                text = batch.video_features[row][batch.text_mask[row]]
                found[name] = (batch.video_latent[row], batch.audio_latent[row], batch.fps[row], text)
        return found

    one, other = by_id(ours), by_id(theirs)
    common = one.keys() & other.keys()
    for name in common:
        assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True)), name
    return len(common)


def forget(root: str) -> None:
    """Ask the kernel to drop the shards from the page cache."""
    for path in Path(root).glob("shards/*.tar"):
        with path.open("rb") as shard:
            os.posix_fadvise(shard.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="ltx2")
    parser.add_argument("--samples", type=int, default=0, help="of the set; default: 384 (ltx2, 1 GB), 4096 (tiny)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--cold", action="store_true", help="read from the disk, not from the page cache")
    asked = parser.parse_args()
    shape = SHAPES[asked.shape]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kinotone-bench-") as root:
        write_set(root, shape, asked.samples or shape.samples)
        shards = sorted(str(path) for path in Path(root).glob("shards/*.tar"))
        with ours(root, shape, 0, False) as a, theirs(shards, shape, 0, False) as b:
            compared = same(a, b, len(shards) * PER_SHARD // 2)
        print(f"{compared} samples of both loaders are equal")
        for worker in (False, True):
            sides: dict[str, Callable[[int], Any]] = {
                "ours": lambda seed, worker=worker: ours(root, shape, seed, worker),
                "webdataset": lambda seed, worker=worker: theirs(shards, shape, seed, worker),
            }
            rates = defaultdict(list)
            for turn in range(asked.rounds):
                for name, start in sides.items():
                    if asked.cold:
                        forget(root)
                    with start(turn) as batches:
                        rates[name].append(rate(batches, asked.seconds))
            mine, other = (statistics.median(rates[name]) for name in sides)
            print(
                f"{asked.shape}, {'one worker' if worker else 'no worker'}: ours {mine:.1f}, webdataset {other:.1f} "
                f"samples/s, ratio {mine / other:.2f}"
            )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
