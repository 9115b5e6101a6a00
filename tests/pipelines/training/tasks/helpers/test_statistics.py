"""The rows from which latent statistics are computed."""

import pytest

from pipelines.training.tasks.helpers.statistics import rank_rows


@pytest.mark.parametrize(("samples", "world", "limit"), [(10, 3, 100), (10, 3, 4), (1, 2, 8), (6, 2, 6)])
def test_rows_for_statistics_are_shared_and_each_counts_once(samples, world, limit):
    shares = [list(rank_rows(samples, rank, world, limit)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    counted = sorted(row for share in shares for row, counts in share if counts)
    assert len(counted) == len(set(counted)) == min(samples, limit)
