"""Tracking: logged records can be read back, a dead server stops nothing, many processes may create one store."""

import json
import logging
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.report.previews import spectrogram
from pipelines.settings import TrackingSettings
from pipelines.tracking import run as tracking
from pipelines.tracking.run import Run, create_sqlite, flatten, start_run


def _start(output: Path, uri: str = "", patience_s: float = 120.0) -> Run:
    output.mkdir(parents=True, exist_ok=True)
    settings = TrackingSettings(uri=uri, patience_s=patience_s)
    return start_run(settings, "kinotone", "curate", {"dataset": "abc"}, {"train": {"lr": 1e-4}}, output)


def _client(output: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=tracking.embedded_store(output)[0])


def test_a_run_holds_settings_metrics_with_steps_files_and_the_code_version(tmp_path: Path) -> None:
    output = tmp_path / "train"
    sample = tmp_path / "sample.mp4"
    sample.write_bytes(b"not really a film")
    sound = np.sin(np.arange(16000) / 10, dtype=np.float32)[None]
    with _start(output) as run:
        for step in range(2500):
            run.metrics({"loss/video": 1 / (step + 1)}, step)
        run.artifact(sample, "samples/step_000010")
        run.image("spectrogram", spectrogram(sound, 16000), step=10)
        run.tags({"best": 3})
        run_id = run.run_id
    client = _client(output)
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.lr": "0.0001"}
    assert found.data.tags["dataset"] == "abc"
    assert found.data.tags["best"] == "3"
    assert found.data.tags["mlflow.source.git.commit"] == tracking.code_version()
    curve = client.get_metric_history(run_id, "loss/video")
    assert [m.step for m in curve] == list(range(2500))
    assert curve[-1].value == pytest.approx(1 / 2500)
    assert [f.path for f in client.list_artifacts(run_id, "samples/step_000010")] == ["samples/step_000010/sample.mp4"]
    assert any("spectrogram" in f.path for f in client.list_artifacts(run_id, "images"))
    assert (tmp_path / "mlartifacts").is_dir()


def test_a_resumed_stage_goes_on_with_its_run_and_a_failed_one_says_so(tmp_path: Path) -> None:
    output = tmp_path / "train"
    run = _start(output)
    run.metrics({"loss": 1.0}, 1)
    with pytest.raises(ZeroDivisionError), run:
        run.metrics({"loss": 1 / 0}, 2)
    assert _client(output).get_run(run.run_id).info.status == "FAILED"
    with _start(output) as again:
        again.metrics({"loss": 0.5}, 2)
    assert again.run_id == run.run_id
    assert _client(output).get_run(run.run_id).info.status == "FINISHED"
    assert [m.step for m in _client(output).get_metric_history(run.run_id, "loss")] == [1, 2]


def test_a_server_that_is_down_costs_one_warning_and_no_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "kinotone.tracking"):
        run = _start(tmp_path / "out", f"http://127.0.0.1:{port}", patience_s=1.0)
        for step in range(100):
            run.metrics({"loss": 1.0}, step)
        assert time.monotonic() - start < 0.5
        run.close()
    assert time.monotonic() - start < 30
    messages = [record.getMessage() for record in caplog.records]
    assert sum("does not answer" in message for message in messages) == 1
    (warning,) = (message for message in messages if "did not take" in message)
    assert f"did not take 100 records of run 'curate'; they are in {tmp_path / 'out' / tracking.UNSENT}" in warning


