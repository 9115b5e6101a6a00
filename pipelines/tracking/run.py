"""One MLflow run per stage, logged from a background thread, so that no stage waits for the tracking server.

    run.metrics(…)  →  queue in memory  →  background thread  →  MLflow server or SQLite store
                             ↓ server down, or queue full
                       mlflow_unsent.jsonl in the output folder, sent when the server answers or by the next run

While a server is down, the thread retries with growing pauses and the stage continues. Each record keeps the time at
which it was made. When the queue has waited longer than `SPILL_S`, it moves to the file. Records that are not sent when
the run ends stay in the file; one warning says so, and the next run into the same output sends them.

`import mlflow` takes about 3 s, and to create the tables of a new SQLite store takes 2.5 s (MLflow 3.17, one core). So
both happen in the thread, and an empty store is kept in the user's cache and copied (`create_sqlite`).
"""

import json
import logging
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.packaged_weights import CACHE
from pipelines.quiet import quiet_mlflow
from pipelines.settings import TrackingSettings
from pipelines.tracking.records import (
    MAX_METRICS,
    Artifact,
    Dataset,
    Image,
    Metric,
    Model,
    Params,
    Record,
    Tags,
    UnsentRecords,
)

log = logging.getLogger("kinotone.tracking")

# The queue holds at most this many records; further ones go to the file.
MAX_WAITING = 100_000
# When the server has not answered for this long (seconds), the queue moves to the file.
SPILL_S = 20.0
UNSENT = "mlflow_unsent.jsonl"
# A parameter's value is cut at this length (MLflow's own limit is 6,000).
MAX_PARAM = 6000


def embedded_store(output: Path) -> tuple[str, str]:
    """Return (tracking URI, artifact folder) of the SQLite store for runs into `output`, both in its parent folder."""
    beside = output.resolve().parent
    return f"sqlite:///{beside / 'mlflow.db'}", str(beside / "mlartifacts")


def start_run(
    settings: TrackingSettings,
    experiment: str,
    name: str,
    tags: Mapping[str, object],
    params: Mapping[str, object],
    output: str | Path,
) -> "Run":
    """Start a tracked run. Returns at once, and never raises because of the server. Use it as a context manager.

    A stage that is resumed into the same output continues the same MLflow run, so that its curves
    have no gap. `<output>/mlflow_run.json` has the id of that run.

    Args:
        settings: the tracking server, and how long to wait for it.
        experiment: the MLflow experiment.
        name: the run's name.
        tags: tags of the run, e.g. `{"dataset": dataset_id}`; the code version is added.
        params: the settings of the stage, defaults included; may be nested.
        output: the folder that the stage writes to.
    """
    return Run(settings, experiment, name, dict(tags), flatten(params), Path(output))


def send_unsent(settings: TrackingSettings, experiment: str, name: str, output: str | Path) -> None:
    """Send the records that an earlier run into `output` could not send, if there are any."""
    if (Path(output) / UNSENT).exists():
        start_run(settings, experiment, name, {}, {}, output).close()


