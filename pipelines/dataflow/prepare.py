"""The verbs `curate`, `caption`, `encode` and `prepare`: the stages of one dataflow, from sources to an encoded set.

    curate ─► caption ─► encode        prepare runs all three as one graph

A verb that begins with `curate` lists sources; any other reads the committed set of the stage before it. `run_prepare`
skips the segments in the output's ledger and sends the others through the graph, in waves. When no segment is left,
neither Ray nor a model starts.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import yaml

from captioning.settings import CaptionSettings
from data_prep.clip import Segment
from data_prep.curation.curator import Curator
from data_prep.dataset import layout, storage
from data_prep.dataset.compaction import SEGMENTS_PER_FILE
from data_prep.dataset.index import compacted_manifest
from data_prep.dataset.ledger import Ledger
from data_prep.dataset.shards import Committed
from data_prep.settings import CurateSettings, Settings
from data_prep.sources.listing import each_source
from pipelines.cluster import ray_running
from pipelines.dataflow.commit import claim, dataset_id, finish, read_summary
from pipelines.dataflow.encode import fingerprints
from pipelines.dataflow.graph import Stage, StageFunction, run_graph
from pipelines.report import overview
from pipelines.settings import EncodeSettings, TrackingSettings
from pipelines.tracking.run import Run, send_unsent, start_run

log = logging.getLogger("kinotone.prepare")

Progress = Callable[[str, int, int, str], None]

STAGES: dict[str, type[Settings]] = {"curate": CurateSettings, "caption": CaptionSettings, "encode": EncodeSettings}
# `curate --rejudge`: reads a curated set, as the later stages do, and writes another curated set.
REJUDGE = "rejudge"
_STAGES = {**STAGES, REJUDGE: CurateSettings}
# Segments that go through the graph at a time: about 1 GB in the driver and Ray, and hours of work for a cluster.
WAVE = 1_000_000
# The same when vLLM runs between two stages of the graph: Ray's object store then holds all clips of the wave.
VLLM_WAVE = 2_000
# Seconds between two points of the tracked curves.
_LOG_EVERY_S = 5.0


def run_prepare(
    stages: Sequence[str],
    inputs: list[str],
    output: str | Path,
    settings: Mapping[str, Settings] | None = None,
    tracking: TrackingSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run one or more stages of the dataflow. The same call resumes a run that was stopped.

    Args:
        stages: neighbours among ("curate", "caption", "encode"), in this order; or ("rejudge",), which applies the
            thresholds of its settings (a `CurateSettings`) to the stored scores of a curated set.
        inputs: sources if the first stage is `curate`; otherwise the folder of one committed set.
        output: the set to write.
        settings: the settings of each stage, by its name; defaults for a stage that has none.
        tracking: the MLflow server.
        progress: called with the verb, the segments committed, the segments listed so far, and the throughput.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: a mistake of the user, as one line with its fix: an input, a setting, weights, or an output that
            was made with other settings.
    """
    began = time.monotonic()
    verb = _verb(stages)
    chosen = {name: (settings or {}).get(name) or _STAGES[name]() for name in stages}
    root = storage.absolute(output)
    storage.check(root)
    source, listed = _listed(stages[0], inputs, root)
    if REJUDGE in chosen:
        assert source is not None, "rejudge reads a set"
        chosen = {REJUDGE: _rejudged(source, chosen[REJUDGE])}
    waves = _waves(listed, Ledger(root).done(), VLLM_WAVE if any(map(_through_vllm, chosen.values())) else WAVE)
    left, total = next(waves)
    if left:
        _check_available(chosen)
    claim(root, _record(chosen, source), [i if storage.is_remote(i) else os.path.abspath(i) for i in inputs])
    if "encode" in chosen and left:
        _warn_of_untrained(chosen["encode"])
    show = partial(progress or (lambda *_: None), verb)
    show(total - len(left), total, "")
    summary = read_summary(root)
    if not left and summary is not None and storage.exists(storage.at(root, layout.REPORT)):
        send_unsent(tracking or TrackingSettings(), "kinotone", verb, _run_folder(root))
        return summary

    params = {name: stage.model_dump(mode="json") for name, stage in chosen.items()}
    tags = {"input": ", ".join(inputs)}
    with (
        TemporaryDirectory() as folder,
        start_run(tracking or TrackingSettings(), "kinotone", verb, tags, params, _run_folder(root)) as run,
    ):
        dataflow = _Dataflow(chosen, root, source, run)
        with ray_running() if left else nullcontext():
            while left:
                for done in dataflow.run_wave(left):
                    show(total - len(left) + done, total, dataflow.throughput())
                left, total = next(waves, ([], total))
        summary = finish(root, verb, dataflow.seconds, time.monotonic() - began)
        _log_set(run, root, summary, overview.write_report(root), total, Path(folder))
    return summary


