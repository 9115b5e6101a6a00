"""The Ray Data graph: source segments stream through actor pools, one pool per stage, and the last pool commits them.

    list[Segment]          rows of `ROW_SCHEMA`: one segment per row, from listing to commit
         │
    StageWorker × n        first stage:  reads the segment from the input set, if there is one; runs the stage
         │
    StageWorker × n        middle stages: run the stage on a batch of segments
         │
    StageWorker × n        last stage:   runs the stage, commits each segment, returns only summaries
         │
    driver                 yields one `SegmentSummary` per committed segment

A row is always one segment: it is never split into clips, which are a list inside the row. A stage is a plain callable
`[Segment] → [Segment]` that knows no Ray. The driver receives summaries alone, never media.

Four facts about Ray 2.60 decide the design:

- A worker process costs about 2 s of CPU before its first row. So the graph has no operators except the stages.
- If the actors of a pool occupy every CPU, the other operators get none, and the job waits forever. So pools have a
  fixed size and take fractions of the CPUs that leave some free (`size_pools`).
- Ray Data's checkpoints and `max_errored_blocks` lose clips. So resume is "segments without a ledger entry", and an
  error becomes the verdict of a clip (`apply`). An exception in an actor's constructor is retried, and its message is
  lost. So the constructor stores the exception, and the first call raises it (`StageBuildError`).
- Ray restarts a dead worker and gives it the same block again, without limit. So a worker skips what is committed, and
  quarantines a segment after two deaths of its worker (`StageWorker`).
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
from pipelines.dataflow.commit import SegmentSummary, commit_segments
from pipelines.tracking.worker_metrics import WorkerMetrics

StageFunction = Callable[[list[Segment]], list[Segment]]

# The column with the seconds spent on the row in each stage so far, by the stage's name.
_SECONDS = pa.field("seconds", pa.map_(pa.string(), pa.float64()))
ROW_SCHEMA = SEGMENT_SCHEMA.append(_SECONDS)
_MANIFEST = pa.large_list(pa.struct(list(MANIFEST_SCHEMA)))
SUMMARY_SCHEMA = pa.schema([("entry", pa.string()), ("manifest", _MANIFEST), _SECONDS])

# A segment is quarantined when its worker has died this often while it was processed.
_MAX_WORKER_DEATHS = 2
# CPUs that the pools leave free for Ray's other processes.
_RESERVED_CPUS = 0.25


@dataclass(frozen=True)
class Stage:
    """One model stage of the graph.

    Attributes:
        name: "curate", "caption" or "encode"; also the stage in the verdict of a clip that fails here.
        build: loads the models and returns the stage's callable. It is called inside a worker; must be picklable.
        batch: segments per call.
        gpu: whether the stage runs on a GPU when the cluster has one.
        then: transforms the Ray dataset (of `ROW_SCHEMA`) that the stage returns; None: pass it on unchanged. The last
            stage returns summaries, so its `then` must be None.
    """

    name: str
    build: Callable[[], StageFunction]
    batch: int = 1
    gpu: bool = False
    then: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Pool:
    """The actor pool of a stage: the number of workers, and the CPUs and GPUs that Ray reserves for each."""

    workers: int
    cpus: float
    gpus: float


def size_pools(stages: list[Stage], cpus: float, gpus: float, rows: int) -> list[Pool]:
    """Choose the fixed size of each stage's pool so that `_RESERVED_CPUS` of the cluster stay free.

    A GPU stage gets one worker per GPU and shares each GPU with the other GPU stages. CPU stages share the CPUs evenly.
    No pool has more workers than there are batches for it.

    Args:
        stages: the stages of the graph, in order.
        cpus: CPUs of the cluster.
        gpus: GPUs of the cluster.
        rows: the number of segments to process.

    Returns:
        The pools, in the order of the stages.
    """
    on_gpu = [stage for stage in stages if stage.gpu and gpus >= 1]
    on_cpu = max(1, len(stages) - len(on_gpu))
    pools = []
    for stage in stages:
        batches = max(1, -(-rows // stage.batch))
        wanted = int(gpus) if stage in on_gpu else max(1, int(cpus) // on_cpu)
        pools.append(Pool(min(wanted, batches), 0.0, 1 / len(on_gpu) if stage in on_gpu else 0.0))
    workers = sum(pool.workers for pool in pools)
    # Round down to hundredths: Ray counts in ten-thousandths, and waits forever if the sum is slightly too high.
    share = min(1.0, int(100 * max(cpus - _RESERVED_CPUS, cpus / 2) / workers) / 100)
    return [replace(pool, cpus=max(share, 0.01)) for pool in pools]


def run_graph(
    segments: list[Segment], stages: list[Stage], output: str | Path, read_from: str | Path | None = None
) -> Iterator[SegmentSummary]:
    """Run every segment through the stages and commit it to `output`. Needs a running Ray.

    Args:
        segments: the segments to process, without clips; must not be empty.
        stages: at least one, in order; the last one commits.
        output: the set that the last stage commits to.
        read_from: the committed set from which the first stage reads each segment's clips and media; None: the first
            stage receives the bare segment.

    Yields:
        The summary of each segment, as soon as it is committed.

    Raises:
        ValueError: a stage could not be built because of a mistake that the user can fix, such as missing weights.
    """
    import ray
    import ray.data

    assert segments
    run = uuid.uuid4().hex
    resources = ray.cluster_resources()
    pools = size_pools(stages, resources.get("CPU", 1.0), resources.get("GPU", 0.0), len(segments))
    data = ray.data.from_arrow(_input_blocks(segments, max(pool.workers for pool in pools)))
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
            yield from _from_summary_rows(cast(pa.Table, batch))
    except Exception as error:
        user_error = _user_error(error)
        if user_error:
            raise ValueError(user_error) from None
        raise


class StageWorker:
    """One Ray actor of a stage. It receives and returns Arrow tables and calls the stage's callable in between.

    A call does, in this order: count the attempt, read the segments (first stage), run the stage, commit (last stage),
    clear the attempt. An attempt that was not cleared means that the worker died while it processed the segment.

    Args:
        stage: the stage to build and run.
        run: a unique name of this run of the graph; the attempts are counted under it.
        read_from: the set to read each segment from; None unless this is the first stage of a graph that reads a set.
        commit_to: the set to commit to; None unless this is the last stage.
    """

    def __init__(self, stage: Stage, run: str, read_from: str | None, commit_to: str | None) -> None:
        import ray

        self.stage, self.read_from, self.commit_to = stage, read_from, commit_to
        self.attempts = Attempts(f"{run}:{stage.name}")
        self.restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self.duplicates = near_duplicates.read(read_from) if read_from else {}
        self.metrics = WorkerMetrics()
        self.build_error: Exception | None = None
        try:
            self.stage_function = stage.build()
        except Exception as error:
            self.build_error = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """Process a batch of rows of `ROW_SCHEMA`.

        Returns:
            Rows of `ROW_SCHEMA`; rows of `SUMMARY_SCHEMA` from the last stage.

        Raises:
            StageBuildError: the stage could not be built.
        """
        if self.build_error is not None:
            by_user = isinstance(self.build_error, ValueError)
            message = f"{_USER_ERROR}{self.build_error}" if by_user else describe(self.build_error)
            raise StageBuildError(message) from self.build_error
        seconds = [dict(row) for row in table["seconds"].to_pylist()]
        segments = from_table(table.drop_columns(["seconds"]))
        deaths = [self.attempts.count(segment.segment_id) for segment in segments]
        if not any(deaths) and not self.restarted:
            return self._process(segments, seconds)
        # Process one segment at a time, so that the deaths are counted for the segment that causes them.
        return pa.concat_tables(map(self._process_after_death, segments, seconds, deaths))

    def _process_after_death(self, segment: Segment, seconds: dict[str, float], deaths: int) -> pa.Table:
        """Process one segment after a worker died. If that worker had committed it, only return the stored summary."""
        if self.commit_to:
            with suppress(ValueError):
                return _to_summary_rows([SegmentSummary(read_committed(self.commit_to, segment.segment_id), seconds)])
        return self._process([segment], [seconds], deaths)

    def _process(self, segments: list[Segment], seconds: list[dict[str, float]], deaths: int = 0) -> pa.Table:
        """Do the steps that the class's docstring lists.

        Args:
            segments: the segments; exactly one if `deaths` is not 0.
            seconds: the seconds spent on each segment in each stage so far; this call adds its own.
            deaths: how many workers died while they processed the segment. From `_MAX_WORKER_DEATHS` on, the stage is
                not run: the segment's kept clips become failed, so that it cannot kill further workers.

        Returns:
            The rows that `__call__` returns.
        """
        for segment in segments:
            self.attempts.begin(segment.segment_id, deaths)
        if self.read_from:
            with self._timed("read", seconds):
                read = [read_segment(self.read_from, segment.segment_id) for segment in segments]
                segments = [near_duplicates.without(segment, self.duplicates) for segment in read]
        if deaths >= _MAX_WORKER_DEATHS:
            (segment,) = segments
            error = f"its worker died {_MAX_WORKER_DEATHS} times in {self.stage.name}"
            segments = [_fail_kept_clips(segment, QUARANTINE, error)]
        else:
            with self._timed(self.stage.name, seconds):
                segments = apply(self.stage.name, self.stage_function, segments)
        if self.commit_to:
            summaries = commit_segments(self.commit_to, segments, seconds)
            self.metrics.count_committed(segments, (summary.seconds for summary in summaries))
            rows = _to_summary_rows(summaries)
        else:
            rows = to_rows(segments, seconds)
        for segment in segments:
            self.attempts.end(segment.segment_id)
        return rows

    @contextmanager
    def _timed(self, name: str, seconds: list[dict[str, float]]) -> Iterator[None]:
        """Time the block. Add seconds / number of rows to each row's `seconds[name]`, and count them as a metric."""
        start = time.perf_counter()
        yield
        elapsed = time.perf_counter() - start
        self.metrics.count_stage(name, len(seconds), elapsed)
        for spent in seconds:
            spent[name] = spent.get(name, 0.0) + elapsed / len(seconds)


