"""The batch plan: a pure function from (index, seed, epoch, world) to the samples of every step on every rank.

One *step* of the optimizer takes a fixed number of *micro-batches*, whatever the number of ranks; each rank takes its
equal share of them, one after another. So the samples of a step do not depend on the world size, and nothing but the
step's number is needed to resume, at any world size that divides the micro-batches.

All micro-batches of a step come from one bucket and hold the same number of samples, as many as the token budget
allows: every rank runs the same shapes. What does not fill the last step of a bucket is filled up with repeats of
weight 0; nothing is left out, and the repeats are counted. The number of steps of an epoch is the same in every epoch.

Samples are shuffled in windows, so that reads stay local: each epoch lays a bucket's rows out in blocks of `BLOCK`
neighbours, which lie side by side in a shard, takes the blocks in random order, and shuffles the rows of every
`window` of them. While one window of a bucket is read, no shard outside its blocks is touched. A window is shuffled
when it is first asked for: nothing that grows with the index is kept but each bucket's rows and the order of the steps.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa

from data_prep.settings import BLOCK, BatchSettings


@dataclass(frozen=True)
class MicroBatch:
    """Rows of the index and their loss weights: 0 for a repeat; the mean of weight · loss over all slots of the
    step is the mean loss of its real samples."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """What one optimizer step takes: one bucket, and for each rank its micro-batches in order."""

    bucket: str
    ranks: tuple[tuple[MicroBatch, ...], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """All epochs' steps; `step(n)` counts on through the epochs.

    Attributes:
        steps_per_epoch: the same in every epoch.
        samples: rows of the index, each taken once in an epoch.
        repeats: slots of weight 0 in an epoch.
    """

    seed: int
    world: int
    micro_batches: int
    window: int
    steps_per_epoch: int
    samples: int
    repeats: int
    _buckets: tuple[str, ...]
    _rows: tuple[np.ndarray, ...] = field(repr=False)
    _batch: tuple[int, ...]

    def step(self, number: int) -> Step:
        """The `number`-th step of the run, from 0."""
        epoch, position = divmod(number, self.steps_per_epoch)
        order, turns = _step_order(self, epoch)
        bucket, turn = int(order[position]), int(turns[position])
        slots = self._batch[bucket] * self.micro_batches
        count = len(self._rows[bucket])
        real = min(slots, count - turn * slots)
        # Repeats come from the front of the bucket's own order: other samples than the step's, where there are any.
        taken = self._taken(epoch, bucket, (turn * slots + np.arange(slots)) % count)
        weights = np.where(np.arange(slots) < real, slots / real, 0.0)
        # Dealt round, so that the repeats are shared by the micro-batches as evenly as can be.
        micro = [
            MicroBatch(tuple(taken[n :: self.micro_batches].tolist()), tuple(weights[n :: self.micro_batches].tolist()))
            for n in range(self.micro_batches)
        ]
        each = self.micro_batches // self.world
        ranks = tuple(tuple(micro[rank * each : (rank + 1) * each]) for rank in range(self.world))
        return Step(self._buckets[bucket], ranks)

    def _taken(self, epoch: int, bucket: int, positions: np.ndarray) -> np.ndarray:
        """The rows at some positions of a bucket's order in an epoch."""
        _, ends = _blocks(self, epoch, bucket)
        windows = np.searchsorted(ends, positions, side="right")
        rows = np.empty_like(positions)
        for window in set(windows.tolist()):
            inside = windows == window
            start = ends[window - 1] if window else 0
            rows[inside] = _window(self, epoch, bucket, window)[positions[inside] - start]
        return rows


# Draws of an epoch, told apart by their last number.
_STEPS, _BLOCKS, _WINDOWS = 0, 1, 2


@lru_cache(maxsize=2)
def _step_order(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every step of an epoch: its bucket, and how many steps of that bucket come before it."""
    counts = [_steps(len(r), size * plan.micro_batches) for r, size in zip(plan._rows, plan._batch, strict=True)]
    order = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    np.random.default_rng([plan.seed, epoch, _STEPS]).shuffle(order)
    turns = np.empty_like(order)
    for bucket, count in enumerate(counts):
        turns[order == bucket] = np.arange(count, dtype=np.int32)
    return order, turns


@lru_cache(maxsize=64)
def _blocks(plan: Plan, epoch: int, bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a bucket in an epoch: its blocks in their order, and after how many rows each window ends."""
    count = len(plan._rows[bucket])
    order = np.random.default_rng([plan.seed, epoch, bucket, _BLOCKS]).permutation(-(-count // BLOCK))
    sizes = np.minimum(BLOCK, count - order * BLOCK)  # the bucket's last block may be short
    each = plan.window // BLOCK
    return order, np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), each)))


