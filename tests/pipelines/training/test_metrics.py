"""Means over samples, steps and ranks, and the file metrics.jsonl."""

import pytest
import torch

from pipelines.training.metrics import Means, per_sample, read_metrics


def test_a_repeat_of_weight_zero_changes_nothing():
    loss = torch.tensor([1.0, 3.0, 100.0, 7.0], requires_grad=True)
    weights = torch.tensor([4 / 3, 4 / 3, 0.0, 4 / 3])
    total, means = per_sample(loss, weights, {"loss": loss})
    assert total.item() == pytest.approx(11 / 3)
    logged, count = means["loss"]
    assert (logged.item(), count.item()) == (11.0, 3.0)
    total.backward()
    assert loss.grad is not None
    assert loss.grad[2] == 0


def test_a_record_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 0.1}]


def test_sums_since_the_last_record_are_shared_out_to_other_ranks(alone):
    ranks = [Means(torch.device("cpu")) for _ in range(2)]
    for n, means in enumerate(ranks):
        means.add({"loss": (torch.tensor(3.0 + n), torch.tensor(2.0)), "bins": (torch.ones(2), torch.tensor([n, 1.0]))})
    for world in (1, 3):
        others = [Means(torch.device("cpu")) for _ in range(world)]
        for means in others:
            means.load([rank.state() for rank in ranks], among=world)
        for name, expected in (("loss", (7.0, 4.0)), ("bins", ([2.0, 2.0], [1.0, 2.0]))):
            sums = [torch.stack([means.state()[name][i] for means in others]).sum(0) for i in (0, 1)]
            for got, value in zip(sums, expected, strict=True):
                assert torch.allclose(got, torch.tensor(value, dtype=torch.float64))
    alone_again = Means(torch.device("cpu"))
    alone_again.load([rank.state() for rank in ranks], among=1)
    assert alone_again.take() == {"loss": 1.75, "bins/0": 2.0, "bins/1": 1.0}
