"""The batch plan: a pure function from (index, seed, epoch, world) to the samples of every step on every rank.

An optimizer *step* takes a fixed number of *micro-batches*, whatever the number of ranks. Each rank takes an equal
share of them, one after another. So the samples of a step do not depend on the world size, and the step's number is all
that a resume needs, at any world size that divides the number of micro-batches.

All micro-batches of a step come from one bucket and hold the same number of samples, as many as the token budget
allows, so every rank runs the same shapes. The last step of a bucket is filled with repeats of weight 0: no sample is
left out, and the repeats are counted. Every epoch has the same number of steps.

Samples are shuffled in windows, so that reads stay local. Each epoch divides a bucket's rows into blocks of `BLOCK`
adjacent rows, which lie side by side in a shard, takes the blocks in random order, and shuffles the rows inside every
window of `window` rows. So a window reads only the shards of its own blocks. It is shuffled when it is first used. Only
each bucket's rows and the order of the steps take memory that grows with the index.
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
    """Rows of the index and their loss weights, 0 for a repeat.

    The mean of weight · loss over all samples of a step, repeats included, is the mean loss of the others.
    """

    rows: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """One optimizer step: the name of its bucket, and for each rank its micro-batches in order."""

    bucket: str
    ranks: tuple[tuple[MicroBatch, ...], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of all epochs, numbered without a break: step `steps_per_epoch` is the first of the second epoch.

    A *slot* is the place of one sample in a step.

    Attributes:
        seed: of the shuffle.
        world: number of ranks.
        micro_batches: number per step, over all ranks.
        window: number of rows that are shuffled together.
        steps_per_epoch: the same in every epoch.
        samples: number of rows of the index; an epoch takes each once.
        repeats: number of slots of weight 0 in an epoch.
        _buckets: the names of the buckets.
        _rows: for each bucket, its rows of the index.
        _batch: for each bucket, the number of samples in a micro-batch.
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
        """Return the step with this number, counted from 0 at the start of the run."""
        epoch, position = divmod(number, self.steps_per_epoch)
        order, turns = _step_order(self, epoch)
        bucket, turn = int(order[position]), int(turns[position])
        slots = self._batch[bucket] * self.micro_batches
        count = len(self._rows[bucket])
        real = min(slots, count - turn * slots)
        # Repeats come from the start of the bucket's order, so they differ from the step's samples if any others exist.
        taken = self._taken(epoch, bucket, (turn * slots + np.arange(slots)) % count)
        weights = np.where(np.arange(slots) < real, slots / real, 0.0)
        # Slot k goes to micro-batch k modulo their number, so that repeats spread over them as evenly as possible.
        micro = [
            MicroBatch(tuple(taken[n :: self.micro_batches].tolist()), tuple(weights[n :: self.micro_batches].tolist()))
            for n in range(self.micro_batches)
        ]
        each = self.micro_batches // self.world
        ranks = tuple(tuple(micro[rank * each : (rank + 1) * each]) for rank in range(self.world))
        return Step(self._buckets[bucket], ranks)

    def _taken(self, epoch: int, bucket: int, positions: np.ndarray) -> np.ndarray:
        """Return the rows at these positions of the shuffled order of a bucket in an epoch."""
        _, ends = _blocks(self, epoch, bucket)
        windows = np.searchsorted(ends, positions, side="right")
        rows = np.empty_like(positions)
        for window in set(windows.tolist()):
            inside = windows == window
            start = ends[window - 1] if window else 0
            rows[inside] = _window(self, epoch, bucket, window)[positions[inside] - start]
        return rows


# The last number of a seed, which makes the three kinds of random draws of an epoch differ.
_STEPS, _BLOCKS, _WINDOWS = 0, 1, 2


@lru_cache(maxsize=2)
def _step_order(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for every step of an epoch its bucket, and the number of earlier steps of that bucket in the epoch."""
    counts = [_steps(len(r), size * plan.micro_batches) for r, size in zip(plan._rows, plan._batch, strict=True)]
    order = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    np.random.default_rng([plan.seed, epoch, _STEPS]).shuffle(order)
    turns = np.empty_like(order)
    for bucket, count in enumerate(counts):
        turns[order == bucket] = np.arange(count, dtype=np.int32)
    return order, turns


@lru_cache(maxsize=64)
def _blocks(plan: Plan, epoch: int, bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of a bucket's blocks in an epoch, and where its windows end.

    Returns:
        The numbers of the blocks in shuffled order, and the total number of rows up to the end of each window.
    """
    count = len(plan._rows[bucket])
    order = np.random.default_rng([plan.seed, epoch, bucket, _BLOCKS]).permutation(-(-count // BLOCK))
    sizes = np.minimum(BLOCK, count - order * BLOCK)  # the bucket's last block may be short
    each = plan.window // BLOCK
    return order, np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), each)))


@lru_cache(maxsize=64)
def _window(plan: Plan, epoch: int, bucket: int, window: int) -> np.ndarray:
    """Return the rows of a window, in shuffled order. The window has number `window` in its bucket and epoch."""
    order, _ = _blocks(plan, epoch, bucket)
    each, rows = plan.window // BLOCK, plan._rows[bucket]
    taken = np.concatenate([rows[b * BLOCK : (b + 1) * BLOCK] for b in order[window * each : (window + 1) * each]])
    np.random.default_rng([plan.seed, epoch, bucket, window, _WINDOWS]).shuffle(taken)
    return taken


def _members(buckets: list[str] | pa.Array | pa.ChunkedArray) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Group the rows of the index by bucket, one Arrow chunk after the other.

    Yields:
        The first row of the chunk, and for each bucket its rows, counted from that first row.
    """
    pieces = [pa.array(buckets, pa.string())] if isinstance(buckets, list) else pa.chunked_array(buckets).chunks
    first = 0
    for piece in pieces:
        # Arrow's dictionary is a hash table: over 10 million names 20 times as fast as numpy's sort.
        encoded = piece if isinstance(piece, pa.DictionaryArray) else piece.dictionary_encode()
        assert isinstance(encoded, pa.DictionaryArray)
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        # numpy sorts 16-bit integers in linear time.
        order = np.argsort(codes.astype(np.int16) if len(names) < 1 << 15 else codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        yield first, dict(zip(names, np.split(order, ends[:-1]), strict=True))
        first += len(piece)


def _counted(number: int) -> str:
    """Return the divisors of `number` as text, such as "1, 2, 3 or 6"."""
    *few, most = (str(n) for n in range(1, number + 1) if number % n == 0)
    return f"{', '.join(few)} or {most}" if few else most


def _steps(samples: int, slots: int) -> int:
    """Return the number of steps of `slots` slots that `samples` samples need."""
    return -(-samples // slots)


def plan(
    buckets: list[str] | pa.Array | pa.ChunkedArray,
    tokens: Mapping[str, int],
    settings: BatchSettings,
    *,
    seed: int,
    world: int,
) -> Plan:
    """Make the batch plan of a training run.

    Args:
        buckets: the bucket of every row of the index.
        tokens: number of tokens of one sample, for each bucket.
        settings: the token budget and the number of micro-batches of a step.
        seed: of the shuffle; each epoch is shuffled differently.
        world: number of ranks.

    Raises:
        ValueError: the index has no rows, a sample exceeds the token budget, or the number of ranks does not divide
            the number of micro-batches.
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
    # A bucket with few samples takes a smaller batch, so that fewer slots are filled with repeats.
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