def flatten(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted names and text values: {"a": {"b": 1}} → {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:MAX_PARAM]
    return flat


def code_version() -> str:
    """Return the git commit of this code, with "+changes" when files differ from it; "" outside a git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return ""


class Run:
    """A stage's connection to its MLflow run; made by `start_run`.

    Every method but `run_id` and `close` returns at once. Files that are passed must exist until the run is closed.

    Attributes:
        uri: the MLflow tracking URI.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        experiment: str,
        name: str,
        tags: dict[str, object],
        params: dict[str, str],
        output: Path,
    ) -> None:
        self._settings, self._experiment, self._name, self._output = settings, experiment, name, output
        self._tags, self._params = tags, params
        embedded, artifacts = embedded_store(output)
        self.uri = settings.uri or embedded
        self._artifact_root = None if settings.uri else artifacts
        self._queue: queue.Queue[Record] = queue.Queue(MAX_WAITING)
        self._unsent = UnsentRecords(output / UNSENT)
        self._dataset: Dataset | None = None
        self._id = ""
        self._started = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._refused_count = self._unsent_count = 0
        self._warned = False
        self._gave_up = False
        self._status = "FINISHED"
        self._thread = threading.Thread(target=self._work, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    # ---- called by the stage ----

    @property
    def run_id(self) -> str:
        """The run's id. Waits up to `patience_s` until the server has created the run; "" if it has not."""
        self._started.wait(self._settings.patience_s)
        return self._id

    def metrics(self, values: Mapping[str, float], step: int = 0) -> int:
        """Log metrics of a step, e.g. {"loss/video": 0.9}.

        Returns:
            The time at which they are recorded, milliseconds since 1970.
        """
        now = int(time.time() * 1000)
        for key, value in values.items():
            self._enqueue(Metric(key, float(value), now, step))
        return now

    def params(self, values: Mapping[str, object]) -> None:
        """Log further parameters, in addition to those of `start_run`; nested or flat."""
        self._enqueue(Params(flatten(values)))

    def tags(self, values: Mapping[str, object]) -> None:
        """Log further tags, in addition to those of `start_run`."""
        self._enqueue(Tags({key: str(value) for key, value in values.items()}))

    def dataset(self, name: str, digest: str, uri: str) -> None:
        """Log which data set the run reads. MLflow shows it among the run's inputs.

        Args:
            name: the set's name.
            digest: a hash of its content, at most 36 characters.
            uri: the set's folder or address.
        """
        self._dataset = Dataset(name, digest, uri)
        self._enqueue(self._dataset)

    def model(self, name: str, step: int, path: str | Path, values: Mapping[str, float], time_ms: int) -> None:
        """Log a checkpoint as a model of the run (MLflow's LoggedModel). Its path is recorded; no file is uploaded.

        Args:
            name: the model's name.
            step: the training step of the checkpoint.
            path: where the checkpoint is.
            values: metrics of that step on the run's data set.
            time_ms: the time that `metrics` returned for them; any other time would repeat them in the run's curves.
        """
        self._enqueue(Model(name, step, str(path), dict(values), time_ms, self._dataset))

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Upload a file, or a folder with its contents, to `folder` of the run's artifacts."""
        self._enqueue(Artifact(str(path), folder))

    def image(self, key: str, image: Any, step: int = 0) -> None:
        """Log a picture of a step.

        Args:
            key: the picture's name; MLflow shows the steps of one key with a slider.
            image: the path of a PNG, its bytes, or a uint8 array (H, W, 3).
            step: the step it belongs to.
        """
        self._enqueue(Image(key, image, step, int(time.time() * 1000)))

    def close(self, status: str = "FINISHED") -> None:
        """Send the waiting records and end the run with `status`.

        Blocks at most `patience_s` for a server that is down, plus the timeout of the requests in progress (20 s each)
        for one that accepts requests and never answers.
        """
        if self._closing.is_set():
            return
        self._status = status
        self._deadline = time.monotonic() + self._settings.patience_s
        self._closing.set()
        # The upload of a large artifact to a server that answers may take longer than `patience_s`.
        self._thread.join()
        if self._refused_count:
            log.warning("tracking: %s refused %d records of run %r", self.uri, self._refused_count, self._name)
        if self._unsent_count:
            log.warning(
                "tracking: %s did not take %d records of run %r; they are in %s; run the same command again to send "
                "them",
                self.uri,
                self._unsent_count,
                self._name,
                self._unsent.path,
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _enqueue(self, record: Record) -> None:
        """Put a record into the queue; append it to the file of unsent records if the queue is full."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._save([record])

    def _save(self, records: Sequence[Record]) -> None:
        """Append records to the file of unsent records. A full disk loses the records but does not end the run."""
        try:
            self._unsent.append(records)
        except OSError as error:
            self._refused_count += len(records)
            log.warning("tracking: %d records are lost: %s", len(records), _one_line(error))

    # ---- the background thread ----

    def _work(self) -> None:
        """Connect, then send records until the run is closed and none waits, or `patience_s` after `close`."""
        try:
            client = self._retry(self._connect, None, [])
            while not self._gave_up:
                batch = self._next_batch()
                if batch:
                    self._send(client, batch)
                elif not self._send_saved(client) and self._closing.is_set() and self._queue.empty():
                    break
            if not self._gave_up:
                self._retry(lambda: client.set_terminated(self._id, self._status), client, [])
        except Exception:
            # An error of the tracking must not end the stage, so log it with its traceback.
            log.warning("tracking of run %r ended early", self._name, exc_info=True)
        finally:
            self._started.set()
            self._closing.wait()
            self._spill()
            self._unsent_count = self._unsent.count()

    def _next_batch(self) -> list[Record]:
        """Take up to 1,000 metrics or one record of another kind from the queue; [] if none comes within 0.2 s."""
        try:
            batch = [self._queue.get(timeout=0.2)]
        except queue.Empty:
            return []
        while isinstance(batch[-1], Metric) and len(batch) < MAX_METRICS and self._queue.qsize():
            # Only this thread takes from the queue, so the head cannot change between this check and `get_nowait`.
            if not isinstance(self._queue.queue[0], Metric):
                break
            batch.append(self._queue.get_nowait())
        return batch

    def _spill(self) -> None:
        """Move all records of the queue to the file of unsent records."""
        waiting = []
        while self._queue.qsize():
            waiting.append(self._queue.get_nowait())
        self._save(waiting)

    def _send_saved(self, client: Any) -> bool:
        """Send the records of the file of unsent records. Return False when there are none."""
        records = self._unsent.read()
        if not records:
            return False
        while records and not self._gave_up:
            metrics = list(takewhile(lambda record: isinstance(record, Metric), records[:MAX_METRICS]))
            batch = metrics or records[:1]
            del records[: len(batch)]
            self._send(client, batch)
        self._save(records)  # these were not tried, because the thread gave up
        self._unsent.drop_read()
        return True

    def _send(self, client: Any, batch: Sequence[Record]) -> None:
        """Send metrics in one request, or one record of another kind; retry as `_retry` does."""

        def send() -> None:
            if isinstance(batch[0], Metric):
                client.log_batch(self._id, metrics=[m.to_mlflow() for m in batch if isinstance(m, Metric)])
            else:
                batch[0].send(client, self._id)

        self._retry(send, client, batch)

    def _retry(self, operation: Callable[[], Any], client: Any, records: Sequence[Record]) -> Any:
        """Call `operation`; while the server does not answer, retry with growing pauses.

        Args:
            operation: sends the request.
            client: the MLflow client; None while there is none.
            records: the records in the request; they are saved to the file if the thread gives up.

        Returns:
            What `operation` returns. None when the server refused it three times, or when `patience_s` have passed
            since the run was closed (`_gave_up` is then set).
        """
        pause, refusals, since = 0.5, 0, time.monotonic()
        while True:
            try:
                return operation()
            except Exception as error:
                if client is not None and self._server_answers(client):
                    # The server works, so the request is at fault. Retry it: a busy SQLite file may need a moment.
                    refusals += 1
                    if refusals == 3:
                        log.warning("tracking: %s", _one_line(error))
                        self._refused_count += len(records)
                        return None
                elif not self._warned:
                    self._warned = True
                    log.warning("tracking: %s does not answer, the run continues: %s", self.uri, _one_line(error))
                if time.monotonic() + pause > self._deadline:
                    self._gave_up = True
                    self._save(records)
                    return None
                if time.monotonic() - since > SPILL_S:
                    self._spill()
                if self._closing.is_set():
                    time.sleep(pause)
                    pause = min(pause * 2, 2.0)
                else:
                    self._closing.wait(pause)
                    pause = min(pause * 2, 15.0)

    def _server_answers(self, client: Any) -> bool:
        """Return whether the server answers a request for this run."""
        try:
            client.get_run(self._id)
        except Exception:
            return False
        return True

    def _connect(self) -> Any:
        """Create the run, or reopen the one that an earlier call with this output created. Return the MLflow client."""
        quiet_mlflow()
        if self.uri.startswith("sqlite:///"):
            create_sqlite(Path(self.uri.removeprefix("sqlite:///")))
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        run_file = self._output / "mlflow_run.json"
        self._id = _earlier_run(client, run_file, self.uri)
        if not self._id:
            experiment = _experiment_id(client, self._experiment, self._artifact_root)
            tags = {"mlflow.source.git.commit": code_version(), "mlflow.source.name": "kinotone", "stage": self._name}
            tags |= {key: str(value) for key, value in self._tags.items()}
            self._id = client.create_run(experiment, tags=tags, run_name=self._name).info.run_id
            Params(self._params).send(client, self._id)
            if self._output.is_dir():
                run_file.write_text(json.dumps({"uri": self.uri, "run_id": self._id}))
        else:
            client.update_run(self._id, status="RUNNING")
        self._started.set()
        return client


def _earlier_run(client: Any, run_file: Path, uri: str) -> str:
    """Return the id of the run that `run_file` names, if it exists on this server and is not deleted; else ""."""
    from mlflow.exceptions import MlflowException

    if not run_file.exists():
        return ""
    saved = json.loads(run_file.read_text())
    if saved["uri"] != uri:
        return ""
    try:
        info = client.get_run(saved["run_id"]).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""
    return info.run_id if info.lifecycle_stage == "active" else ""


def _experiment_id(client: Any, name: str, artifact_root: str | None) -> str:
    """Return the id of the experiment `name`. Create it if missing; another process may do so at the same time."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_root)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
            assert found is not None
    return found.experiment_id


def _one_line(error: BaseException) -> str:
    """Return the type and message of an error in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def create_sqlite(path: Path) -> None:
    """Create an empty SQLite store of MLflow at `path`, unless it exists. Several processes may do it at once.

    The store is made once per MLflow version in the user's cache (`KINOTONE_CACHE`), under a file lock. Then it is
    copied to a temporary file in the folder of `path`, and that file is linked as `path`. So `path` is always complete.
    """
    if path.exists():
        return
    import fcntl
    from importlib.metadata import version

    template = CACHE / f"mlflow-{version('mlflow')}.db"
    template.parent.mkdir(parents=True, exist_ok=True)
    with template.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            _migrate(template)
    path.parent.mkdir(parents=True, exist_ok=True)
    copy = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        shutil.copyfile(template, copy)
        os.link(copy, path)
    except FileExistsError:
        pass  # another process was first; its store is equal
    finally:
        copy.unlink(missing_ok=True)


def _migrate(target: Path) -> None:
    """Create MLflow's tables in a new SQLite file next to `target`, then rename that file to `target`."""
    quiet_mlflow()
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    unfinished = target.with_name(f".{target.name}.half")
    unfinished.unlink(missing_ok=True)
    engine = sqlalchemy.create_engine(f"sqlite:///{unfinished}")
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
    unfinished.replace(target)
