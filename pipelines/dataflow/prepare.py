"""`curate`, `caption`, `encode` and `prepare`: slices of one dataflow, from sources or a committed set to a new set.

A slice that begins with `curate` lists sources; any other reads the clips of the set that the slice before it made.
What the ledger of the output holds is done; the rest goes through the graph. When nothing is left, neither Ray nor a
model starts.
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
from pipelines.tracking.run import Run, send_rest, start_run

log = logging.getLogger("kinotone.prepare")

Progress = Callable[[str, int, int, str], None]

STAGES: dict[str, type[Settings]] = {"curate": CurateSettings, "caption": CaptionSettings, "encode": EncodeSettings}
# `curate --rejudge`: reads a curated set as the later stages do, and makes another.
REJUDGE = "rejudge"
_STAGES = {**STAGES, REJUDGE: CurateSettings}
# Segments that the driver and Ray hold at a time: about a gigabyte, and hours of work for a cluster.
WAVE = 1_000_000
# The same where vLLM stands between two halves of the graph: what Ray's store and its disk hold of clips.
VLLM_WAVE = 2_000
# Seconds between two points of the tracked curves.
_TRACK_EVERY_S = 5.0


def run_prepare(
    stages: Sequence[str],
    inputs: list[str],
    output: str | Path,
    settings: Mapping[str, Settings] | None = None,
    tracking: TrackingSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a slice of the dataflow; the same call resumes it. Gives the summary that `summary.json` holds.

    Args:
        stages: one of ("curate",), ("caption",), ("encode",), or neighbours in this order; or ("rejudge",), which
            judges a curated set by the thresholds of its settings, a `CurateSettings`.
        inputs: sources for a slice that begins with `curate`; else the folder of one committed set.
        output: the set that is made.
        settings: of each stage, by its name; defaults where it has none.
        progress: called with the verb, segments committed, segments in all, and how fast it goes.

    Raises:
        ValueError: the user's mistake, as one line with its mend: an input, a setting, weights, or an output that
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
        _check(chosen)
    claim(root, _record(chosen, source), [i if storage.is_remote(i) else os.path.abspath(i) for i in inputs])
    if "encode" in chosen and left:
        _warn_of_untrained(chosen["encode"])
    show = partial(progress or (lambda *_: None), verb)
    show(total - len(left), total, "")
    summary = read_summary(root)
    if not left and summary is not None and storage.exists(storage.at(root, layout.REPORT)):
        send_rest(tracking or TrackingSettings(), "kinotone", verb, _tracked_beside(root))
        return summary

    params = {name: stage.model_dump(mode="json") for name, stage in chosen.items()}
    tags = {"input": ", ".join(inputs)}
    with (
        TemporaryDirectory() as folder,
        start_run(tracking or TrackingSettings(), "kinotone", verb, tags, params, _tracked_beside(root)) as run,
    ):
        flow = _Flow(chosen, root, source, run)
        with ray_running() if left else nullcontext():
            while left:
                for done in flow.take(left):
                    show(total - len(left) + done, total, flow.rates())
                left, total = next(waves, ([], total))
        summary = finish(root, verb, flow.seconds, time.monotonic() - began)
        made = overview.write_report(root)
        run.tags({"dataset": dataset_id(root)})
        run.metrics(_funnel(summary), total)
        run.metrics({f"removed/{kind.replace(': ', '/')}": count for kind, count in made.removed.items()}, total)
        run.image("funnel", overview.funnel_figure(summary), total)
        names = (layout.REPORT, layout.SUMMARY, layout.SETTINGS)
        files = [(name, storage.read(storage.at(root, name)), "") for name in names]
        files += [(name, storage.read(storage.at(root, overview.PAGES, name)), overview.PAGES) for name in made.pages]
        files += [(name, data, "sample") for name, data in made.samples]
        for name, data, place in files:
            path = Path(folder) / name
            path.write_bytes(data)
            run.artifact(path, place)
    return summary


def _waves(listed: Iterable[Segment], done: set[str], wave: int = WAVE) -> Iterator[tuple[list[Segment], int]]:
    """What is not done, at most `wave` segments at a time, each time with how many were listed so far."""
    total, left = 0, dict[str, Segment]()  # by id: a list may name a source twice
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


class _Flow:
    """Segments through the graph: counted and tracked as they come, entries and manifests gathered into parts.

    Attributes:
        seconds: spent in each stage so far, summed over workers.
    """

    def __init__(self, chosen: Mapping[str, Settings], root: str, source: str | None, run: Run) -> None:
        self.root, self.source, self.run = root, source, run
        self.graph = [stage for name, settings in chosen.items() for stage in _stages(name, settings)]
        self.seconds: Counter[str] = Counter()
        self.segments = self.considered = self.kept = 0
        self.began = self.tracked = time.monotonic()

    def take(self, left: list[Segment]) -> Iterator[int]:
        """Take segments through; gives how many of them are committed."""
        committed: list[Committed] = []
        for count, one in enumerate(run_graph(left, self.graph, self.root, self.source), 1):
            committed.append(one.committed)
            self.segments += 1
            self.considered, self.kept = self.considered + one.entry.considered, self.kept + one.entry.kept
            self.seconds.update(one.seconds)
            last = count == len(left)
            if len(committed) == SEGMENTS_PER_FILE or last:
                Ledger(self.root).compact(done.entry for done in committed)
                compacted_manifest(self.root).add(pa.concat_tables(done.manifest for done in committed))
                committed = []
            if time.monotonic() - self.tracked > _TRACK_EVERY_S or last:
                self.tracked = time.monotonic()
                spent = {f"seconds/{name}": value for name, value in self.seconds.items()}
                clips = {"clips/considered": self.considered, "clips/kept": self.kept}
                self.run.metrics({"segments": self.segments, **clips, **spent}, self.segments)
            yield count

    def rates(self) -> str:
        """Throughput so far, and what a segment cost in each stage: the stage to look at is the dearest."""
        clips_s = self.considered / max(time.monotonic() - self.began, 1e-9)
        costs = (f"{name} {spent / self.segments:.2g} s" for name, spent in self.seconds.items())
        return f"{clips_s:.3g} clips/s; a segment: {', '.join(costs)}"


def _tracked_beside(root: str) -> Path:
    """Where the run of a set is remembered: the set, or for one on an object store a folder of its name here."""
    return Path("runs", root.rsplit("/", 1)[1]) if storage.is_remote(root) else Path(root)


def _verb(stages: Sequence[str]) -> str:
    if list(stages) == [REJUDGE]:
        return REJUDGE
    order = list(STAGES)
    first = order.index(stages[0]) if stages and stages[0] in order else -1
    if first < 0 or list(stages) != order[first : first + len(stages)]:
        raise ValueError(f"stages {list(stages)}: give neighbours out of {order}, in this order")
    return stages[0] if len(stages) == 1 else "prepare"


def _listed(first: str, inputs: list[str], root: str) -> tuple[str | None, Iterable[Segment]]:
    """(the committed set that is read, or None, what is to be done)."""
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
        raise ValueError(f"input {inputs[0]!r} is no set that `kinotone {made_by}` made: it has no committed segment")
    return source, (Segment(entry.segment_id, entry.uri, size=entry.size) for entry in Ledger(source).entries())


def _warn_of_untrained(settings: Settings) -> None:
    assert isinstance(settings, EncodeSettings)
    if settings.untrained:
        names = ", ".join(f"encode.{part}" for part in settings.untrained)
        log.warning(
            "%s not set: their latents come from untrained weights of preset %s, which show that the pipeline runs and "
            "train nothing; give model folders",
            names,
            settings.preset,
        )


def _record(chosen: Mapping[str, Settings], source: str | None) -> dict[str, Any]:
    """What an output is made with: the settings, the weights behind the paths, and the set that is read."""
    # A set that was judged anew is a curated set.
    names = {REJUDGE: "curate"}
    record: dict[str, Any] = {names.get(name, name): stage.model_dump(mode="json") for name, stage in chosen.items()}
    for stage in chosen.values():
        if isinstance(stage, EncodeSettings):
            record["weights"] = fingerprints(stage)
    if source is not None:
        record["input_set"] = source
    return record


def _rejudged(source: str, given: Settings) -> CurateSettings:
    """The settings of a curated set with the thresholds that are given."""
    from data_prep.curation.rejudge import rejudged_settings

    assert isinstance(given, CurateSettings)
    known = yaml.safe_load(storage.read(storage.at(source, layout.SETTINGS)))["settings"]
    if "curate" not in known:
        raise ValueError(f"--rejudge {source}: not made by `kinotone curate`; give the set that was")
    return rejudged_settings(CurateSettings(**known["curate"]), given)


def _build(name: str, settings: Settings) -> StageFunction:
    """A stage's callable, made inside a worker; the imports are here, so that a worker has its own stage's alone."""
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


def _stages(name: str, settings: Settings) -> list[Stage]:
    """A verb's stages of the graph."""
    if _through_vllm(settings):
        from pipelines.dataflow.vllm_stage import caption_stages

        assert isinstance(settings, CaptionSettings)
        return caption_stages(settings)
    return [Stage(name, partial(_build, name, settings), gpu=name not in ("curate", REJUDGE))]


def _through_vllm(settings: Settings) -> bool:
    return isinstance(settings, CaptionSettings) and settings.seen.engine == "vllm"


def _check(chosen: Mapping[str, Settings]) -> None:
    """Refuse weights and endpoints that are missing, before any stage starts."""
    for settings in chosen.values():
        if isinstance(settings, CaptionSettings):
            from captioning.captioner import check_settings

            check_settings(settings)


def _funnel(summary: Mapping[str, Any]) -> dict[str, float]:
    """The clip funnel as metrics; clips considered = kept + Σ dropped + Σ failed."""
    counts = {f"funnel/{key}": summary[key] for key in ("considered", "kept", "hours_considered", "hours_kept")}
    for verdict in ("dropped", "failed"):
        counts |= {f"funnel/{verdict}/{reason}": count for reason, count in summary[verdict].items()}
    return counts
