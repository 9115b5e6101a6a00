"""A decoder that crashes, hangs or allocates too much costs its source and nothing else."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from data_prep.clip import Segment
from data_prep.curation.sandbox import Sandbox
from tests.data_prep.curation import crashing


def _segments(*names: str) -> list[Segment]:
    return [Segment(name, f"/{name}.mp4") for name in names]


def _pid(sandbox: Sandbox) -> int:
    assert sandbox._child is not None
    return sandbox._child._process.pid


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "tries"


@pytest.fixture
def sandbox(log: Path):
    made = Sandbox(partial(crashing.Crashing, str(log)), stall_s=2.0, memory=256 << 20)
    yield made
    made.close()


def test_one_child_serves_many_segments(sandbox):
    first = _pid(sandbox)
    for segment in sandbox(_segments("a", "b", "c")):
        assert segment.clips[0].media == segment.uri.encode()
    assert _pid(sandbox) == first


@pytest.mark.parametrize(("name", "how"), [("segfault", "SIGSEGV"), ("loop", "no progress")])
def test_what_ends_its_child_twice_is_quarantined(sandbox, log, name, how):
    began = time.monotonic()
    before, poison, after = sandbox(_segments("a", name, "b"))
    assert time.monotonic() - began < 60  # two stalls of 2 s, and starts of children on a busy machine
    (clip,) = poison.clips
    assert (clip.verdict, clip.reason) == ("failed", "quarantine")
    assert clip.error.startswith("its decoder died 2 times: ")
    assert how in clip.error
    assert before.clips[0].kept
    assert after.clips[0].kept
    assert log.read_text().split() == ["a", name, name, "b"]


def test_a_child_that_dies_once_costs_nothing(sandbox, log):
    (segment,) = sandbox(_segments("once"))
    assert segment.clips[0].kept
    assert log.read_text().split() == ["once", "once"]


def test_slow_work_that_reports_progress_is_no_hang(sandbox):
    assert sandbox(_segments("slow"))[0].clips[0].kept


def test_memory_is_bounded(sandbox):
    """Refused memory is an ordinary error: here the work raises it, and the child survives."""
    first = _pid(sandbox)
    with pytest.raises(RuntimeError, match="MemoryError"):
        sandbox(_segments("bomb"))
    assert sandbox(_segments("a"))[0].clips[0].kept
    assert _pid(sandbox) == first


def test_a_child_killed_between_two_segments_is_replaced(sandbox):
    os.kill(_pid(sandbox), signal.SIGKILL)
    assert sandbox(_segments("a"))[0].clips[0].kept


def test_a_users_mistake_in_the_child_is_reported():
    with pytest.raises(ValueError, match=r"^curate.tagger: weights are missing; give a path$"):
        Sandbox(crashing.refuse)


def test_a_child_ends_with_its_worker(sandbox):
    child = sandbox._child
    assert child is not None
    child._line.close()
    assert child._process.wait(timeout=10) == 0