class StageBuildError(Exception):
    """A stage could not be built. The message says why; Ray passes only the message on to the driver."""


# Begins the message of a `StageBuildError` that the user can fix, so that the driver finds it in Ray's longer message.
_USER_ERROR = "kinotone-mistake: "


def _user_error(error: BaseException) -> str:
    """Return the text after `_USER_ERROR` in the message of an error from Ray; "" when it is not there."""
    for line in str(error).splitlines():
        if _USER_ERROR in line:
            return line.split(_USER_ERROR, 1)[1]
    return ""


def apply(name: str, call: StageFunction, segments: list[Segment]) -> list[Segment]:
    """Call a stage. An error fails only the segments that cause it, and does not end the run.

    When the call raises, each segment is tried alone. When that raises too, its kept clips become
    `failed(name, error)`; a segment that has no clip yet gets one failed clip.

    Args:
        name: the stage's name, for the verdict of failed clips.
        call: the stage's callable.
        segments: the batch; the stage receives copies.

    Returns:
        The processed segments, in the same order.

    Raises:
        ChildProcessError: a helper process ended; no segment is at fault, so the run ends and can be resumed.
        EngineGone: the server of the captioning engine is gone or refuses the key; the same.
    """
    try:
        return _call_checked(name, call, segments)
    except (ChildProcessError, EngineGone):
        raise
    except Exception as error:
        if len(segments) > 1:
            return [apply(name, call, [segment])[0] for segment in segments]
        segment = segments[0]
        logging.getLogger("kinotone.graph").warning("%s of %s failed: %s", name, segment.uri, describe(error))
        return [_fail_kept_clips(segment, name, error)]