@lru_cache(maxsize=64)
def _window(plan: Plan, epoch: int, bucket: int, window: int) -> np.ndarray:
    """The rows of a window, in their order."""
    order, _ = _blocks(plan, epoch, bucket)
    each, rows = plan.window // BLOCK, plan._rows[bucket]
    taken = np.concatenate([rows[b * BLOCK : (b + 1) * BLOCK] for b in order[window * each : (window + 1) * each]])
    np.random.default_rng([plan.seed, epoch, bucket, window, _WINDOWS]).shuffle(taken)
    return taken


def _members(buckets: list[str] | pa.Array | pa.ChunkedArray) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Piece by piece of the index: its first row, and the rows after that one of each bucket."""
    pieces = [pa.array(buckets, pa.string())] if isinstance(buckets, list) else pa.chunked_array(buckets).chunks
    first = 0
    for piece in pieces:
        # Arrow's dictionary: a hash table over 10 million names is 20 times as fast as numpy's sort of them.
        encoded = piece if isinstance(piece, pa.DictionaryArray) else piece.dictionary_encode()
        assert isinstance(encoded, pa.DictionaryArray)
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        # numpy sorts 16-bit numbers in linear time.
        order = np.argsort(codes.astype(np.int16) if len(names) < 1 << 15 else codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        yield first, dict(zip(names, np.split(order, ends[:-1]), strict=True))
        first += len(piece)


def _counted(number: int) -> str:
    """The numbers that divide it, in words."""
    *few, most = (str(n) for n in range(1, number + 1) if number % n == 0)
    return f"{', '.join(few)} or {most}" if few else most


def _steps(samples: int, slots: int) -> int:
    return -(-samples // slots)


def plan(
    buckets: list[str] | pa.Array | pa.ChunkedArray,
    tokens: Mapping[str, int],
    settings: BatchSettings,
    *,
    seed: int,
    world: int,
) -> Plan:
    """The plan of a run.

    Args:
        buckets: of every row of the index.
        tokens: of one sample of each bucket.
        settings: the token budget and the micro-batches of a step.
        seed: of the shuffle, which differs from epoch to epoch.
        world: number of ranks.

    Raises:
        ValueError: no rows; a sample above the token budget; ranks that do not divide the micro-batches.
    """
    if not len(buckets):
        raise ValueError("the index has no samples; see the report of the encode run for what was dropped, and why")
    if settings.micro_batches % world:
        raise ValueError(
            f"batch.micro_batches is {settings.micro_batches}, which {world} workers cannot share equally; "
            f"make it a multiple of {world}, or take {_counted(settings.micro_batches)} workers"
        )
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for first, members in _members(buckets):
        for name, rows in members.items():
            if len(rows):
                parts[name].append((rows + first).astype(np.int32))
    names = sorted(parts)
    batch = []
    for name in names:
        if tokens[name] > settings.tokens:
            raise ValueError(
                f"a sample of bucket {name} has {tokens[name]} tokens, more than batch.tokens = {settings.tokens}; "
                f"raise batch.tokens or leave that bucket out when encoding"
            )
        batch.append(min(settings.max_samples, settings.tokens // tokens[name]))
    rows = tuple(np.concatenate(parts.pop(name)) for name in names)
    # A bucket of few samples does not need the full batch: no slot is worth a repeat that a smaller batch avoids.
    batch = [min(size, -(-len(row) // settings.micro_batches)) for size, row in zip(batch, rows, strict=True)]
    slots = [size * settings.micro_batches for size in batch]
    steps = [_steps(len(row), slot) for row, slot in zip(rows, slots, strict=True)]
    return Plan(
        seed=seed,
        world=world,
        micro_batches=settings.micro_batches,
        window=settings.window,
        steps_per_epoch=sum(steps),
        samples=len(buckets),
        repeats=sum(step * slot for step, slot in zip(steps, slots, strict=True)) - len(buckets),
        _buckets=tuple(names),
        _rows=rows,
        _batch=tuple(batch),
    )
