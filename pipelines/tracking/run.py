"""One MLflow run per stage, logged from a background thread: nothing in a run waits on the tracking server.

Facts: `import mlflow` costs about 3 s and the migrations of a fresh SQLite store 2.5 s (MLflow 3.17, one core), so
both happen in the thread, and a migrated empty store is kept in the user's cache and copied from then on. A copy is
linked into place whole, so several processes may create the same store at once.

A server that is down is asked again with growing pauses while the run goes on; each record keeps the time at which it
was made. What waits longer than `SPILL_S` lies in a file beside the output, and so does what the server has not taken
when the run ends: one warning says so, and the next run into that output sends it.
"""

import json
import logging
import os
import queue
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.packaged_weights import CACHE
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
    Unsent,
)

log = logging.getLogger("kinotone.tracking")

# Records in memory at most; further ones wait in the file.
MAX_WAITING = 100_000
# A server that has not answered for so long (seconds) is away: what waits goes to the file.
SPILL_S = 20.0
UNSENT = "mlflow_unsent.jsonl"
# A parameter's value is cut at this length (MLflow's own limit is 6,000).
MAX_PARAM = 6000


def store_of(output: Path) -> tuple[str, str]:
    """The embedded store of a run that writes to `output`: (tracking URI, artifact folder), both beside it."""
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
    """A run under `experiment`, to be used as a context manager; returns at once and never raises for a server.

    A stage that is resumed into the same output goes on with its run (`<output>/mlflow_run.json` names it), so its
    curves have no gap. `params` may be nested (resolved settings); they are flattened with dots. The code version is
    tagged by itself; pass the rest, e.g. `{"dataset": dataset_id}`.
    """
    return Run(settings, experiment, name, dict(tags), flatten(params), Path(output))


def send_rest(settings: TrackingSettings, experiment: str, name: str, output: str | Path) -> None:
    """Send what an earlier run into `output` could not."""
    if (Path(output) / UNSENT).exists():
        start_run(settings, experiment, name, {}, {}, output).close()


