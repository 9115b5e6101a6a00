"""Checkpoints: all ranks write them while training continues; a checkpoint is complete or it is ignored.

    <output>/checkpoints/step-00000200/
        …                    DeepSpeed's shards: weights, fp32 weights, optimizer
        discriminators/…     the same of the second engine, for a task with discriminators
        rank-00000.pt        one file per rank: step, moving average, buffers, counters, random states
        COMMITTED.json       written last: step, world size, every file with its size

A folder without COMMITTED.json, or with a file of another size than COMMITTED.json lists, is never loaded. A checkpoint
is removed only after a newer one is complete.

The training loop waits only while each rank copies its share to host memory; a thread writes the copies to disk. The
threads of the ranks exchange the list of their files over a separate process group, so that these collective calls
cannot mix with the loop's. The thread of rank 0 then writes the marker. DeepSpeed 0.19 has two asynchronous writers,
which are not used: "decoupled" gives the tensors themselves (not copies) to another process, waits for it before the
next optimizer step, and does not notice when that process dies; "datastates" needs a package that is not on PyPI.
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
    """Return the folder of a step's checkpoint. root: <output>/checkpoints."""
    return root / f"step-{step:08d}"


def committed(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint's marker; None when the checkpoint is not complete."""
    marker = path / MARKER
    if not marker.is_file():
        return None
    try:
        content = json.loads(marker.read_text())
    except ValueError:
        return None  # the marker itself is incomplete
    for name, size in content["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return None
    return content


def latest(root: Path) -> tuple[int, dict[str, Any]] | None:
    """Return the step and the marker's content of the newest complete checkpoint; None when there is none."""
    for path in sorted(root.glob("step-*"), reverse=True):
        if (content := committed(path)) is not None:
            return content["step"], content
    return None


def commit(path: Path, content: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Write the marker of a folder; call it when all files of the folder are on disk.

    Args:
        path: the folder.
        content: content of the marker, in addition to the list of files.
        sizes: bytes of each file, by name relative to `path`.
    """
    half = path / f".{MARKER}"
    half.write_text(json.dumps({**content, "files": dict(sorted(sizes.items()))}, indent=1))
    flush(half)
    half.replace(path / MARKER)
    flush(path)


def remove(path: Path) -> None:
    """Remove a checkpoint: its marker first, so that an interrupted removal leaves no complete checkpoint."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)


def flush(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Writer:
    """Writer of one rank's files of every checkpoint. Every rank makes one and calls the same methods.

    Args:
        root: <output>/checkpoints.
        engines: DeepSpeed engines, by their folder in a checkpoint; "" is the checkpoint folder itself.
        about: entries that are added to every marker.
        keep: number of the newest complete checkpoints that are not removed.

    Attributes:
        write_s: seconds that the last complete checkpoint took, from the call of `save` on; 0 before the first.
    """

    def __init__(self, root: Path, engines: Mapping[str, Any], about: Mapping[str, Any], keep: int) -> None:
        self._root, self._engines, self._about, self._keep = root, engines, about, keep
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        # A long timeout for slow disks. The end of a rank's process is noticed at once: its connection closes.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(hours=6))
        self._buffers: dict[tuple, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.write_s = 0.0

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Copy engines and state to host memory, and start a thread that writes the checkpoint of `step`.

        Args:
            step: number of finished steps.
            state: what this rank saves in addition to the engines: moving average, buffers, counters.

        Raises:
            RuntimeError: the previous checkpoint could not be written.
        """
        self.wait()
        began = time.perf_counter()
        path = folder(self._root, step)
        if self._rank == 0 and path.exists():
            remove(path)  # left incomplete by an interrupted run
        dist.barrier()
        files: dict[Path, Any] = {}
        for name, engine in self._engines.items():
            original = engine.checkpoint_engine
            engine.checkpoint_engine = _CopyingEngine(original, files, self._buffers, name)
            try:
                place = path / name
                # Leave out frozen parameters: a resumed run reads them from their file or draws them from the seed.
                engine.save_checkpoint(
                    str(place.parent), tag=place.name, save_latest=False, exclude_frozen_parameters=True
                )
            finally:
                engine.checkpoint_engine = original
        per_rank = {**state, "step": step, "random": random_state()}
        file = path / f"rank-{self._rank:05d}.pt"
        files[file] = host_copy(per_rank, self._buffers, (file.name,))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._thread = threading.Thread(target=self._work, args=(path, step, files, began), name="save", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Block until the pending checkpoint is written.

        Raises:
            RuntimeError: it could not be written; says why. The checkpoint before it still exists.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()

    def raise_error(self) -> None:
        """Raise the error of a failed write, without waiting for a pending one.

        Raises:
            RuntimeError: a checkpoint could not be written; says why.
        """
        if self._error is not None:
            raise RuntimeError(f"a checkpoint could not be written: {self._error}") from self._error

    def _work(self, path: Path, step: int, files: dict[Path, Any], began: float) -> None:
        """Run `_write` in the thread; measure its time, and store its error for `raise_error`."""
        try:
            self._write(path, step, files)
            self.write_s = time.perf_counter() - began
        except BaseException as error:
            self._error = error

    def _write(self, path: Path, step: int, files: dict[Path, Any]) -> None:
        """Write this rank's files and wait for the other ranks; rank 0 then writes the marker.

        Args:
            path: folder of the checkpoint.
            step: of the checkpoint.
            files: path of a file → its content in host memory.

        Raises:
            RuntimeError: a rank could not write its files.
        """
        written: dict[str, int] | str = {}
        try:
            for file, content in files.items():
                torch.save(content, file)
                flush(file)
                written[str(file.relative_to(path))] = file.stat().st_size
        except Exception as error:
            # Send the error to the other ranks, which wait in the collective call.
            written = f"rank {self._rank}: {type(error).__name__}: {error}"
        every: list[Any] = [None] * self._world
        dist.all_gather_object(every, written, group=self._group)
        failed = [sent for sent in every if isinstance(sent, str)]
        if failed:
            raise RuntimeError(f"step {step}, {failed[0]}")
        if self._rank == 0:
            sizes = {name: size for sent in every for name, size in sent.items()}
            commit(path, {"step": step, "world": self._world, **self._about}, sizes)
            self._retain()

    def _retain(self) -> None:
        """Remove all complete checkpoints except the newest `keep`, and all universal checkpoints (see `reshard`)."""
        complete = [other for other in sorted(self._root.glob("step-*")) if (other / MARKER).exists()]
        # A universal checkpoint is not needed any more after a newer checkpoint is complete.
        for old in (*complete[: -self._keep], *self._root.glob("universal-*"), *self._root.glob(".universal-*")):
            remove(old)


class _CopyingEngine:
    """A replacement of DeepSpeed's checkpoint engine, whose `save` copies to host memory and writes nothing.

    Every other attribute is that of the original.

    Args:
        original: DeepSpeed's checkpoint engine.
        files: `save` adds path → copy.
        buffers: as in `host_copy`.
        name: folder of the DeepSpeed engine in a checkpoint, which separates its buffers from those of others.
    """

    def __init__(self, original: Any, files: dict[Path, Any], buffers: dict[tuple, Tensor], name: str) -> None:
        self._original, self._files, self._buffers, self._name = original, files, buffers, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def save(self, state_dict: Any, path: str) -> None:
        """Copy what DeepSpeed would write to `path`."""
        file = Path(path)
        self._files[file] = host_copy(state_dict, self._buffers, (self._name, file.name))


def host_copy(value: Any, buffers: dict[tuple, Tensor], key: tuple) -> Any:
    """Copy the tensors of `value` to host memory; copies from a GPU go to pinned memory and do not wait.

    Args:
        value: tensors in dicts, lists and tuples. Other values in it are not copied, so they must not change later.
        buffers: key → the copy of the previous save. It is overwritten, because to allocate memory takes longer than
            to copy.
        key: key of `value` in `buffers`.

    Returns:
        `value`, with copies in the place of its tensors.
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
    """Load a checkpoint into the engines; every rank calls it. As many ranks as now must have written it.

    Args:
        engines: as in `Writer`.
        root: <output>/checkpoints.
        step: of the checkpoint.

    Returns:
        A list with one element, the state that this rank saved.
    """
    path = folder(root, step)
    for name, engine in engines.items():
        place = path / name
        loaded, _ = engine.load_checkpoint(str(place.parent), tag=place.name, load_module_strict=False)
        assert loaded is not None, f"DeepSpeed did not load {place}"
    return [rank_state(path, dist.get_rank())]


def rank_state(path: Path, rank: int) -> dict[str, Any]:
    """Return the state that a rank saved in addition to the engines. Its tensors are read from disk when first used.

    Args:
        path: folder of the checkpoint.
        rank: the rank that saved the state.
    """
    return torch.load(path / f"rank-{rank:05d}.pt", map_location="cpu", weights_only=True, mmap=True)


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, in types that `weights_only` can load."""
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
    """Restore the generators from what `random_state` returned."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, *rest = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].clone())
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
