"""Random draws depend on seed, sample and step alone."""

import torch

from pipelines.training.tasks.helpers.random_draws import noise_like


def test_noise_is_a_function_of_seed_sample_and_step_and_not_of_the_batch():
    x = torch.zeros(2, 3, 4)
    both = noise_like(x, 0, ["a", "b"], 5)
    assert torch.equal(both[1], noise_like(x[:1], 0, ["b"], 5)[0])
    for other in (noise_like(x, 1, ["a", "b"], 5), noise_like(x, 0, ["a", "b"], 6), noise_like(x, 0, ["c", "d"], 5)):
        assert not torch.equal(both, other)
    many = noise_like(torch.zeros(1, 10000), 0, ["a"], 0)
    assert abs(many.mean()) < 0.05
    assert abs(many.std() - 1) < 0.05