def _log_set(run: Run, root: str, summary: Mapping[str, Any], report: overview.Report, step: int, folder: Path) -> None:
    """Log a finished set to its tracked run: its id, the counts of kept and dropped clips, the report, and an example.

    Copies of the files are written to `folder`, which must exist until the run is closed.
    """
    run.tags({"dataset": dataset_id(root)})
    run.metrics(_funnel_metrics(summary), step)
    run.metrics({f"removed/{kind.replace(': ', '/')}": count for kind, count in report.removed.items()}, step)
    run.image("funnel", overview.funnel_figure(summary), step)
    files = [
        (name, storage.read(storage.at(root, name)), "") for name in (layout.REPORT, layout.SUMMARY, layout.SETTINGS)
    ]
    pages = ((name, storage.read(storage.at(root, overview.PAGES, name))) for name in report.pages)
    files += [(name, data, overview.PAGES) for name, data in pages]
    files += [(name, data, "sample") for name, data in report.samples]
    for name, data, artifact_folder in files:
        path = folder / name
        path.write_bytes(data)
        run.artifact(path, artifact_folder)


def _waves(listed: Iterable[Segment], done: set[str], wave: int = WAVE) -> Iterator[tuple[list[Segment], int]]:
    """Split the listed segments that are not done into waves of at most `wave`.

    Yields:
        (segments of the wave, number of segments listed so far); the last wave may be empty.
    """
    total, left = 0, dict[str, Segment]()  # by id, because a list may name a source twice
    for segment in listed:
        if segment.segment_id in left:
            continue
        total += 1
        if segment.segment_id not in done:
            left[segment.segment_id] = segment
        if len(left) == wave:
            yield list(left.values()), total
            left = {}
    yield list(left.values()), total


class _Dataflow:
    """A run of the dataflow: it sends waves of segments through the graph, and counts and logs the results.

    It also compacts ledger and manifest: it merges the files of many segments into one.

    Attributes:
        seconds: the seconds spent in each stage so far, summed over workers.
    """

    def __init__(self, chosen: Mapping[str, Settings], root: str, source: str | None, run: Run) -> None:
        self.root, self.source, self.run = root, source, run
        self.stages = [stage for name, settings in chosen.items() for stage in _graph_stages(name, settings)]
        self.seconds: Counter[str] = Counter()
        self.segments = self.considered = self.kept = 0
        self.began = self.logged_at = time.monotonic()

    def run_wave(self, segments: list[Segment]) -> Iterator[int]:
        """Run one wave. After each committed segment, yield how many segments of the wave are committed."""
        committed: list[Committed] = []
        for count, summary in enumerate(run_graph(segments, self.stages, self.root, self.source), 1):
            committed.append(summary.committed)
            self.segments += 1
            self.considered, self.kept = self.considered + summary.entry.considered, self.kept + summary.entry.kept
            self.seconds.update(summary.seconds)
            last = count == len(segments)
            if len(committed) == SEGMENTS_PER_FILE or last:
                Ledger(self.root).compact(done.entry for done in committed)
                compacted_manifest(self.root).add(pa.concat_tables(done.manifest for done in committed))
                committed = []
            if time.monotonic() - self.logged_at > _LOG_EVERY_S or last:
                self.logged_at = time.monotonic()
                spent = {f"seconds/{name}": value for name, value in self.seconds.items()}
                clips = {"clips/considered": self.considered, "clips/kept": self.kept}
                self.run.metrics({"segments": self.segments, **clips, **spent}, self.segments)
            yield count

    def throughput(self) -> str:
        """Return a text: clips per second so far, and mean seconds per segment in each stage, to find the slowest."""
        clips_s = self.considered / max(time.monotonic() - self.began, 1e-9)
        costs = (f"{name} {spent / self.segments:.2g} s" for name, spent in self.seconds.items())
        return f"{clips_s:.3g} clips/s; a segment: {', '.join(costs)}"


def _run_folder(root: str) -> Path:
    """Return the local folder for the id of the MLflow run: the set's folder, or `runs/NAME` for a remote set."""
    return Path("runs", root.rsplit("/", 1)[1]) if storage.is_remote(root) else Path(root)


def _verb(stages: Sequence[str]) -> str:
    """Return the verb that runs these stages: the name of the only stage, or "prepare" for several.

    Raises:
        ValueError: they are not neighbouring stages in order.
    """
    if list(stages) == [REJUDGE]:
        return REJUDGE
    order = list(STAGES)
    first = order.index(stages[0]) if stages and stages[0] in order else -1
    if first < 0 or list(stages) != order[first : first + len(stages)]:
        raise ValueError(f"stages {list(stages)}: give neighbours out of {order}, in this order")
    return stages[0] if len(stages) == 1 else "prepare"


