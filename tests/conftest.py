"""What all tests share. One Ray instance serves the whole session: starting one costs seconds."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Two cores are shared by every worker of every test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `uv run` is not how the workers of a test start, and the dashboard's usage report has nobody to go to.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


# A busy machine is slow, not wrong: no example has a deadline.
settings.register_profile("kinotone", deadline=None)
# CI tries the same examples each time; new ones are found by those who run the tests.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "kinotone")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of 4 logical CPUs without a dashboard; what a test starts on it must end with the test."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=512 << 20, log_to_driver=False)
    yield
    ray.shutdown()