def flatten(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and texts: {"a": {"b": 1}} → {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:MAX_PARAM]
    return flat


def code_version() -> str:
    """The git commit of this code, with "+changes" when files differ from it; "" outside a git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return ""


class Run:
    """A tracked run. Every method returns at once; files given to it must stay until the run is closed."""

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
        embedded, artifacts = store_of(output)
        self.uri = settings.uri or embedded
        self._artifact_root = None if settings.uri else artifacts
        self._queue: queue.Queue[Record] = queue.Queue(MAX_WAITING)
        self._unsent = Unsent(output / UNSENT)
        self._dataset: Dataset | None = None
        self._id = ""
        self._started = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._refused = self._kept = 0
        self._warned = False
        self._gave_up = False
        self._status = "FINISHED"
        self._thread = threading.Thread(target=self._work, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    # ---- what a run's code calls ----

    @property
    def run_id(self) -> str:
        """The run's id; waits for the server up to `patience_s`, then "" (the run is not tracked yet)."""
        self._started.wait(self._settings.patience_s)
        return self._id

    def metrics(self, values: Mapping[str, float], step: int = 0) -> int:
        """Numbers at a step, e.g. {"loss/video": 0.9}. Gives the time that they are noted with, ms since 1970."""
        now = int(time.time() * 1000)
        for key, value in values.items():
            self._put(Metric(key, float(value), now, step))
        return now

    def params(self, values: Mapping[str, object]) -> None:
        """Further parameters, nested or flat."""
        self._put(Params(flatten(values)))

    def tags(self, values: Mapping[str, object]) -> None:
        """Further tags."""
        self._put(Tags({key: str(value) for key, value in values.items()}))

    def dataset(self, name: str, digest: str, uri: str) -> None:
        """The data set that the run reads, for its lineage.

        Args:
            digest: of its content, at most 36 characters.
        """
        self._dataset = Dataset(name, digest, uri)
        self._put(self._dataset)

    def model(self, name: str, step: int, path: str | Path, values: Mapping[str, float], time_ms: int) -> None:
        """A checkpoint as a LoggedModel, of which nothing is uploaded.

        Args:
            values: metrics of its step on the run's data set.
            time_ms: what `metrics` gave for them; with another they would stand twice in the run's curves.
        """
        self._put(Model(name, step, str(path), dict(values), time_ms, self._dataset))

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """A file, or a folder with all it holds, under `folder` of the run's artifacts."""
        self._put(Artifact(str(path), folder))

    def image(self, key: str, image: Any, step: int = 0) -> None:
        """A picture with a step slider: the path of a PNG, its bytes, or a uint8 array (H, W, 3)."""
        self._put(Image(key, image, step, int(time.time() * 1000)))

    def close(self, status: str = "FINISHED") -> None:
        """Deliver what waits, end the run with `status`.

        A server that is down holds this up `patience_s` at most, one that takes requests and never answers them by
        the timeout of the requests under way (20 s each) beyond that.
        """
        if self._closing.is_set():
            return
        self._status = status
        self._deadline = time.monotonic() + self._settings.patience_s
        self._closing.set()
        # A server that answers may take longer than the patience for a large artifact; one that does not, may not.
        self._thread.join()
        if self._refused:
            log.warning("tracking: %s refused %d records of run %r", self.uri, self._refused, self._name)
        if self._kept:
            log.warning(
                "tracking: %s did not take %d records of run %r; they lie in %s, and the same command again sends them",
                self.uri,
                self._kept,
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

    # ---- the thread ----

    def _put(self, record: Record) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._keep([record])

    def _keep(self, records: Sequence[Record]) -> None:
        """Put records on disk; a disk that is full must not end the run either."""
        try:
            self._unsent.keep(records)
        except OSError as error:
            self._refused += len(records)
            log.warning("tracking: %d records are lost: %s", len(records), _one_line(error))

    def _work(self) -> None:
        try:
            client = self._until_taken(self._open, None, [])
            while not self._gave_up:
                batch = self._next()
                if batch:
                    self._deliver(client, batch)
                elif not self._send_kept(client) and self._closing.is_set() and self._queue.empty():
                    break
            if not self._gave_up:
                self._until_taken(lambda: client.set_terminated(self._id, self._status), client, [])
        except Exception:
            # Whatever goes wrong here must not end the run it watches; it is said, with its traceback.
            log.warning("tracking of run %r ended early", self._name, exc_info=True)
        finally:
            self._started.set()
            self._closing.wait()
            self._spill()
            self._kept = self._unsent.count()

    def _next(self) -> list[Record]:
        """What waits: up to 1,000 metrics as one batch, or one other record."""
        try:
            batch = [self._queue.get(timeout=0.2)]
        except queue.Empty:
            return []
        while isinstance(batch[-1], Metric) and len(batch) < MAX_METRICS and self._queue.qsize():
            # This thread alone takes from the queue, so its head can be looked at before it is taken.
            if not isinstance(self._queue.queue[0], Metric):
                break
            batch.append(self._queue.get_nowait())
        return batch

    def _spill(self) -> None:
        """What waits in memory goes to the file."""
        waiting = []
        while self._queue.qsize():
            waiting.append(self._queue.get_nowait())
        self._keep(waiting)

    def _send_kept(self, client: Any) -> bool:
        """Send what lies in the file; False where there is nothing."""
        records = self._unsent.take()
        if not records:
            return False
        while records and not self._gave_up:
            metrics = list(takewhile(lambda record: isinstance(record, Metric), records[:MAX_METRICS]))
            batch = metrics or records[:1]
            del records[: len(batch)]
            self._deliver(client, batch)
        self._keep(records)  # what comes after one that the server did not take
        self._unsent.taken()
        return True

    def _deliver(self, client: Any, batch: Sequence[Record]) -> None:
        def send() -> None:
            if isinstance(batch[0], Metric):
                client.log_batch(self._id, metrics=[m.entity() for m in batch if isinstance(m, Metric)])
            else:
                batch[0].send(client, self._id)

        self._until_taken(send, client, batch)

    def _until_taken(self, operation: Callable[[], Any], client: Any, records: Sequence[Record]) -> Any:
        """Do it; while the server does not answer, again with growing pauses. None once it is given up."""
        pause, own_faults, since = 0.5, 0, time.monotonic()
        while True:
            try:
                return operation()
            except Exception as error:
                if client is not None and self._answers(client):
                    # The server is well, so the operation itself is at fault (a busy SQLite file may need a moment).
                    own_faults += 1
                    if own_faults == 3:
                        log.warning("tracking: %s", _one_line(error))
                        self._refused += len(records)
                        return None
                elif not self._warned:
                    self._warned = True
                    log.warning("tracking: %s does not answer, the run goes on: %s", self.uri, _one_line(error))
                if time.monotonic() + pause > self._deadline:
                    self._gave_up = True
                    self._keep(records)
                    return None
                if time.monotonic() - since > SPILL_S:
                    self._spill()
                if self._closing.is_set():
                    time.sleep(pause)
                    pause = min(pause * 2, 2.0)
                else:
                    self._closing.wait(pause)
                    pause = min(pause * 2, 15.0)

    def _answers(self, client: Any) -> bool:
        try:
            client.get_run(self._id)
        except Exception:
            return False
        return True

    def _open(self) -> Any:
        """The client, with the run created or taken up again."""
        quiet()
        if self.uri.startswith("sqlite:///"):
            create_sqlite(Path(self.uri.removeprefix("sqlite:///")))
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        remembered = self._output / "mlflow_run.json"
        self._id = _remembered_run(client, remembered, self.uri)
        if not self._id:
            experiment = _experiment(client, self._experiment, self._artifact_root)
            tags = {"mlflow.source.git.commit": code_version(), "mlflow.source.name": "kinotone", "stage": self._name}
            tags |= {key: str(value) for key, value in self._tags.items()}
            self._id = client.create_run(experiment, tags=tags, run_name=self._name).info.run_id
            Params(self._params).send(client, self._id)
            if self._output.is_dir():
                remembered.write_text(json.dumps({"uri": self.uri, "run_id": self._id}))
        else:
            client.update_run(self._id, status="RUNNING")
        self._started.set()
        return client


def _remembered_run(client: Any, file: Path, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    if not file.exists():
        return ""
    known = json.loads(file.read_text())
    if known["uri"] != uri:
        return ""
    try:
        info = client.get_run(known["run_id"]).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""
    return info.run_id if info.lifecycle_stage == "active" else ""


def _experiment(client: Any, name: str, artifact_root: str | None) -> str:
    """The experiment's id; created unless it stands, also when several processes do it at once."""
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
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def quiet() -> None:
    """Keep MLflow, its migrations and its HTTP retries off the terminal; no telemetry leaves the machine."""
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(key, value)
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3.connectionpool", "git"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy")  # from a migration of MLflow 3.17


def create_sqlite(path: Path) -> None:
    """An empty, migrated MLflow store at `path`, unless one stands; whole or not at all, from any number of processes.

    The migrated file is made once per MLflow version in the user's cache (`KINOTONE_CACHE`), under a file lock.
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
    own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        shutil.copyfile(template, own)
        os.link(own, path)
    except FileExistsError:
        pass  # another process was first; its store is as good
    finally:
        own.unlink(missing_ok=True)


def _migrate(target: Path) -> None:
    """Let MLflow create and migrate a store, then move it into place."""
    quiet()
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    half = target.with_name(f".{target.name}.half")
    half.unlink(missing_ok=True)
    engine = sqlalchemy.create_engine(f"sqlite:///{half}")
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
    half.replace(target)
