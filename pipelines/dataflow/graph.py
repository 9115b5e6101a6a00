"""Segments through stages to commit, as one streaming Ray Data job. The row is a segment; it never fans out.

Each stage is a fixed pool of actors around a plain callable `[Segment] → [Segment]` that knows no Ray. Between them
travels one Arrow schema. The first stage's workers read, the last stage's workers commit, and only small summaries
reach the driver.

Facts (Ray 2.60): a worker process costs about 2 s of CPU before its first row; so there is no operator but the
stages. A pool whose actors hold every CPU starves whatever runs beside it, and a job waits forever; so pools take
fractions that leave room. Ray Data's own checkpoints and `max_errored_blocks` lose clips; so resume is the
ledger's and an error is a clip's verdict. A constructor that raises in an actor is retried and its error wrapped
beyond recognition; so it is kept and raised by the first call. A worker that dies is started again and its block
given to it again, for ever; so what is committed is not done again, and a segment whose worker died twice while it
was in work is quarantined instead of tried a third time.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from captioning.look.vision_engine import EngineGone
from data_prep.clip import SEGMENT_SCHEMA, Segment, describe, from_table, to_table
from data_prep.curation import near_duplicates
from data_prep.curation.sandbox import QUARANTINE
from data_prep.dataset.ledger import Entry
from data_prep.dataset.shards import MANIFEST_SCHEMA, Committed, read_committed, read_segment
from pipelines.cluster import Attempts
from pipelines.dataflow.commit import Summary, commit_segments
from pipelines.tracking.worker_metrics import Meters

StageFunction = Callable[[list[Segment]], list[Segment]]

# What the driver learns of a row besides its summary: seconds spent in each stage.
_SECONDS = pa.field("seconds", pa.map_(pa.string(), pa.float64()))
ROW_SCHEMA = SEGMENT_SCHEMA.append(_SECONDS)
_MANIFEST = pa.large_list(pa.struct(list(MANIFEST_SCHEMA)))
SUMMARY_SCHEMA = pa.schema([("entry", pa.string()), ("manifest", _MANIFEST), _SECONDS])

# Deaths of its worker after which a segment is given up.
_DEATHS = 2
# CPUs that the pools leave to whatever else Ray runs.
_LEFT_CPUS = 0.25


@dataclass(frozen=True)
class Stage:
    """One model stage of the graph.

    Attributes:
        name: "curate", "caption", "encode": the name of its verdict where it fails.
        build: makes the callable, inside a worker; loads the models. Must be picklable.
        batch: segments per call.
        gpu: whether it runs on a GPU where the cluster has any.
        then: what the dataset of `ROW_SCHEMA` passes through after it; None for the last stage, which commits.
    """

    name: str
    build: Callable[[], StageFunction]
    batch: int = 1
    gpu: bool = False
    then: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Pool:
    """Actors of a stage, and what each holds."""

    workers: int
    cpus: float
    gpus: float


def size_pools(stages: list[Stage], cpus: float, gpus: float, rows: int) -> list[Pool]:
    """Fixed pools that together leave `_LEFT_CPUS` of the cluster free, so that no operator waits for another's CPU.

    A GPU stage gets a worker per GPU, sharing it with the other GPU stages; CPU stages share the CPUs evenly. No pool
    has more workers than there are batches for it.
    """
    on_gpu = [stage for stage in stages if stage.gpu and gpus >= 1]
    on_cpu = max(1, len(stages) - len(on_gpu))
    pools = []
    for stage in stages:
        batches = max(1, -(-rows // stage.batch))
        wanted = int(gpus) if stage in on_gpu else max(1, int(cpus) // on_cpu)
        pools.append(Pool(min(wanted, batches), 0.0, 1 / len(on_gpu) if stage in on_gpu else 0.0))
    workers = sum(pool.workers for pool in pools)
    # Rounded down to hundredths: Ray counts in ten-thousandths, and a sum that is a hair too high never starts.
    share = min(1.0, int(100 * max(cpus - _LEFT_CPUS, cpus / 2) / workers) / 100)
    return [replace(pool, cpus=max(share, 0.01)) for pool in pools]


def run_graph(
    segments: list[Segment], stages: list[Stage], output: str | Path, read_from: str | Path | None = None
) -> Iterator[Summary]:
    """Take every segment through the stages and commit it to `output`; yields a summary as each is committed.

    Args:
        segments: what is to be done, without clips; must not be empty.
        read_from: the committed set whose clips (with their media) the first stage takes; None: the stages start
            from the bare segment.

    Raises:
        ValueError: the user's mistake, met when a stage was built (weights that are missing).
    """
    import ray
    import ray.data

    assert segments
    run = uuid.uuid4().hex
    resources = ray.cluster_resources()
    pools = size_pools(stages, resources.get("CPU", 1.0), resources.get("GPU", 0.0), len(segments))
    data = ray.data.from_arrow(_blocks(segments, max(pool.workers for pool in pools)))
    for stage, pool in zip(stages, pools, strict=True):
        data = data.map_batches(
            StageWorker,
            fn_constructor_kwargs={
                "stage": stage,
                "run": run,
                "read_from": str(read_from) if read_from and stage is stages[0] else None,
                "commit_to": str(output) if stage is stages[-1] else None,
            },
            batch_size=stage.batch,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool.workers, max_tasks_in_flight_per_actor=2),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        if stage.then is not None:
            data = stage.then(data)
    try:
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from _summaries(cast(pa.Table, batch))
    except Exception as error:
        mistake = _user_mistake(error)
        if mistake:
            raise ValueError(mistake) from None
        raise


class StageWorker:
    """An actor of a stage: Arrow in, Arrow out, around the stage's callable.

    The first stage's worker reads its segments from the set `read_from`, if given; the last stage's commits them to
    the set `commit_to` and gives summaries instead of segments.
    """

    def __init__(self, stage: Stage, run: str, read_from: str | None, commit_to: str | None) -> None:
        import ray

        self.stage, self.read_from, self.commit_to = stage, read_from, commit_to
        self.attempts = Attempts(f"{run}:{stage.name}")
        self.revived = ray.get_runtime_context().was_current_actor_reconstructed
        self.doubles = near_duplicates.read(read_from) if read_from else {}
        self.meters = Meters()
        self.error: Exception | None = None
        try:
            self.call = stage.build()
        except Exception as error:
            self.error = error

    def __call__(self, table: pa.Table) -> pa.Table:
        if self.error is not None:
            text = f"{_MISTAKE}{self.error}" if isinstance(self.error, ValueError) else describe(self.error)
            raise BrokenStage(text) from self.error
        seconds = [dict(row) for row in table["seconds"].to_pylist()]
        segments = from_table(table.drop_columns(["seconds"]))
        deaths = [self.attempts.count(segment.segment_id) for segment in segments]
        if not any(deaths) and not self.revived:
            return self._through(segments, seconds)
        # One by one, so that the one that kills its worker is found.
        return pa.concat_tables(map(self._again, segments, seconds, deaths))

    def _again(self, segment: Segment, seconds: dict[str, float], deaths: int) -> pa.Table:
        """As `_through` for one segment that a worker which died may have had, and may have committed."""
        if self.commit_to:
            with suppress(ValueError):
                return _summary_rows([Summary(read_committed(self.commit_to, segment.segment_id), seconds)])
        return self._through([segment], [seconds], deaths)

    def _through(self, segments: list[Segment], seconds: list[dict[str, float]], deaths: int = 0) -> pa.Table:
        for segment in segments:
            self.attempts.begin(segment.segment_id, deaths)
        if self.read_from:
            with self._timed("read", seconds):
                read = [read_segment(self.read_from, segment.segment_id) for segment in segments]
                segments = [near_duplicates.without(segment, self.doubles) for segment in read]
        if deaths >= _DEATHS:
            (segment,) = segments
            segments = [_failed(segment, QUARANTINE, f"its worker died {_DEATHS} times in {self.stage.name}")]
        else:
            with self._timed(self.stage.name, seconds):
                segments = apply(self.stage.name, self.call, segments)
        if self.commit_to:
            summaries = commit_segments(self.commit_to, segments, seconds)
            self.meters.committed(segments, (one.seconds for one in summaries))
            rows = _summary_rows(summaries)
        else:
            rows = to_rows(segments, seconds)
        for segment in segments:
            self.attempts.end(segment.segment_id)
        return rows

    @contextmanager
    def _timed(self, name: str, seconds: list[dict[str, float]]) -> Iterator[None]:
        """Adds the block's time to each row's account under `name`, in equal parts, and to the meters."""
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        self.meters.through(name, len(seconds), took)
        for spent in seconds:
            spent[name] = spent.get(name, 0.0) + took / len(seconds)


def _summary_rows(summaries: list[Summary]) -> pa.Table:
    manifests = pa.concat_tables([one.committed.manifest for one in summaries]).combine_chunks()
    ends = np.cumsum([0, *(one.committed.manifest.num_rows for one in summaries)])
    return pa.table(
        [
            pa.array([one.entry.to_json().decode() for one in summaries], pa.string()),
            pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), manifests.to_struct_array().combine_chunks()),
            pa.array([list(one.seconds.items()) for one in summaries], _SECONDS.type),
        ],
        schema=SUMMARY_SCHEMA,
    )


def _summaries(table: pa.Table) -> Iterator[Summary]:
    """The inverse of `_summary_rows`."""
    rows = table.drop_columns(["manifest"]).to_pylist()
    manifests = (one for chunk in table["manifest"].chunks for one in chunk)
    for row, manifest in zip(rows, manifests, strict=True):
        committed = Committed(Entry(**json.loads(row["entry"])), pa.Table.from_struct_array(manifest.values))
        yield Summary(committed, dict(row["seconds"]))


class BrokenStage(Exception):
    """A stage that cannot be built. The message alone survives Ray's wrapping, so all is in it."""


