"""Checkpoints: written by all ranks, whole or not at all, each one intact until the next is whole.

    <output>/checkpoints/step-00000200/
        …                    DeepSpeed's shards: weights, fp32 weights, optimizer
        discriminators/…     the same of the second engine, where the task has one
        rank-00000.pt        per rank: step, moving average, counters, random states
        COMMITTED.json       written last: step, world size, every file with its size

A folder without COMMITTED.json, or one whose files are not of the sizes it names, is never loaded.
"""

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

MARKER = "COMMITTED.json"


def folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def committed(path: Path) -> dict[str, Any] | None:
    """What the marker of a checkpoint says, or None when the checkpoint is not whole."""
    marker = path / MARKER
    if not marker.is_file():
        return None
    said = json.loads(marker.read_text())
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


def save(
    engine: Any,
    beside: Mapping[str, Any],
    root: Path,
    step: int,
    state: dict[str, Any],
    about: dict[str, Any],
    keep: int,
) -> None:
    """Save the state of all ranks as the checkpoint of `step`; every rank calls it.

    Args:
        beside: further engines, by the folder that each has in the checkpoint.
        state: this rank's own: moving average, counters.
        about: goes into the marker.
        keep: newest whole checkpoints that stay.
    """
    path, rank = folder(root, step), dist.get_rank()
    if rank == 0 and path.exists():
        _remove(path)  # a half-written one of a run that was cut off
    dist.barrier()
    # What is frozen is a given file's, or of the seed: a run that goes on builds it again.
    engine.save_checkpoint(str(root), tag=path.name, save_latest=False, exclude_frozen_parameters=True)
    for name, other in beside.items():
        other.save_checkpoint(str(path), tag=name, save_latest=False)
    torch.save(state | {"step": step, "random": random_state()}, path / f"rank-{rank:05d}.pt")
    dist.barrier()
    if rank == 0:
        files = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
        for file in files.values():
            _flush(file)
        said = {"step": step, "world": dist.get_world_size(), **about}
        said["files"] = {name: file.stat().st_size for name, file in files.items()}
        half = path / f".{MARKER}"
        half.write_text(json.dumps(said, indent=1))
        _flush(half)
        half.replace(path / MARKER)
        _flush(path)
        whole = [other for other in sorted(root.glob("step-*")) if (other / MARKER).exists()]
        for old in whole[:-keep]:
            _remove(old)
    # No rank may go on to overwrite, or report, what is not yet whole.
    dist.barrier()


def load(engine: Any, beside: Mapping[str, Any], root: Path, step: int) -> dict[str, Any]:
    """Bring the engines to the checkpoint of `step` and return this rank's own state; every rank calls it."""
    path = folder(root, step)
    for place, each in {path: engine, **{path / name: other for name, other in beside.items()}}.items():
        loaded, _ = each.load_checkpoint(str(place.parent), tag=place.name, load_module_strict=False)
        assert loaded is not None, f"DeepSpeed did not load {place}"
    state = torch.load(path / f"rank-{dist.get_rank():05d}.pt", map_location="cpu", weights_only=True)
    set_random_state(state["random"])
    return state


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
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _remove(path: Path) -> None:
    """The marker goes first, so that a removal that is cut off leaves nothing that looks whole."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
