"""Fixtures of the training tests."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start a process group with this process alone."""
    place = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