def _listed(first: str, inputs: list[str], root: str) -> tuple[str | None, Iterable[Segment]]:
    """Return (folder of the set to read, segments to process without their clips). The folder is None for curate."""
    if first == "curate":
        return None, each_source(inputs)
    if len(inputs) != 1:
        raise ValueError(f"{first} reads one set: give one input, the output folder of the stage before it")
    source = storage.absolute(inputs[0])
    storage.check(source)
    if source == root:
        raise ValueError(f"{first}: input and output are both {root}; give another output")
    if not Ledger(source).done():
        made_by = "caption" if first == "encode" else "curate"
        raise ValueError(f"input {inputs[0]!r} is not a set made by `kinotone {made_by}`: it has no committed segment")
    return source, (Segment(entry.segment_id, entry.uri, size=entry.size) for entry in Ledger(source).entries())


def _warn_of_untrained(settings: Settings) -> None:
    """Log a warning that names the components without weights, if there are any."""
    assert isinstance(settings, EncodeSettings)
    if settings.untrained:
        names = ", ".join(f"encode.{part}" for part in settings.untrained)
        log.warning(
            "%s not set: untrained weights of preset %s make these latents; they show that the pipeline runs, but do "
            "not train on them; give model folders",
            names,
            settings.preset,
        )


def _record(chosen: Mapping[str, Settings], source: str | None) -> dict[str, Any]:
    """Return what the output depends on, for `settings.yaml`: settings, fingerprints of weights, and the input set."""
    names = {REJUDGE: "curate"}  # a rejudged set is a curated set
    record: dict[str, Any] = {names.get(name, name): stage.model_dump(mode="json") for name, stage in chosen.items()}
    for stage in chosen.values():
        if isinstance(stage, EncodeSettings):
            record["weights"] = fingerprints(stage)
    if source is not None:
        record["input_set"] = source
    return record


def _rejudged(source: str, given: Settings) -> CurateSettings:
    """Return the settings of the curated set `source`, with its thresholds replaced by those of `given`."""
    from data_prep.curation.rejudge import rejudged_settings

    assert isinstance(given, CurateSettings)
    known = yaml.safe_load(storage.read(storage.at(source, layout.SETTINGS)))["settings"]
    if "curate" not in known:
        raise ValueError(f"--rejudge {source}: not made by `kinotone curate`; give a curated set")
    return rejudged_settings(CurateSettings(**known["curate"]), given)


def _build(name: str, settings: Settings) -> StageFunction:
    """Build a stage's callable inside a worker. Imports are local, so that a worker imports only its own stage."""
    if name in ("curate", REJUDGE):
        from data_prep.curation.rejudge import Rejudger
        from data_prep.curation.sandbox import Sandbox

        assert isinstance(settings, CurateSettings)
        make = partial(Sandbox, partial(Curator, settings))
        return make() if name == "curate" else Rejudger(settings, make)
    if name == "caption":
        from captioning.captioner import Captioner

        assert isinstance(settings, CaptionSettings)
        return Captioner(settings)
    from pipelines.dataflow.encode import Encoder

    assert isinstance(settings, EncodeSettings)
    return Encoder(settings)


def _graph_stages(name: str, settings: Settings) -> list[Stage]:
    """Return the graph stage of one dataflow stage; for captions by vLLM two, between which vLLM runs."""
    if _through_vllm(settings):
        from pipelines.dataflow.vllm_stage import caption_stages

        assert isinstance(settings, CaptionSettings)
        return caption_stages(settings)
    return [Stage(name, partial(_build, name, settings), gpu=name not in ("curate", REJUDGE))]


def _through_vllm(settings: Settings) -> bool:
    """Return whether these are caption settings with the engine `vllm`."""
    return isinstance(settings, CaptionSettings) and settings.seen.engine == "vllm"


def _check_available(chosen: Mapping[str, Settings]) -> None:
    """Raise ValueError if weights or the endpoint of the caption stage are missing, before any stage starts."""
    for settings in chosen.values():
        if isinstance(settings, CaptionSettings):
            from captioning.captioner import check_settings

            check_settings(settings)


def _funnel_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the counts of a summary as metrics: clips considered, kept, dropped per reason, and failed per stage."""
    counts = {f"funnel/{key}": summary[key] for key in ("considered", "kept", "hours_considered", "hours_kept")}
    for verdict in ("dropped", "failed"):
        counts |= {f"funnel/{verdict}/{reason}": count for reason, count in summary[verdict].items()}
    return counts
