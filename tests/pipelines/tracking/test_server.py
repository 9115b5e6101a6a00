"""Kill a real MLflow server during a run and restart it on the same database: no record is lost or late."""

import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import TrackingSettings
from pipelines.tracking.run import UNSENT, create_sqlite, start_run
from pipelines.training.driver import train
from pipelines.training.metrics import METRICS, read_metrics
from pipelines.training.settings import TrainSettings
from tests.pipelines.training.support.encoded_set import BUCKET, write_conditioner, write_encoded_set


class Server:
    """`mlflow server` on one port and one database; killed, and started again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        create_sqlite(root / "server.db")
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the server and block until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._root / 'server.db'}"]
        command += ["--artifacts-destination", str(self._root / "artifacts")]
        # Do not start the server's job processes: it has no jobs.
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(600):
            with contextlib.suppress(OSError):
                one = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                one.request("GET", "/health")
                if one.getresponse().status == 200:
                    return
            time.sleep(0.2)
        raise AssertionError("the MLflow server did not start")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.uri)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # Send requests to this machine directly, not to a proxy.
    monkeypatch.setenv("NO_PROXY", ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY")])))
    (tmp_path / "server").mkdir()
    one = Server(tmp_path / "server")
    one.start()
    yield one
    one.kill()


def run_id(output: Path) -> str:
    return json.loads((output / "mlflow_run.json").read_text())["run_id"]


def test_a_gap_is_filled_with_its_own_steps_and_times(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, calls, times = tmp_path / "run", [], []
    output.mkdir()
    picture = tmp_path / "note.txt"
    picture.write_text("made while the server was away")
    with (
        caplog.at_level(logging.WARNING, "kinotone.tracking"),
        start_run(TrackingSettings(uri=server.uri, patience_s=120), "kinotone", "train", {}, {}, output) as run,
    ):
        assert run.run_id
        for step in range(300):
            if step == 100:
                server.kill()
            if step == 120:
                run.artifact(picture, "samples")
            if step == 200:
                server.start()
            began = time.perf_counter()
            times.append(run.metrics({"loss": 1 / (step + 1)}, step))
            calls.append(time.perf_counter() - began)
            time.sleep(0.02)
    assert statistics.median(calls) < 0.001
    assert max(calls) < 0.5  # on a busy machine a thread may wait for the CPU
    curve = server.client().get_metric_history(run_id(output), "loss")
    assert [(m.step, m.value, m.timestamp) for m in curve] == [(n, 1 / (n + 1), times[n]) for n in range(300)]
    assert [f.path for f in server.client().list_artifacts(run_id(output), "samples")] == ["samples/note.txt"]
    assert server.client().get_run(run_id(output)).info.status == "FINISHED"
    assert sum("does not answer" in record.getMessage() for record in caplog.records) == len(caplog.records) == 1
    assert not (output / UNSENT).exists()


def test_a_server_that_takes_requests_and_never_answers_is_left_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as mute:
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        run = start_run(TrackingSettings(uri=uri, patience_s=2), "kinotone", "train", {}, {}, tmp_path)
        began = time.monotonic()
        for step in range(50):
            run.metrics({"loss": 1.0}, step)
        assert time.monotonic() - began < 1
        run.close()
        assert time.monotonic() - began < 90
    lines = (tmp_path / UNSENT).read_text().splitlines()
    assert [json.loads(line)[1]["step"] for line in lines] == list(range(50))


@pytest.mark.slow
def test_training_loses_no_step_and_no_metric_while_the_server_is_away_for_a_minute(
    ray_session: None, server: Server, tmp_path: Path
) -> None:
    away_s, steps = 60.0, 400
    data = write_encoded_set(tmp_path / "encoded")
    settings = TrainSettings.model_validate(
        {
            "input": str(data),
            "init_from": [str(write_conditioner(tmp_path / "weights"))],
            "steps": steps,
            "log_every": 1,
            "batch": {"tokens": 2 * (BUCKET.video_tokens + BUCKET.audio_tokens), "micro_batches": 2},
            "checkpoint": {"every_steps": 100},
        }
    )
    output, gap_ms = tmp_path / "run", []

    def outage() -> None:
        while len(read_metrics(output / METRICS)) < 30:
            time.sleep(0.2)
        server.kill()
        gap_ms.append(time.time() * 1000)
        time.sleep(away_s)
        gap_ms.append(time.time() * 1000)
        server.start()

    thread = threading.Thread(target=outage)
    thread.start()
    train("dit", settings, output, TrackingSettings(uri=server.uri, patience_s=120))
    thread.join()
    records, client = read_metrics(output / METRICS), server.client()
    curve = client.get_metric_history(run_id(output), "loss/video")
    assert [m.step for m in curve] == list(range(1, steps + 1))
    assert [m.value for m in curve] == [record["loss/video"] for record in records]
    missed = {m.step for m in curve if gap_ms[0] < m.timestamp < gap_ms[1]}
    assert len(missed) > 20  # with the times at which they were measured
    pace = [
        statistics.median(1 / r["steps_per_s"] for r in records if (r["step"] in missed) == inside and r["step"] > 10)
        for inside in (True, False)
    ]
    print(f"{len(missed)} steps while the server was away: {pace[0]:.3f} s a step, otherwise {pace[1]:.3f} s")
    found = client.get_run(run_id(output))
    assert found.info.status == "FINISHED"
    assert any(key.startswith("system/") and key.endswith("cpu_utilization_percentage") for key in found.data.metrics)
    assert found.inputs is not None
    assert len(found.inputs.dataset_inputs) == 1
    models = client.search_logged_models([found.info.experiment_id])
    assert {model.name for model in models} == {f"dit-{step}" for step in (100, 200, 300, 400)}
    assert not (output / UNSENT).exists()
