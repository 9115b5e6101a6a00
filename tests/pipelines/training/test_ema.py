"""The moving average of the weights."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.ema import MovingAverage


def test_the_moving_average_is_the_formula():
    weights = {"w": torch.zeros(3)}
    average = MovingAverage(weights, {"w": (0, 3)}, 0.5)
    expected = torch.zeros(3)
    for n in range(20):
        weights["w"] += n
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights["w"]
    assert torch.allclose(average.weights["w"], expected)
    again = MovingAverage(weights, {"w": (0, 3)}, 0.5)
    again.load([average.state()])
    assert torch.equal(again.weights["w"], average.weights["w"])
    assert again.updates == 20


def zero3_cut(size: int, world: int) -> list[tuple[int, int]]:
    """Return each rank's (begin, elements) with ZeRO-3: equal parts, the last one padded."""
    each = -(-size // world)
    return [(rank * each, each) for rank in range(world)]


@st.composite
def cuts(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    """Cut as ZeRO-3 does or, as with ZeRO-1 and 2, anywhere; a rank may hold nothing."""
    world = draw(st.integers(1, 5))
    if draw(st.booleans()):
        return zero3_cut(size, world)
    at = sorted(draw(st.lists(st.integers(0, size), min_size=world - 1, max_size=world - 1)))
    return [(begin, end - begin) for begin, end in zip([0, *at], [*at, size], strict=True)]


@given(data=st.data(), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3), steps=st.integers(1, 3))
def test_the_average_of_any_parts_is_that_of_the_whole_in_double_precision(data, sizes, steps):
    """Average partitions, then continue with other ranks and partitions: equal to the average without partitions."""
    generator = torch.Generator().manual_seed(0)
    decay = 0.9
    weights = {f"p{n}": torch.randn(size, generator=generator) for n, size in enumerate(sizes)}
    reference = {name: weight.double() for name, weight in weights.items()}

    def ranks(world_cuts: dict[str, list[tuple[int, int]]]) -> list[tuple[MovingAverage, dict[str, torch.Tensor]]]:
        made = []
        for rank in range(max(len(cut) for cut in world_cuts.values())):
            spans, parts = {}, {}
            for name, cut in world_cuts.items():
                if rank < len(cut) and cut[rank][1]:
                    begin, length = cut[rank]
                    spans[name] = (begin, len(weights[name]))
                    parts[name] = torch.zeros(length)
            made.append((MovingAverage(parts, spans, decay), parts))
            put(made[-1])
            for name, part in parts.items():
                made[-1][0].weights[name].copy_(part)
        return made

    def put(rank: tuple[MovingAverage, dict[str, torch.Tensor]]) -> None:
        average, parts = rank
        for name, part in parts.items():
            begin, size = average._spans[name]
            part[: max(0, size - begin)] = weights[name][begin : begin + len(part)]

    updates = 0
    states: list[dict[str, Any]] = []
    for _ in range(3):
        group = ranks({name: data.draw(cuts(len(weight))) for name, weight in weights.items()})
        if states:
            for average, _ in group:
                average.load(states)
        for _ in range(steps):
            for weight in weights.values():
                weight += torch.randn(weight.shape, generator=generator)
            now = min(decay, (1 + updates) / (10 + updates))
            updates += 1
            for name, weight in weights.items():
                reference[name] = now * reference[name] + (1 - now) * weight.double()
            for rank in group:
                put(rank)
                rank[0].update()
        states = [average.state() for average, _ in group]
        assert {average.updates for average, _ in group} == {updates}
        for name, expected in reference.items():
            got = torch.full_like(expected, torch.nan)
            for average, _ in group:
                if name in average.weights:
                    begin, size = average._spans[name]
                    real = max(0, min(len(average.weights[name]), size - begin))
                    got[begin : begin + real] = average.weights[name][:real].double()
            assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)