# Marks the message of a `BrokenStage` that the user can mend.
_MISTAKE = "kinotone-mistake: "


def apply(name: str, call: StageFunction, segments: list[Segment]) -> list[Segment]:
    """Call a stage so that an error costs the segments it is about, never the run.

    When the call raises, each segment is tried alone; where that raises too, its kept clips become
    `failed(name, error)`, and a segment that has no clip yet becomes one failed clip.
    """
    try:
        return _checked(name, call, segments)
    except (ChildProcessError, EngineGone):  # no source's fault: the run ends, and goes on when it is called again
        raise
    except Exception as error:
        if len(segments) > 1:
            return [apply(name, call, [segment])[0] for segment in segments]
        segment = segments[0]
        logging.getLogger("kinotone.graph").warning("%s of %s failed: %s", name, segment.uri, describe(error))
        return [_failed(segment, name, error)]


def _failed(segment: Segment, stage: str, error: Exception | str) -> Segment:
    """The segment with its kept clips, or if it has no clip yet as a whole, `failed(stage, error)`."""
    if not segment.clips:
        return segment.failed(stage, error)
    return replace(segment, clips=[clip.failed(stage, error) if clip.kept else clip for clip in segment.clips])


def _checked(name: str, call: StageFunction, segments: list[Segment]) -> list[Segment]:
    # The stage gets its own copies: what a failed call has half done must not leak into the second try.
    done = call([replace(segment, clips=[replace(clip) for clip in segment.clips]) for segment in segments])
    before, after = [s.segment_id for s in segments], [s.segment_id for s in done]
    if before != after:
        raise RuntimeError(f"stage {name} was given segments {before} and gave {after}")
    for segment in done:
        if not segment.clips:
            raise RuntimeError(f"stage {name} left segment {segment.segment_id} without a clip")
    return done


def to_rows(segments: list[Segment], seconds: list[dict[str, float]]) -> pa.Table:
    """Segments and what they cost so far, as `ROW_SCHEMA`."""
    column = pa.array([list(spent.items()) for spent in seconds], type=_SECONDS.type)
    return to_table(segments).append_column(_SECONDS, column)


def _blocks(segments: list[Segment], workers: int) -> list[pa.Table]:
    # Small enough that every worker has several and progress is seen; large enough that a million rows are few blocks.
    size = min(64, max(1, len(segments) // (4 * workers)))
    return [
        to_rows(segments[start : start + size], [{} for _ in segments[start : start + size]])
        for start in range(0, len(segments), size)
    ]


def _user_mistake(error: BaseException) -> str:
    """The message of a `BrokenStage` that the user can mend, out of whatever Ray wrapped it in; "" for others."""
    for line in str(error).splitlines():
        if _MISTAKE in line:
            return line.split(_MISTAKE, 1)[1]
    return ""
