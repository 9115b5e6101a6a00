"""What a run has to say to the tracking server, as records that can wait on disk until it is there to take them."""

import base64
import io
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

# One log_batch request takes at most this many metrics, and this many parameters (MLflow's own limits).
MAX_METRICS, MAX_PARAMS = 1000, 100


@dataclass(frozen=True)
class Metric:
    """A number at a step, and when it was measured (milliseconds since 1970)."""

    key: str
    value: float
    time_ms: int
    step: int

    def entity(self, **more: str) -> Any:
        from mlflow.entities import Metric as Entity

        return Entity(self.key, self.value, self.time_ms, self.step, **more)


@dataclass(frozen=True)
class Params:
    values: dict[str, str]

    def send(self, client: Any, run_id: str) -> None:
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in sorted(self.values.items())]
        for start in range(0, len(entries), MAX_PARAMS):
            client.log_batch(run_id, params=entries[start : start + MAX_PARAMS])


@dataclass(frozen=True)
class Tags:
    values: dict[str, str]

    def send(self, client: Any, run_id: str) -> None:
        for key, value in self.values.items():
            client.set_tag(run_id, key, value)


@dataclass(frozen=True)
class Artifact:
    """A file, or a folder with all it holds, and the folder of the artifacts that it goes to."""

    path: str
    folder: str

    def send(self, client: Any, run_id: str) -> None:
        log = client.log_artifacts if os.path.isdir(self.path) else client.log_artifact
        log(run_id, self.path, self.folder or None)


@dataclass(frozen=True)
class Image:
    """A picture of a step: the path of one, its PNG's bytes, or a uint8 array (H, W, 3)."""

    key: str
    image: Any
    step: int
    time_ms: int

    def picture(self) -> Any:
        from PIL import Image as Picture

        if isinstance(self.image, str | Path):
            return Picture.open(self.image)
        if isinstance(self.image, bytes):
            return Picture.open(io.BytesIO(self.image))
        return Picture.fromarray(self.image)

    def send(self, client: Any, run_id: str) -> None:
        picture = self.picture().convert("RGB")
        client.log_image(run_id, picture, key=self.key, step=self.step, timestamp=self.time_ms, synchronous=True)

    def as_text(self) -> "Image":
        """With its bytes, in text."""
        png = io.BytesIO()
        self.picture().convert("RGB").save(png, "PNG")
        return Image(self.key, base64.b64encode(png.getvalue()).decode(), self.step, self.time_ms)


@dataclass(frozen=True)
class Dataset:
    """The data set that a run reads: its lineage on the run's page."""

    name: str
    digest: str
    uri: str

    def send(self, client: Any, run_id: str) -> None:
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        kind = self.uri.split("://")[0] if "://" in self.uri else "local"
        entity = Entity(self.name, self.digest, kind, json.dumps({"uri": self.uri}))
        client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])


@dataclass(frozen=True)
class Model:
    """A checkpoint as a LoggedModel of the run: where it lies and the metrics of its step; nothing is uploaded."""

    name: str
    step: int
    path: str
    values: dict[str, float]
    time_ms: int
    dataset: Dataset | None

    def send(self, client: Any, run_id: str) -> None:
        from mlflow.entities import LoggedModelOutput

        experiment = client.get_run(run_id).info.experiment_id
        wanted = f"name = '{self.name}' AND source_run_id = '{run_id}'"
        # A request whose answer was lost has made it already.
        found = client.search_logged_models([experiment], filter_string=wanted)
        if found:
            model = found[0]
        else:
            tags = {"step": str(self.step), "path": self.path}
            model = client.create_logged_model(experiment, self.name, run_id, tags, model_type="checkpoint")
        data = {"dataset_name": self.dataset.name, "dataset_digest": self.dataset.digest} if self.dataset else {}
        metrics = [
            Metric(key, value, self.time_ms, self.step).entity(model_id=model.model_id, **data)
            for key, value in self.values.items()
        ]
        client.log_batch(run_id, metrics=metrics)
        client.log_outputs(run_id, models=[LoggedModelOutput(model.model_id, self.step)])
        client.finalize_logged_model(model.model_id, "READY")


Record = Metric | Params | Tags | Artifact | Image | Dataset | Model


class Unsent:
    """Records on disk, a JSON line each, appended from any thread; a line that was cut off is left out."""

    _KINDS: ClassVar = {kind.__name__: kind for kind in (Metric, Params, Tags, Artifact, Image, Dataset, Model)}

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def keep(self, records: Iterable[Record]) -> int:
        """Append them; gives their number. Raises OSError."""
        lines = []
        for record in records:
            kind = type(record).__name__
            lines.append(json.dumps([kind, asdict(record.as_text() if isinstance(record, Image) else record)]) + "\n")
        if lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, self.path.open("a") as file:
                file.writelines(lines)
        return len(lines)

    def take(self) -> list[Record]:
        """What was kept. It stays on disk, out of the way, until `taken` is called."""
        with self._lock:
            aside = self._aside
            if self.path.exists():
                with aside.open("a") as file:
                    file.write(self.path.read_text())
                self.path.unlink()
            if not aside.exists():
                return []
            lines = [line for line in aside.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [self._record(*json.loads(line)) for line in lines]

    def taken(self) -> None:
        """What `take` gave was sent."""
        self._aside.unlink(missing_ok=True)

    def count(self) -> int:
        """How many lie there."""
        return len(self.path.read_text().splitlines()) if self.path.exists() else 0

    @property
    def _aside(self) -> Path:
        return self.path.with_name(f".{self.path.name}")

    def _record(self, kind: str, fields: dict[str, Any]) -> Record:
        if kind == "Image":
            fields["image"] = base64.b64decode(fields["image"])
        if kind == "Model" and fields["dataset"]:
            fields["dataset"] = Dataset(**fields["dataset"])
        return self._KINDS[kind](**fields)
