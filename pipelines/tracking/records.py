"""The records that a run sends to the tracking server, and the file in which they wait while it does not answer.

The names of the record classes and of their fields are written to that file: do not rename them.
"""

import base64
import io
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

# MLflow's limits for one log_batch request.
MAX_METRICS, MAX_PARAMS = 1000, 100


@dataclass(frozen=True)
class Metric:
    """A number at a step, and when it was measured (ms since 1970). Sent in batches, so it has no `send`."""

    key: str
    value: float
    time_ms: int
    step: int

    def to_mlflow(self, **more: str) -> Any:
        """Convert the metric to `mlflow.entities.Metric`; `more` are further arguments of it, such as `model_id`."""
        from mlflow.entities import Metric as Entity

        return Entity(self.key, self.value, self.time_ms, self.step, **more)


@dataclass(frozen=True)
class Params:
    """Parameters of the run: text values by dotted name."""

    values: dict[str, str]

    def send(self, client: Any, run_id: str) -> None:
        """Log the parameters to the run."""
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in sorted(self.values.items())]
        for start in range(0, len(entries), MAX_PARAMS):
            client.log_batch(run_id, params=entries[start : start + MAX_PARAMS])


@dataclass(frozen=True)
class Tags:
    """Tags of the run: text values by name."""

    values: dict[str, str]

    def send(self, client: Any, run_id: str) -> None:
        """Set the tags on the run."""
        for key, value in self.values.items():
            client.set_tag(run_id, key, value)


@dataclass(frozen=True)
class Artifact:
    """A file or folder to upload, and the folder of the run's artifacts that it goes to."""

    path: str
    folder: str

    def send(self, client: Any, run_id: str) -> None:
        """Upload the file, or the folder with its contents."""
        log = client.log_artifacts if os.path.isdir(self.path) else client.log_artifact
        log(run_id, self.path, self.folder or None)


@dataclass(frozen=True)
class Image:
    """A picture of a step: the path of a PNG, its bytes, or a uint8 array (H, W, 3)."""

    key: str
    image: Any
    step: int
    time_ms: int

    def _pil_image(self) -> Any:
        """Return the picture as a Pillow image, RGB."""
        from PIL import Image as Picture

        if isinstance(self.image, str | Path):
            picture = Picture.open(self.image)
        elif isinstance(self.image, bytes):
            picture = Picture.open(io.BytesIO(self.image))
        else:
            picture = Picture.fromarray(self.image)
        return picture.convert("RGB")

    def send(self, client: Any, run_id: str) -> None:
        """Log the picture to the run."""
        picture = self._pil_image()
        client.log_image(run_id, picture, key=self.key, step=self.step, timestamp=self.time_ms, synchronous=True)

    def as_base64(self) -> "Image":
        """Return the same record with `image` as a PNG in base64, so that it can be written to a JSON file."""
        png = io.BytesIO()
        self._pil_image().save(png, "PNG")
        return Image(self.key, base64.b64encode(png.getvalue()).decode(), self.step, self.time_ms)


@dataclass(frozen=True)
class Dataset:
    """The data set that a run reads; MLflow shows it among the run's inputs."""

    name: str
    digest: str
    uri: str

    def send(self, client: Any, run_id: str) -> None:
        """Log the data set as an input of the run."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        kind = self.uri.split("://")[0] if "://" in self.uri else "local"
        entity = Entity(self.name, self.digest, kind, json.dumps({"uri": self.uri}))
        client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])


@dataclass(frozen=True)
class Model:
    """A checkpoint, shown by MLflow as a model of the run: path, and metrics of its step. No file is uploaded."""

    name: str
    step: int
    path: str
    values: dict[str, float]
    time_ms: int
    dataset: Dataset | None

    def send(self, client: Any, run_id: str) -> None:
        """Create the LoggedModel, unless it exists, and log its metrics."""
        from mlflow.entities import LoggedModelOutput

        experiment = client.get_run(run_id).info.experiment_id
        this_model = f"name = '{self.name}' AND source_run_id = '{run_id}'"
        # It exists when an earlier request succeeded but its answer was lost.
        found = client.search_logged_models([experiment], filter_string=this_model)
        if found:
            model = found[0]
        else:
            tags = {"step": str(self.step), "path": self.path}
            model = client.create_logged_model(experiment, self.name, run_id, tags, model_type="checkpoint")
        data = {"dataset_name": self.dataset.name, "dataset_digest": self.dataset.digest} if self.dataset else {}
        metrics = [
            Metric(key, value, self.time_ms, self.step).to_mlflow(model_id=model.model_id, **data)
            for key, value in self.values.items()
        ]
        client.log_batch(run_id, metrics=metrics)
        client.log_outputs(run_id, models=[LoggedModelOutput(model.model_id, self.step)])
        client.finalize_logged_model(model.model_id, "READY")


Record = Metric | Params | Tags | Artifact | Image | Dataset | Model


class UnsentRecords:
    """A file of records, one JSON line each. Any thread may append. A last line that was cut off is ignored.

    `read` moves the lines to a second file, which `drop_read` removes. So records that are appended while the read ones
    are being sent are not lost, and a process that dies in between sends them again.
    """

    _KINDS: ClassVar = {kind.__name__: kind for kind in (Metric, Params, Tags, Artifact, Image, Dataset, Model)}

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def append(self, records: Iterable[Record]) -> None:
        """Append records.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        lines = []
        for record in records:
            kind = type(record).__name__
            lines.append(json.dumps([kind, asdict(record.as_base64() if isinstance(record, Image) else record)]) + "\n")
        if lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, self.path.open("a") as file:
                file.writelines(lines)

    def read(self) -> list[Record]:
        """Read all records. They stay on disk until `drop_read` is called."""
        with self._lock:
            read_path = self._read_path
            if self.path.exists():
                with read_path.open("a") as file:
                    file.write(self.path.read_text())
                self.path.unlink()
            if not read_path.exists():
                return []
            lines = [line for line in read_path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [self._to_record(*json.loads(line)) for line in lines]

    def drop_read(self) -> None:
        """Remove the records that `read` returned: they were sent, or appended again."""
        self._read_path.unlink(missing_ok=True)

    def count(self) -> int:
        """Return the number of records that were appended since the last `read`."""
        return len(self.path.read_text().splitlines()) if self.path.exists() else 0

    @property
    def _read_path(self) -> Path:
        """The second file: records that were read and not dropped yet."""
        return self.path.with_name(f".{self.path.name}")

    def _to_record(self, kind: str, fields: dict[str, Any]) -> Record:
        """Make the record of a line: `kind` is the name of its class, `fields` are its fields as stored in JSON."""
        if kind == "Image":
            fields["image"] = base64.b64decode(fields["image"])
        if kind == "Model" and fields["dataset"]:
            fields["dataset"] = Dataset(**fields["dataset"])
        return self._KINDS[kind](**fields)
