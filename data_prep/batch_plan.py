"""The batch plan: a pure function from (index, seed, epoch, world) to the samples of every step on every rank.

One *step* of the optimizer takes a fixed number of *micro-batches*, whatever the number of ranks; each rank takes its
equal share of them, one after another. So the samples of a step do not depend on the world size, and nothing but the
step's number is needed to resume, at any world size that divides the micro-batches.

All micro-batches of a step come from one bucket and hold the same number of samples, as many as the token budget
allows: every rank runs the same shapes. What does not fill the last step of a bucket is filled up with repeats of
weight 0; nothing is left out, and the repeats are counted. The number of steps of an epoch is the same in every epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
from pydantic import Field

from data_prep.settings import Settings


class BatchSettings(Settings):
    """How samples become batches."""

    tokens: int = Field(default=4096, description="token budget of a micro-batch (video + audio tokens)", ge=1)
    max_samples: int = Field(default=64, description="samples in a micro-batch, at most", ge=1)
    micro_batches: int = Field(
        default=2, description="micro-batches per optimizer step over all workers; a multiple of their number", ge=1
    )


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
    steps_per_epoch: int
    samples: int
    repeats: int
    _buckets: tuple[str, ...]
    _rows: tuple[np.ndarray, ...] = field(repr=False)
    _batch: tuple[int, ...]

    def step(self, number: int) -> Step:
        """The `number`-th step of the run, from 0."""
        epoch, position = divmod(number, self.steps_per_epoch)
        order, permutations = self._epoch(epoch)
        bucket, index = order[position]
        batch, rows = self._batch[bucket], permutations[bucket]
        slots = batch * self.micro_batches
        taken = rows[index * slots : (index + 1) * slots]
        real = len(taken)
        # Repeats come from the front of the bucket's own order: other samples than the step's, where there are any.
        taken = np.concatenate([taken, np.resize(rows, slots - real)]) if real < slots else taken
        weights = np.where(np.arange(slots) < real, slots / real, 0.0)
        # Dealt round, so that the repeats are shared by the micro-batches as evenly as can be.
        micro = [
            MicroBatch(tuple(taken[n :: self.micro_batches].tolist()), tuple(weights[n :: self.micro_batches].tolist()))
            for n in range(self.micro_batches)
        ]
        each = self.micro_batches // self.world
        ranks = tuple(tuple(micro[rank * each : (rank + 1) * each]) for rank in range(self.world))
        return Step(self._buckets[bucket], ranks)

    def _epoch(self, epoch: int) -> tuple[list[tuple[int, int]], list[np.ndarray]]:
        return _shuffle(self, epoch)


@lru_cache(maxsize=2)
def _shuffle(plan: Plan, epoch: int) -> tuple[list[tuple[int, int]], list[np.ndarray]]:
    """For an epoch: its steps as (bucket, n-th step of that bucket), and each bucket's rows in their order."""
    random = [np.random.default_rng([plan.seed, epoch, bucket]) for bucket in range(len(plan._buckets) + 1)]
    permutations = [random[bucket].permutation(rows) for bucket, rows in enumerate(plan._rows)]
    steps = [
        (bucket, index)
        for bucket, rows in enumerate(plan._rows)
        for index in range(_steps(len(rows), plan._batch[bucket] * plan.micro_batches))
    ]
    return [steps[i] for i in random[-1].permutation(len(steps))], permutations


def _combined(buckets: list[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(buckets, list):
        return pa.array(buckets, pa.string())
    return pa.concat_arrays(buckets.chunks) if isinstance(buckets, pa.ChunkedArray) else buckets


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
    # Arrow's dictionary: a hash table over 10 million names is 20 times as fast as numpy's sort of them.
    encoded = _combined(buckets).dictionary_encode()
    assert isinstance(encoded, pa.DictionaryArray)
    codes, found = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    by_name = np.argsort(np.asarray(found, dtype=str))
    names, membership = [found[i] for i in by_name], np.argsort(by_name)[codes]
    batch = []
    for name in names:
        if tokens[name] > settings.tokens:
            raise ValueError(
                f"a sample of bucket {name} has {tokens[name]} tokens, more than batch.tokens = {settings.tokens}; "
                f"raise batch.tokens or leave that bucket out when encoding"
            )
        batch.append(min(settings.max_samples, settings.tokens // tokens[name]))
    by_bucket = np.argsort(membership, kind="stable")
    rows = tuple(np.split(by_bucket, np.cumsum(np.bincount(membership))[:-1]))
    # A bucket of few samples does not need the full batch: no slot is worth a repeat that a smaller batch avoids.
    batch = [min(size, -(-len(row) // settings.micro_batches)) for size, row in zip(batch, rows, strict=True)]
    slots = [size * settings.micro_batches for size in batch]
    steps = [_steps(len(row), slot) for row, slot in zip(rows, slots, strict=True)]
    return Plan(
        seed=seed,
        world=world,
        micro_batches=settings.micro_batches,
        steps_per_epoch=sum(steps),
        samples=len(buckets),
        repeats=sum(step * slot for step, slot in zip(steps, slots, strict=True)) - len(buckets),
        _buckets=tuple(names),
        _rows=rows,
        _batch=tuple(batch),
    )
