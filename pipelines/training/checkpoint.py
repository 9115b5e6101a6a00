"""Checkpoints: written by all ranks beside the training, whole or not at all, each intact until the next is whole.

    <output>/checkpoints/step-00000200/
        …                    DeepSpeed's shards: weights, fp32 weights, optimizer
        discriminators/…     the same of the second engine, where the task has one
        rank-00000.pt        per rank: step, moving average, buffers, counters, random states
        COMMITTED.json       written last: step, world size, every file with its size

A folder without COMMITTED.json, or one whose files are not of the sizes it names, is never loaded.

The training loop stops for as long as each rank copies its share to host memory; a thread writes the copies. The ranks'
threads tell each other what they have written over a process group of their own, so that they never meet the loop's
collectives, and rank 0's writes the marker when all files are on the disk. DeepSpeed 0.19 has asynchronous writers of
its own, which do not do: "decoupled" hands the live tensors to another process and waits for it before the next
optimizer step, and goes on without a word where that process has died; "datastates" is a package outside PyPI.
"""

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

MARKER = "COMMITTED.json"


def folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def committed(path: Path) -> dict[str, Any] | None:
    """What the marker of a checkpoint says, or None when the checkpoint is not whole."""
    marker = path / MARKER
    if not marker.is_file():
        return None
    try:
        said = json.loads(marker.read_text())
    except ValueError:
        return None  # cut short
    for name, size in said["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return None
    return said


def latest(root: Path) -> tuple[int, dict[str, Any]] | None:
    """(step, what its marker says) of the newest whole checkpoint, or None."""
    for path in sorted(root.glob("step-*"), reverse=True):
        if (said := committed(path)) is not None:
            return said["step"], said
    return None


def commit(path: Path, said: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Write the marker of a folder whose files are on the disk. sizes: bytes of each, by name relative to `path`."""
    half = path / f".{MARKER}"
    half.write_text(json.dumps({**said, "files": dict(sorted(sizes.items()))}, indent=1))
    flush(half)
    half.replace(path / MARKER)
    flush(path)


def remove(path: Path) -> None:
    """The marker goes first, so that a removal that is cut off leaves nothing that looks whole."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)


def flush(path: Path) -> None:
    """Have a file or a folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Writer:
    """The checkpoints of a run, as one rank writes them; every rank makes one, and calls the same methods.

    Args:
        root: <output>/checkpoints.
        engines: DeepSpeed's engines by the folder that each has in a checkpoint; "" is the checkpoint itself.
        about: goes into every marker.
        keep: newest whole checkpoints that stay.

    Attributes:
        write_s: seconds from the beginning of the last save that is whole until it was; 0 before the first.
    """

    def __init__(self, root: Path, engines: Mapping[str, Any], about: Mapping[str, Any], keep: int) -> None:
        self._root, self._engines, self._about, self._keep = root, engines, about, keep
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        # A slow disk is waited for; a rank that has died is known at once by its closed connection.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(hours=6))
        self._buffers: dict[tuple, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.write_s = 0.0

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Copy the state of all ranks and begin to write it as the checkpoint of `step`.

        Args:
            state: this rank's own: moving average, buffers, counters.

        Raises:
            RuntimeError: the checkpoint before this one could not be written.
        """
        self.wait()
        began = time.perf_counter()
        path = folder(self._root, step)
        if self._rank == 0 and path.exists():
            remove(path)  # a half-written one of a run that was cut off
        dist.barrier()
        files: dict[Path, Any] = {}
        for name, engine in self._engines.items():
            theirs = engine.checkpoint_engine
            engine.checkpoint_engine = _Copying(theirs, files, self._buffers, name)
            try:
                place = path / name
                # What is frozen is a given file's, or of the seed: a run that goes on builds it again.
                engine.save_checkpoint(
                    str(place.parent), tag=place.name, save_latest=False, exclude_frozen_parameters=True
                )
            finally:
                engine.checkpoint_engine = theirs
        own = {**state, "step": step, "random": random_state()}
        file = path / f"rank-{self._rank:05d}.pt"
        files[file] = host_copy(own, self._buffers, (file.name,))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._thread = threading.Thread(target=self._work, args=(path, step, files, began), name="save", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what was saved is whole.

        Raises:
            RuntimeError: it could not be written; says why. The checkpoint before it is still there.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises RuntimeError where a checkpoint could not be written; does not wait."""
        if self._error is not None:
            raise RuntimeError(f"a checkpoint could not be written: {self._error}") from self._error

    def _work(self, path: Path, step: int, files: dict[Path, Any], began: float) -> None:
        try:
            self._write(path, step, files)
            self.write_s = time.perf_counter() - began
        except BaseException as error:
            self._error = error

    def _write(self, path: Path, step: int, files: dict[Path, Any]) -> None:
        written: dict[str, int] | str = {}
        try:
            for file, content in files.items():
                torch.save(content, file)
                flush(file)
                written[str(file.relative_to(path))] = file.stat().st_size
        except Exception as error:
            # The other ranks must hear of it, for they wait.
            written = f"rank {self._rank}: {type(error).__name__}: {error}"
        every: list[Any] = [None] * self._world
        dist.all_gather_object(every, written, group=self._group)
        failed = [said for said in every if isinstance(said, str)]
        if failed:
            raise RuntimeError(f"step {step}, {failed[0]}")
        if self._rank == 0:
            sizes = {name: size for said in every for name, size in said.items()}
            commit(path, {"step": step, "world": self._world, **self._about}, sizes)
            self._retain()

    def _retain(self) -> None:
        whole = [other for other in sorted(self._root.glob("step-*")) if (other / MARKER).exists()]
        # Another world's form of a checkpoint served to go on from it.
        for old in (*whole[: -self._keep], *self._root.glob("universal-*"), *self._root.glob(".universal-*")):
            remove(old)


class _Copying:
    """DeepSpeed's checkpoint engine, but for `save`: it copies to host memory what is to be written."""

    def __init__(self, theirs: Any, files: dict[Path, Any], buffers: dict[tuple, Tensor], name: str) -> None:
        self._theirs, self._files, self._buffers, self._name = theirs, files, buffers, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._theirs, name)

    def save(self, state_dict: Any, path: str) -> None:
        file = Path(path)
        self._files[file] = host_copy(state_dict, self._buffers, (self._name, file.name))


def host_copy(value: Any, buffers: dict[tuple, Tensor], key: tuple) -> Any:
    """`value` with copies of its tensors in host memory, pinned for those of a GPU, whose copies are not waited for.

    Args:
        value: tensors in dicts, lists and tuples; what else it holds must not change.
        buffers: the copies of the time before, by place; they are written over, for fresh memory costs more than the
            copying does.
        key: the place of `value`.
    """
    if isinstance(value, Tensor):
        copy = buffers.get(key)
        if copy is None or (copy.shape, copy.dtype) != (value.shape, value.dtype):
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            buffers[key] = copy
        return copy.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {name: host_copy(part, buffers, (*key, name)) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(host_copy(part, buffers, (*key, n)) for n, part in enumerate(value))
    return value


def load(engines: Mapping[str, Any], root: Path, step: int) -> list[dict[str, Any]]:
    """Bring the engines to the checkpoint of `step`, which as many ranks wrote, and give this rank's state, alone in a
    list; every rank calls it.
    """
    path = folder(root, step)
    for name, engine in engines.items():
        place = path / name
        loaded, _ = engine.load_checkpoint(str(place.parent), tag=place.name, load_module_strict=False)
        assert loaded is not None, f"DeepSpeed did not load {place}"
    return [rank_state(path, dist.get_rank())]


def rank_state(path: Path, rank: int) -> dict[str, Any]:
    """What a rank saved beside the engines; its tensors are read from the file as they are used."""
    return torch.load(path / f"rank-{rank:05d}.pt", map_location="cpu", weights_only=True, mmap=True)


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, in types that `weights_only` loads."""
    version, keys, gauss = random.getstate()
    name, words, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(keys), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(words).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, *rest = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].clone())
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
