"""The properties of the batch plan, over many random indexes."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.loading.batch_plan import plan
from data_prep.settings import BLOCK, BatchSettings

TOKENS = {"short": 3, "long": 10, "wide": 7}

indexes = st.one_of(
    st.lists(st.sampled_from(sorted(TOKENS)), min_size=1, max_size=80),
    # An index with several windows.
    st.integers(1, 900).map(lambda count: [sorted(TOKENS)[n % 5 % 3] for n in range(count)]),
)
batches = st.builds(
    BatchSettings,
    tokens=st.integers(10, 60),
    max_samples=st.integers(1, 8),
    micro_batches=st.sampled_from([1, 2, 4, 8]),
    window=st.sampled_from([BLOCK, 3 * BLOCK, 8192]),
)


def test_reads_stay_local_and_epochs_differ():
    count, window = 40 * BLOCK, 4 * BLOCK
    p = plan(["short"] * count, TOKENS, BatchSettings(tokens=24, micro_batches=4, window=window), seed=1, world=2)

    def rows(epoch: int) -> list[int]:
        steps = range(epoch * p.steps_per_epoch, (epoch + 1) * p.steps_per_epoch)
        return [row for n in steps for rank in p.step(n).ranks for micro in rank for row in micro.rows]

    first, second = rows(0), rows(1)
    for order in (first, second):
        assert sorted(order) == list(range(count))
        for start in range(0, count, window):
            assert len({row // BLOCK for row in order[start : start + window]}) == 4
        # Rows are shuffled inside a window: few adjacent pairs remain.
        assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < count / 20
    windows = [
        {frozenset(row // BLOCK for row in order[n : n + window]) for n in range(0, count, window)}
        for order in (first, second)
    ]
    assert windows[0] != windows[1]


@given(index=indexes, batch=batches, seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_every_sample_once_an_epoch_and_every_repeat_counted(index, batch, seed, epoch):
    p = plan(index, TOKENS, batch, seed=seed, world=1)
    seen, repeats = Counter(), 0
    for n in range(epoch * p.steps_per_epoch, (epoch + 1) * p.steps_per_epoch):
        for micro in p.step(n).ranks[0]:
            for row, weight in zip(micro.rows, micro.weights, strict=True):
                if weight:
                    seen[row] += 1
                else:
                    repeats += 1
    assert seen == Counter(range(len(index)))
    assert repeats == p.repeats


@given(index=indexes, batch=batches, seed=st.integers(0, 9))
def test_a_step_is_homogeneous_and_within_budget(index, batch, seed):
    world = batch.micro_batches
    p = plan(index, TOKENS, batch, seed=seed, world=world)
    for n in range(p.steps_per_epoch):
        step = p.step(n)
        micros = [micro for rank in step.ranks for micro in rank]
        assert {index[row] for micro in micros for row in micro.rows} == {step.bucket}
        assert len({len(micro.rows) for micro in micros}) == 1
        size = len(micros[0].rows)
        assert 1 <= size <= batch.max_samples
        assert size * TOKENS[step.bucket] <= batch.tokens
        # mean over all slots of weight · loss = mean loss of the real samples
        weights = [weight for micro in micros for weight in micro.weights]
        assert sum(weights) == pytest.approx(len(weights))


@given(index=indexes, batch=batches, seed=st.integers(0, 9), number=st.integers(0, 200))
def test_a_step_needs_its_number_alone_and_no_world(index, batch, seed, number):
    def samples(world):
        step = plan(index, TOKENS, batch, seed=seed, world=world).step(number)
        assert len(step.ranks) == world
        return step.bucket, [micro for rank in step.ranks for micro in rank]

    worlds = [world for world in (1, 2, 4, 8) if batch.micro_batches % world == 0]
    assert all(samples(world) == samples(1) for world in worlds)


@settings(max_examples=20)
@given(seed=st.integers(0, 50))
def test_epochs_and_seeds_shuffle_differently(seed):
    index = ["short", "long"] * 40
    batch = BatchSettings(tokens=20, micro_batches=2)

    def epoch(seed, number):
        p = plan(index, TOKENS, batch, seed=seed, world=2)
        return [p.step(number * p.steps_per_epoch + n) for n in range(p.steps_per_epoch)]

    assert epoch(seed, 0) == epoch(seed, 0)
    assert epoch(seed, 0) != epoch(seed, 1)
    assert epoch(seed, 0) != epoch(seed + 1, 0)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no samples"):
        plan([], TOKENS, BatchSettings(), seed=0, world=1)
    with pytest.raises(ValueError, match="bucket long has 10 tokens, more than"):
        plan(["long"], TOKENS, BatchSettings(tokens=9), seed=0, world=1)
    with pytest.raises(ValueError, match="make it a multiple of 3"):
        plan(["long"], TOKENS, BatchSettings(tokens=90, micro_batches=2), seed=0, world=3)