def test_what_a_server_did_not_take_is_sent_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded store cannot be opened at first; then it can."""
    output, sample = tmp_path / "train", tmp_path / "sample.txt"
    sample.write_text("a sample")
    began_ms = time.time() * 1000
    with monkeypatch.context() as broken:
        broken.setattr(tracking, "create_sqlite", lambda path: 1 / 0)
        with _start(output, patience_s=0.0) as run:
            times = [run.metrics({"loss": 1 / (step + 1)}, step) for step in range(2500)]
            run.params({"late": {"lr": 2}})
            run.tags({"best": 3})
            run.dataset("set", "1234abcd", "/data/set")
            run.artifact(sample, "samples")
            run.image("picture", np.full((8, 8, 3), 77, np.uint8), step=4)
            run.model("dit-step-3", 3, "/ckpt/3", {"loss": 0.25}, times[3])
    ended_ms = time.time() * 1000
    assert (output / tracking.UNSENT).exists()

    tracking.send_unsent(TrackingSettings(patience_s=120), "kinotone", "curate", output)
    assert not (output / tracking.UNSENT).exists()
    client = _client(output)
    run_id = json.loads((output / "mlflow_run.json").read_text())["run_id"]
    found = client.get_run(run_id)
    curve = client.get_metric_history(run_id, "loss")
    assert [(m.step, m.value) for m in curve] == [(n, 1 / (n + 1)) for n in range(2500)]
    assert all(began_ms - 1 <= m.timestamp <= ended_ms for m in curve)  # the times of measuring, not of sending
    assert found.data.params["late.lr"] == "2"
    assert found.data.tags["best"] == "3"
    assert [f.path for f in client.list_artifacts(run_id, "samples")] == ["samples/sample.txt"]
    assert any("picture" in f.path for f in client.list_artifacts(run_id, "images"))
    assert found.inputs is not None
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("set", "1234abcd")
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert (model.name, model.status, model.tags["path"]) == ("dit-step-3", "READY", "/ckpt/3")
    assert model.metrics is not None
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.step, metric.dataset_name) == ("loss", 0.25, 3, "set")
    tracking.send_unsent(TrackingSettings(patience_s=120), "kinotone", "curate", output)  # nothing is left to send


def test_memory_is_bounded_while_a_server_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MAX_WAITING", 10)
    held = threading.Event()
    monkeypatch.setattr(Run, "_connect", lambda self: held.wait() and 1 / 0)
    run = _start(tmp_path / "out", patience_s=0.0)
    for step in range(50):
        run.metrics({"loss": 1.0}, step)
    assert run._queue.qsize() == 10
    held.set()
    run.close()
    lines = (tmp_path / "out" / tracking.UNSENT).read_text().splitlines()
    assert {json.loads(line)[1]["step"] for line in lines} == set(range(50))


def test_one_bad_record_is_said_and_the_rest_arrives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kinotone.tracking"), _start(tmp_path / "out") as run:
        run.artifact(tmp_path / "gone.mp4", "samples")
        run.metrics({"loss": 1.0}, 7)
    assert any("gone.mp4" in record.getMessage() for record in caplog.records)
    assert _client(tmp_path / "out").get_metric_history(run.run_id, "loss")[0].step == 7


_COLD_RUN = """
import sys
from pathlib import Path
from pipelines.tracking.run import start_run
from pipelines.settings import TrackingSettings
with start_run(TrackingSettings(), "kinotone", "curate", {}, {}, Path(sys.argv[1])) as run:
    run.metrics({"loss": 1.0}, 1)
assert run.run_id
"""


def test_the_terminal_stays_quiet_even_when_the_first_store_is_migrated(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    printed = subprocess.run(
        [sys.executable, "-c", _COLD_RUN, str(tmp_path / "out")],
        env={**os.environ, "KINOTONE_CACHE": str(tmp_path / "cache")},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout + printed.stderr == ""
    assert (tmp_path / "mlflow.db").exists()


def _create(path: Path) -> None:
    create_sqlite(path)
    with sqlite3.connect(path) as store:
        assert store.execute("select count(*) from alembic_version").fetchone() == (1,)


def test_many_processes_may_create_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs" / "mlflow.db"
    create_sqlite(tmp_path / "warm.db")  # the cached template, so that the processes race for the copy
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_create, args=(path,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert [p.name for p in path.parent.iterdir()] == ["mlflow.db"]


def test_nested_settings_become_dotted_names() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2]}) == {"a.b": "1", "a.c.d": "None", "e": "[1, 2]"}
