"""Measure on one GPU whatever only a GPU can tell, and leave what was measured even where the run is cut off.

    python -m benchmarks.gpu --output DIR                 # everything, in at most nine minutes
    python -m benchmarks.gpu --output DIR --only machine training-step
    python -m benchmarks.gpu --output DIR --dry-run       # tiny sizes on the CPU: tests this command, not a machine

It needs this repository, torch 2.8 to 2.11 and, for packages that are not installed, the wheels that `make gpu-bundle`
puts into the folder `gpu-bundle`. Each measurement runs in a process of its own, within its budget of seconds: one that
fails, hangs or poisons its CUDA context costs itself alone. DIR/gpu.json is renewed after every figure; DIR/gpu.md has
the tables for benchmarks/RESULTS.md; DIR/profile-*.txt has the kernels of what missed its aim. Exit code 1: something
failed, was cut off, or missed an aim.
"""

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Else torch asks the CUDA runtime, and the processes that this one forks can no longer use the GPU.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from benchmarks.gpu.bundle import add_missing

added = add_missing(Path(__file__).parents[2] / "gpu-bundle")

import torch  # noqa: E402

from benchmarks.gpu.measurement import Measurement, Session, measurements  # noqa: E402
from benchmarks.gpu.table import markdown  # noqa: E402

# Times a GPU's budget that a dry run may take: it measures nothing, and its CPU may be busy.
SLOW_CPU = 10
# Seconds that the last measurement is stopped before the limit, to write what there is.
RESERVE_S = 3.0


def main() -> int:
    """Run the measurements that were asked for; exit 1 when one failed, was cut off or missed a check."""
    known = measurements()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu.json, gpu.md and profiles")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it (default 9)")
    parser.add_argument("--only", nargs="+", choices=list(known), metavar="NAME", help=", ".join(known))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, in under a minute")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    run: dict[str, Any] = {
        "command": "python -m benchmarks.gpu " + " ".join(_shown(sys.argv[1:])),
        "date": datetime.date.today().isoformat(),
        "machine": _in_child(lambda send: send(_machine(args.dry_run)), 60.0)[0][-1],
        "from the bundle": added,
        "measurements": [],
    }
    device = "cpu" if args.dry_run else "cuda"
    if not args.dry_run and not run["machine"]["cuda"]:
        print("benchmarks.gpu: no CUDA device is visible here; --dry-run tests the command on the CPU", file=sys.stderr)
        return 2
    until = time.monotonic() + 60 * args.minutes * (SLOW_CPU if args.dry_run else 1) - RESERVE_S
    for name in args.only or known:
        _measure(known[name], run, device, args, until)
    (args.output / "gpu.md").write_text(markdown(run))
    print(markdown(run))
    statuses = [m["status"] for m in run["measurements"]]
    figures = [figure for m in run["measurements"] for figure in m["figures"]]
    done = all(status == "done" for status in statuses)
    return 0 if done and all(figure.get("met", True) for figure in figures) else 1


def _measure(one: Measurement, run: dict[str, Any], device: str, args: argparse.Namespace, until: float) -> None:
    """Run one measurement in its own process and record each of its figures as it comes."""
    start = time.monotonic()
    budget = min(SLOW_CPU * one.seconds if args.dry_run else one.seconds, until - start)
    entry: dict[str, Any] = {"name": one.name, "title": one.title, "status": "running", "seconds": 0.0, "figures": []}
    run["measurements"].append(entry)

    def save() -> None:
        entry["seconds"] = time.monotonic() - start
        whole = args.output / "gpu.json.part"
        whole.write_text(json.dumps(run, indent=1, ensure_ascii=False))
        whole.replace(args.output / "gpu.json")

    def note(figure: dict[str, Any]) -> None:
        entry["figures"].append(figure)
        value = figure["value"]
        shown = figure["note"] if value is None else f"{value:.4g} {figure['unit']} {figure['note']}"
        print(f"[{time.monotonic() - start:6.1f} s] {one.name}: {figure['name']}: {shown}", flush=True)
        save()

    if budget < 1:
        entry["status"] = "not measured: no time was left"
        save()
        return

    def work(send: Callable[[Any], None]) -> None:
        if args.dry_run:
            torch.set_num_threads(1)  # at these sizes threads would wait for each other on a busy machine
        one.run(Session(device, args.dry_run, args.output, start + budget, send))

    _, entry["status"] = _in_child(work, budget, note)
    save()


def _in_child(
    work: Callable[[Callable[[Any], None]], None], limit: float, note: Callable[[Any], None] | None = None
) -> tuple[list[Any], str]:
    """Run `work` in a forked process of its own group: what it sent, and "done" or what became of it.

    Forked, for then torch is imported once; the parent never touches the GPU, or no child could.
    """
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)

    def child() -> None:
        os.setsid()
        try:
            work(there.send)
        except Exception as error:
            traceback.print_exc()
            there.send(f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    there.close()
    sent, status, until = [], "done", time.monotonic() + limit
    for record in _records(here, until):
        if isinstance(record, str):
            status = record
        else:
            sent.append(record)
            if note is not None:
                note(record)
    process.join(max(0.0, until - time.monotonic()))
    if process.exitcode is None:
        status = f"cut off after {limit:.0f} s"
    elif process.exitcode and status == "done":
        status = f"failed: its process ended with {process.exitcode}"
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):  # its group: also the processes of the compiler
            os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return sent, status


def _records(pipe: Connection, until: float) -> Any:
    """Yield what arrives until the other end is closed or the time is over."""
    while (left := until - time.monotonic()) > 0 and pipe.poll(left):
        try:
            yield pipe.recv()
        except EOFError:
            return


def _machine(dry: bool) -> dict[str, Any]:
    cuda = torch.cuda.is_available() and not dry
    return {
        "cuda": cuda,
        "card": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads (dry run)",
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else 0.0,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "python": platform.python_version(),
    }


def _shown(arguments: list[str]) -> list[str]:
    """The arguments without the folder, which is this machine's own."""
    shown = list(arguments)
    if "--output" in shown:
        shown[shown.index("--output") + 1] = "DIR"
    return shown


if __name__ == "__main__":
    sys.exit(main())
