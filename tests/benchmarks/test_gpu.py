"""The GPU benchmark's command: it runs at tiny sizes on a CPU, and one measurement that fails costs itself alone."""

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import _in_child
from benchmarks.gpu.bundle import add_missing
from benchmarks.gpu.measurement import Session, at_least, at_most, measurements
from benchmarks.gpu.table import markdown

ROOT = Path(__file__).parents[2]


def test_dry_run_measures_everything_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [m["name"] for m in found["measurements"]] == list(measurements())
    for measured in found["measurements"]:
        assert measured["status"] == "done"
        assert measured["figures"], measured["name"]
        assert all(figure["value"] is not None for figure in measured["figures"])
    assert (tmp_path / "gpu.md").read_text().count("\n### ") == len(measurements())
    assert str(tmp_path) not in (tmp_path / "gpu.md").read_text()


def test_without_a_gpu_the_command_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", "machine", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert run.returncode == 2
    assert run.stderr.strip().splitlines()[-1].startswith("benchmarks.gpu: no CUDA device is visible here; --dry-run")


def test_a_measurement_that_fails_hangs_or_dies_keeps_what_it_reported() -> None:
    def fails(send) -> None:
        send({"name": "before"})
        raise ValueError("no such kernel")

    def hangs(send) -> None:
        send({"name": "before"})
        time.sleep(60)

    def dies(send) -> None:
        send({"name": "before"})
        import os

        os._exit(9)

    start = time.monotonic()
    for work, status in (
        (fails, "failed: ValueError: no such kernel"),
        (hangs, "cut off after 2 s"),
        (dies, "failed:"),
    ):
        sent, became = _in_child(work, 2.0)
        assert sent == [{"name": "before"}]
        assert became.startswith(status)
    assert time.monotonic() - start < 30


def _session(send, until: float = 60.0) -> Session:
    return Session("cpu", True, Path(), time.monotonic() + until, send)


def test_a_part_that_fails_is_recorded_and_the_next_one_runs() -> None:
    records = []
    session = _session(records.append)
    assert not session.attempt("first", lambda: 1 / 0)
    assert session.attempt("second", lambda: session.figure("second", 2.0, "s", aim=at_least(3)))
    assert not session.attempt("third", lambda: None, seconds=1000)
    assert records[0]["note"] == "not measured: ZeroDivisionError: division by zero"
    assert records[0]["met"] is False
    assert "aim" not in records[1]  # a dry run does not judge a speed
    assert "1000 s needed" in records[2]["note"]


def test_a_wrong_result_fails_in_a_dry_run_too() -> None:
    records = []
    session = _session(records.append)
    session.check("right", 1e-3, 2e-2)
    session.check("wrong", 3e-2, 2e-2)
    session.check("broken", float("nan"), 2e-2)
    assert [record["met"] for record in records] == [True, False, False]
    assert at_most(1).met(1)
    assert not at_least(1).met(0.9)


def test_table_says_what_was_missed_and_what_was_not_measured() -> None:
    figures = [
        {"name": "a", "value": 0.5, "unit": "s", "note": "n", "aim": {"sign": "≤", "bound": 0.4}, "met": False},
        {"name": "b", "value": None, "unit": "", "note": "not measured: no time", "met": False},
    ]
    machine = {"card": "NVIDIA H100", "torch": "2.11", "python": "3.12"}
    measured = {"title": "T", "status": "done", "seconds": 1.0, "figures": figures}
    text = markdown({"machine": machine, "command": "c", "date": "d", "measurements": [measured]})
    assert "| a | 0.5 s | ≤ 0.4, missed | n |" in text
    assert "| b | not measured |  | no time |" in text


def test_bundle_adds_what_is_missing_and_refuses_another_python(tmp_path: Path, monkeypatch) -> None:
    def wheel(name: str) -> None:
        with zipfile.ZipFile(tmp_path / name, "w") as packed:
            packed.writestr("absent_here.py", "value = 7")

    monkeypatch.setattr(sys, "path", list(sys.path))
    wheel("torch-9.9-py3-none-any.whl")  # installed: stays unpacked
    wheel("absent_here-1.0-py3-none-any.whl")
    assert add_missing(tmp_path) == ["absent_here"]
    import absent_here  # pyright: ignore[reportMissingImports]

    assert absent_here.value == 7
    wheel("also_absent-1.0-cp27-cp27-manylinux1_x86_64.whl")
    with pytest.raises(ValueError, match="make gpu-bundle GPU_PYTHON="):
        add_missing(tmp_path)
