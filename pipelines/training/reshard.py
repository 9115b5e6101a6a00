"""Resume with another number of workers: a checkpoint in DeepSpeed's universal format, which any number can load.

    <output>/checkpoints/universal-00000200/
        main/                of step-00000200: each complete parameter with its optimizer state, in separate files
        discriminators/      the same of the second engine, for a task with discriminators
        COMMITTED.json       written last

The checkpoint that it was made from is not removed: the per-rank state is read from there and divided among the new
ranks. The universal one is removed when the new workers have written their next checkpoint.

DeepSpeed 0.19.8 loads this format under ZeRO-3 with three faults, which `load` corrects: every parameter group gets the
settings of the first one (so that vectors would have weight decay), all flat groups share one step counter (so that it
advances too fast), and buffers are not loaded.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.training import checkpoint
from pipelines.training.checkpoint import committed, flush, rank_state
from pipelines.training.deepspeed import import_deepspeed


def folder(root: Path, step: int) -> Path:
    """Return the folder of a step's universal checkpoint."""
    return root / f"universal-{step:08d}"


def convert(root: Path, step: int, processes: int) -> None:
    """Write the universal form of a complete checkpoint, unless it exists.

    Each process reads the files of one worker after another, so that it has one worker's share in memory at a time.

    Args:
        root: <output>/checkpoints.
        step: of the checkpoint.
        processes: number of processes to start.

    Raises:
        RuntimeError: DeepSpeed could not convert it; says why.
    """
    target = folder(root, step)
    if committed(target) is not None:
        return
    for left in root.glob(f".{target.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    # A new name, because the process of an interrupted conversion may still be writing.
    half = root / f".{target.name}-{time.time_ns()}"
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(checkpoint.folder(root, step)), str(half), str(processes)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no error text").splitlines()[-1]
        shutil.rmtree(half, ignore_errors=True)
        raise RuntimeError(f"the checkpoint of step {step} could not be converted to the universal format: {last}")
    files = [file for file in sorted(half.rglob("*")) if file.is_file()]
    for file in files:
        flush(file)
    if target.exists():
        checkpoint.remove(target)
    half.replace(target)
    sizes = {str(file.relative_to(half)): (target / file.relative_to(half)).stat().st_size for file in files}
    checkpoint.commit(target, {"step": step}, sizes)


def load(engines: Mapping[str, Any], root: Path, step: int, world: int) -> list[dict[str, Any]]:
    """Load a checkpoint in its universal form into the engines; every rank calls it.

    Args:
        engines: as in `checkpoint.Writer`, started with `load_universal`.
        root: <output>/checkpoints.
        step: of the checkpoint.
        world: number of ranks that wrote the checkpoint.

    Returns:
        The states that those ranks saved, by rank.
    """
    states = [rank_state(checkpoint.folder(root, step), rank) for rank in range(world)]
    for name, engine in engines.items():
        optimizer = engine.optimizer.optimizer
        kept = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        loaded, _ = engine.load_checkpoint(str(folder(root, step)), tag=name or "main")
        assert loaded is not None, f"DeepSpeed did not load {name or 'main'} of {folder(root, step)}"
        for group, settings in zip(optimizer.param_groups, kept, strict=True):
            group.update(settings)
        for flat, state in optimizer.state.items():
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(flat.device, copy=True)
        buffers = dict(engine.module.named_buffers())
        for buffer, value in states[0]["buffers"][name].items():
            buffers[buffer].copy_(value)
    dist.barrier()
    return states


def main() -> None:
    """Convert the checkpoint that the command line names; `convert` starts a process that runs this.

    A separate process, because DeepSpeed forks processes to convert, and they must not be forked from a Ray worker.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("processes", type=int)
    called = parser.parse_args()
    import_deepspeed(torch.device("cpu"))
    from deepspeed.checkpoint import ds_to_universal

    folders = {path.name: path for path in called.source.iterdir() if path.is_dir()}
    for name, source in {"main": called.source, **folders}.items():
        # DeepSpeed also searches subfolders, so give it a folder of links to this folder's files only.
        with tempfile.TemporaryDirectory() as links:
            for file in source.iterdir():
                if file.is_file():
                    (Path(links) / file.name).symlink_to(file.absolute())
            ds_to_universal.main(
                argparse.Namespace(
                    input_folder=links,
                    output_folder=str(called.target / name),
                    num_extract_workers=called.processes,
                    num_merge_workers=called.processes,
                    keep_temp_folder=False,
                    strict=True,
                    inject_missing_state=True,
                )
            )


if __name__ == "__main__":
    main()