def _call_checked(name: str, call: StageFunction, segments: list[Segment]) -> list[Segment]:
    """Call a stage; check that it returned the same segments in the same order, each with at least one clip."""
    # Pass copies: changes of a call that fails half-way must not reach the second attempt.
    done = call([replace(segment, clips=[replace(clip) for clip in segment.clips]) for segment in segments])
    before, after = [s.segment_id for s in segments], [s.segment_id for s in done]
    if before != after:
        raise RuntimeError(f"stage {name} was given segments {before} and gave {after}")
    for segment in done:
        if not segment.clips:
            raise RuntimeError(f"stage {name} left segment {segment.segment_id} without a clip")
    return done


def _fail_kept_clips(segment: Segment, stage: str, error: Exception | str) -> Segment:
    """Return the segment with its kept clips changed to `failed(stage, error)`; one failed clip if it has none yet."""
    if not segment.clips:
        return segment.failed(stage, error)
    return replace(segment, clips=[clip.failed(stage, error) if clip.kept else clip for clip in segment.clips])


def to_rows(segments: list[Segment], seconds: list[dict[str, float]]) -> pa.Table:
    """Convert segments, and the seconds spent on each so far, to rows of `ROW_SCHEMA`."""
    column = pa.array([list(spent.items()) for spent in seconds], type=_SECONDS.type)
    return to_table(segments).append_column(_SECONDS, column)


def _to_summary_rows(summaries: list[SegmentSummary]) -> pa.Table:
    """Convert summaries to rows of `SUMMARY_SCHEMA`."""
    manifests = pa.concat_tables([summary.committed.manifest for summary in summaries]).combine_chunks()
    ends = np.cumsum([0, *(summary.committed.manifest.num_rows for summary in summaries)])
    return pa.table(
        [
            pa.array([summary.entry.to_json().decode() for summary in summaries], pa.string()),
            pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), manifests.to_struct_array().combine_chunks()),
            pa.array([list(summary.seconds.items()) for summary in summaries], _SECONDS.type),
        ],
        schema=SUMMARY_SCHEMA,
    )


def _from_summary_rows(table: pa.Table) -> Iterator[SegmentSummary]:
    """Convert rows of `SUMMARY_SCHEMA` back to summaries, one after the other."""
    rows = table.drop_columns(["manifest"]).to_pylist()
    manifests = (manifest for chunk in table["manifest"].chunks for manifest in chunk)
    for row, manifest in zip(rows, manifests, strict=True):
        committed = Committed(Entry(**json.loads(row["entry"])), pa.Table.from_struct_array(manifest.values))
        yield SegmentSummary(committed, dict(row["seconds"]))


def _input_blocks(segments: list[Segment], workers: int) -> list[pa.Table]:
    """Convert segments to tables of `ROW_SCHEMA`: at least four for each worker if possible, of at most 64 rows."""
    size = min(64, max(1, len(segments) // (4 * workers)))
    return [
        to_rows(segments[start : start + size], [{} for _ in segments[start : start + size]])
        for start in range(0, len(segments), size)
    ]
