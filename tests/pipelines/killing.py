"""Run curation and training as real processes, and kill their processes at chosen moments."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from data_prep.dataset import storage
from data_prep.dataset.index import read_manifest
from data_prep.dataset.ledger import Ledger
from data_prep.media.write_mp4 import write_mp4
from pipelines.training.metrics import METRICS, read_metrics
from pipelines.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
KINDS = ("worker", "actor", "raylet", "driver")

_RUN = """
import sys
from data_prep.settings import CurateSettings
from pipelines.dataflow.prepare import run_prepare
run_prepare(("curate",), [sys.argv[1]], sys.argv[2], {"curate": CurateSettings(clip_min_s=1.0)})
"""

_TRAIN = """
import sys, pathlib
from pipelines.training.settings import TrainSettings
from pipelines.training.driver import train
train(sys.argv[1], TrainSettings.model_validate_json(pathlib.Path(sys.argv[2]).read_text()), sys.argv[3])
"""


def start_training(task: str, settings: TrainSettings, output: Path) -> subprocess.Popen:
    """Start a training run in a new session."""
    chosen = output.with_name(f"{output.name}-settings.json")
    chosen.write_text(settings.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-c", _TRAIN, task, str(chosen), str(output)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def train_until_killed(task: str, settings: TrainSettings, output: Path, steps: int) -> None:
    """Run a training that logs each step; SIGKILL driver and workers when `steps` are logged."""
    driver = start_training(task, settings, output)
    try:
        deadline = time.monotonic() + 500
        while len(read_metrics(output / METRICS)) < steps:
            assert driver.poll() is None, "the driver ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    _wait_until_still(output)


def strike_training(process: subprocess.Popen, kind: str, output: Path, step: int, rng: random.Random) -> bool:
    """SIGKILL a worker, all workers or the driver of a run that logs each step, a moment after `step` was logged.

    False: the run ended before.
    """
    while len(read_metrics(output / METRICS)) < step:
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 0.3))
    workers: list[psutil.Process] = []
    while not workers:
        if process.poll() is not None:
            return False
        workers = [child for child in psutil.Process(process.pid).children(recursive=True) if _trains(child)]
    if kind == "driver":
        struck = [psutil.Process(process.pid)]
    else:
        struck = workers if kind == "workers" else [rng.choice(workers)]
    for each in struck:
        each.kill()
    psutil.wait_procs(struck, timeout=60)
    return True


def _trains(process: psutil.Process) -> bool:
    try:
        return "ray::RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _wait_until_still(output: Path) -> None:
    """Block until nothing has been written for 5 s: workers outlive their driver for a moment."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        newest = max(path.stat().st_mtime for path in output.rglob("*") if path.is_file())
        if time.time() - newest > 5:
            return
        time.sleep(0.5)


def films(folder: Path, count: int) -> Path:
    """Write clips of 2 s with bursts of sound: every third is silent, and the last file is not a video."""
    folder.mkdir()
    for n in range(count):
        rng = np.random.default_rng(n)
        frames = np.repeat(rng.integers(0, 255, (48, 1, 1, 3), dtype=np.uint8), 64, axis=1).repeat(96, axis=2)
        sound = np.zeros((2, 48000), dtype=np.float32)
        if n % 3:
            for start in rng.integers(0, 44000, 4):
                sound[:, start : start + 4000] += rng.normal(0, 0.3, 4000) * np.linspace(1, 0, 4000)
        write_mp4(folder / f"film{n:02}.mp4", frames, 24, sound, 24000)
    (folder / "no_film.mp4").write_bytes(b"this is text")
    return folder


def digests(root: str | Path) -> dict[str, str]:
    """SHA-256 of everything that is a function of input and settings: shards, manifest parts, ledger, index, and the
    manifest as one sorted table; the same for a folder and an object store."""
    files = [storage.at(part, name) for part in ("shards", "manifest", "ledger") for name in _names(root, part)]
    found = {name: storage.read(storage.at(root, name)) for name in [*files, "index.parquet"]}
    table = read_manifest(root).sort_by([("segment_id", "ascending"), ("clip_id", "ascending")])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    found["sorted manifest"] = sink.getvalue().to_pybytes()
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(found.items())}


def _names(root: str | Path, part: str) -> list[str]:
    return sorted(storage.names(storage.at(root, part)))


def start(source: Path, output: str | Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Start a run in a new process group, so that no process outlives the test."""
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(source), str(output)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen, timeout: float = 400) -> int:
    """Wait for a run and kill the processes that it left; returns its exit code."""
    try:
        return process.wait(timeout)
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        end_family(process.pid)


def end_family(leader: int) -> None:
    """Kill the remaining processes of a session: Ray's clean-up takes seconds after a SIGKILL."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                process.kill()
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue


def victims(process: subprocess.Popen, kind: str) -> list[psutil.Process]:
    """The living processes of one kind in a run; "worker" is an actor's decoding child or any process of Ray."""
    if kind == "driver":
        return [psutil.Process(process.pid)]
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        actor, decoder = "StageWorker" in line and line.startswith("ray::"), "data_prep.curation.sandbox" in line
        if (
            (kind == "raylet" and child.name() == "raylet")
            or (kind == "actor" and actor)
            or (kind == "worker" and (decoder or line.startswith("ray::")))
        ):
            found.append(child)
    return found


def strike(process: subprocess.Popen, kind: str, seed: int, committed: Callable[[], int], total: int) -> int:
    """SIGKILL one process of a kind at a moment that the seed picks; gives how many segments were committed then.

    -1: the run was over before the moment came.
    """
    rng = random.Random(f"{kind} {seed}")
    wanted, pause = rng.randrange(round(0.8 * total)), rng.uniform(0.0, 0.1)
    while committed() < wanted:
        if process.poll() is not None:
            return -1
        time.sleep(0.01)
    time.sleep(pause)
    while process.poll() is None:
        try:
            living = victims(process, kind)
            if living:
                at = committed()
                os.kill(rng.choice(living).pid, signal.SIGKILL)
                return at
        except (psutil.Error, ProcessLookupError):
            pass
        time.sleep(0.01)
    return -1


def completed(source: Path, output: str | Path, environment: dict[str, str] | None = None) -> None:
    """Repeat the command until it succeeds; it must succeed at the second time."""
    for _ in range(2):
        process = start(source, output, environment)
        printed = process.communicate(timeout=400)
        end_family(process.pid)
        if process.returncode == 0:
            return
    raise AssertionError(printed)


def counts(root: str | Path) -> dict:
    """The summary of a set without times."""
    from pipelines.dataflow.commit import read_summary

    summary = read_summary(root)
    assert summary is not None
    return {k: v for k, v in summary.items() if k not in ("stage_seconds", "wall_seconds")}


def committed(root: str | Path) -> Callable[[], int]:
    return lambda: len(Ledger(root).done())
