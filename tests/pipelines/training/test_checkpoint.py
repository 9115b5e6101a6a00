"""Checkpoints: the loop stops only to copy, and only a complete checkpoint is ever loaded."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.training import checkpoint

ROOT = Path(__file__).parents[3]


class Engine:
    """The part of a DeepSpeed engine that a checkpoint needs."""

    def __init__(self, size: int = 1000) -> None:
        self.weights = torch.zeros(size)
        self.checkpoint_engine: Any = None

    def save_checkpoint(self, root: str, tag: str, save_latest: bool, exclude_frozen_parameters: bool) -> None:
        (Path(root) / tag).mkdir(parents=True, exist_ok=True)
        self.checkpoint_engine.save({"weights": self.weights, "steps": 3}, f"{root}/{tag}/shard.pt")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event; writing waits until it is set."""
    go, write = threading.Event(), torch.save

    def save(content: Any, path: Path) -> None:
        assert go.wait(30)
        write(content, path)

    monkeypatch.setattr(torch, "save", save)
    return go


def found(root: Path) -> int | None:
    newest = checkpoint.latest(root)
    return newest and newest[0]


def test_the_loop_goes_on_while_a_checkpoint_is_written(alone, held, tmp_path):
    engines = {"": Engine(), "discriminators": Engine()}
    writer = checkpoint.Writer(tmp_path, engines, {"task": "dit"}, keep=1)
    held.set()
    writer.save(1, {"skipped": 0})
    writer.wait()
    held.clear()
    for engine in engines.values():
        engine.weights.fill_(2.0)
    counts = torch.ones(3)
    writer.save(2, {"counts": counts})
    # The next step does not change the tensors that are being written.
    for tensor in (*(engine.weights for engine in engines.values()), counts):
        tensor.fill_(9.0)
    assert found(tmp_path) == 1
    held.set()
    writer.wait()
    assert found(tmp_path) == 2
    assert not checkpoint.folder(tmp_path, 1).exists()
    path = checkpoint.folder(tmp_path, 2)
    for shard in (path / "shard.pt", path / "discriminators" / "shard.pt"):
        content = torch.load(shard)
        assert content["weights"].eq(2).all()
        assert content["steps"] == 3
    assert checkpoint.rank_state(path, 0)["counts"].eq(1).all()
    said = checkpoint.committed(path)
    assert said is not None
    assert (said["step"], said["world"], said["task"]) == (2, 1, "dit")
    assert set(said["files"]) == {"shard.pt", "discriminators/shard.pt", "rank-00000.pt"}


def test_the_next_save_waits_for_the_one_before(alone, held, tmp_path):
    writer = checkpoint.Writer(tmp_path, {"": Engine()}, {}, keep=2)
    writer.save(1, {})
    threading.Timer(0.5, held.set).start()
    began = time.monotonic()
    writer.save(2, {})
    assert time.monotonic() - began > 0.4
    writer.wait()
    assert found(tmp_path) == 2
    assert writer.write_s > 0


def test_a_write_that_fails_is_told_and_leaves_the_checkpoint_before(alone, tmp_path, monkeypatch):
    writer = checkpoint.Writer(tmp_path, {"": Engine()}, {}, keep=1)
    writer.save(1, {})
    writer.wait()

    def full(content: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    writer.save(2, {})
    with pytest.raises(RuntimeError, match=r"step 2, rank 0: OSError: .*No space left"):
        writer.wait()
    for again in (writer.raise_error, lambda: writer.save(3, {})):
        with pytest.raises(RuntimeError, match="could not be written"):
            again()
    assert found(tmp_path) == 1


_CUT_OFF = """
import sys, time
from pathlib import Path
import torch, torch.distributed as dist
from pipelines.training import checkpoint
from tests.pipelines.training.test_checkpoint import Engine

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}-group", rank=0, world_size=1)
engine = Engine(4_000_000)
writer = checkpoint.Writer(Path(sys.argv[1]), {"": engine}, {}, keep=2)
for step in range(1, 1000):
    engine.weights.fill_(step)
    writer.save(step, {})
    print(step, flush=True)
    writer.wait()
"""


def test_a_kill_in_the_middle_of_a_write_leaves_a_whole_checkpoint(tmp_path):
    """SIGKILL at moments during several writes of 16 MB: every value of a found checkpoint is that of its step."""
    for delay in (0.002, 0.02):
        root = tmp_path / str(delay)
        child = subprocess.Popen([sys.executable, "-c", _CUT_OFF, str(root)], cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert any(line == b"3\n" for line in child.stdout)  # gloo prints lines too
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        newest = checkpoint.latest(root)
        assert newest is not None
        assert newest[0] >= 2
        weights = torch.load(checkpoint.folder(root, newest[0]) / "shard.pt")["weights"]
        assert weights.shape == (4_000_000,)
        assert weights.eq(newest[0]).all()


def test_a_checkpoint_cut_short_anywhere_is_not_found(alone, tmp_path):
    writer = checkpoint.Writer(tmp_path, {"": Engine(10)}, {}, keep=1)
    writer.save(1, {})
    writer.wait()
    path = checkpoint.folder(tmp_path, 1)
    for file in [file for file in path.rglob("*") if file.is_file()]:
        whole = file.read_bytes()
        for size in {0, 1, len(whole) // 2, len(whole) - 1}:
            file.write_bytes(whole[:size])
            assert found(tmp_path) is None, (file.name, size)
        file.write_bytes(whole)
        assert found(tmp_path) == 1


def write_checkpoint(root: Path, step: int) -> Path:
    path = checkpoint.folder(root, step)
    path.mkdir(parents=True)
    (path / "shard.pt").write_bytes(b"x" * 100)
    said = {"step": step, "world": 2, "files": {"shard.pt": 100}}
    (path / checkpoint.MARKER).write_text(json.dumps(said))
    return path


def test_only_a_whole_checkpoint_is_found(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    write_checkpoint(tmp_path, 100)
    unmarked, cut, lost = (write_checkpoint(tmp_path, step) for step in (200, 300, 400))
    (unmarked / checkpoint.MARKER).unlink()
    (cut / "shard.pt").write_bytes(b"x" * 99)
    (lost / "shard.pt").unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[0] == 100


def test_random_states_come_back():
    before = checkpoint.random_state()
    draws = torch.rand(3).tolist(), np.random.rand(3).tolist()
    checkpoint.set_random_state(before)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == draws
