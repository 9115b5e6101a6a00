"""Going on with another number of workers: a checkpoint in DeepSpeed's universal format, every parameter whole.

    <output>/checkpoints/universal-00000200/
        main/                of step-00000200: each parameter with its optimizer state, in files of its own
        discriminators/      the same of the second engine, where the task has one
        COMMITTED.json       written last

It stands beside the checkpoint that it was made of, which it does not replace: what each rank saved beside the engines
is read from there, and divided anew as it is read. The next checkpoint, which the new workers write, removes it.

DeepSpeed 0.19.8 loads this format under ZeRO-3 with three faults, which `load` mends: every group of parameters gets
the settings of the first (so that vectors would be decayed as matrices are), all flat groups share one tensor for their
step count (so that it runs ahead), and buffers are not loaded.
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


def folder(root: Path, step: int) -> Path:
    return root / f"universal-{step:08d}"


def convert(root: Path, step: int, processes: int) -> None:
    """Write the universal form of the whole checkpoint of `step`, unless it stands already.

    One worker's file after another is read by each process, so that its memory is that of one worker's share.

    Args:
        root: <output>/checkpoints.
        processes: that work at a time.

    Raises:
        RuntimeError: DeepSpeed could not convert it; says why.
    """
    target = folder(root, step)
    if committed(target) is not None:
        return
    for left in root.glob(f".{target.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    # A name of its own: the process of a conversion that was cut off may still be writing.
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
    """Bring the engines to the checkpoint of `step` in its universal form; every rank calls it.

    Args:
        engines: as in `checkpoint.Writer`, made with `load_universal`.
        world: number of ranks that wrote the checkpoint.

    Returns:
        The states of those ranks, in order.
    """
    states = [rank_state(checkpoint.folder(root, step), rank) for rank in range(world)]
    for name, engine in engines.items():
        optimizer = engine.optimizer.optimizer
        kept = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        loaded, _ = engine.load_checkpoint(str(folder(root, step)), tag=name or "main")
        assert loaded is not None, f"DeepSpeed did not load {name or 'main'} of {folder(root, step)}"
        for group, settings in zip(optimizer.param_groups, kept, strict=True):
            group.update(settings)
        for part, state in optimizer.state.items():
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(part.device, copy=True)
        own = dict(engine.module.named_buffers())
        for buffer, value in states[0]["buffers"][name].items():
            own[buffer].copy_(value)
    dist.barrier()
    return states


def main() -> None:
    """What `convert` runs, in a process of its own: DeepSpeed starts further ones, which a Ray worker must not fork."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("processes", type=int)
    called = parser.parse_args()
    from pipelines.training.worker import _import_deepspeed

    _import_deepspeed(torch.device("cpu"))
    from deepspeed.checkpoint import ds_to_universal

    folders = {path.name: path for path in called.source.iterdir() if path.is_dir()}
    for name, source in {"main": called.source, **folders}.items():
        with tempfile.TemporaryDirectory() as own:  # DeepSpeed looks into folders below, too: it is given files alone
            for file in source.iterdir():
                if file.is_file():
                    (Path(own) / file.name).symlink_to(file.absolute())
            ds_to_universal.main(
                argparse.Namespace(
                    input_folder=own,
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
