"""`curate`, `caption`, `encode` and `prepare`: slices of one dataflow, from sources or a committed set to a new set.

A slice that begins with `curate` lists sources; any other reads the clips of the set that the slice before it made.
What the ledger of the output holds is done; the rest goes through the graph. When nothing is left, neither Ray nor a
model starts.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from captioning.settings import CaptionSettings
from data_prep import storage
from data_prep.clip import Segment
from data_prep.curate import CurateSettings
from data_prep.ledger import Ledger
from data_prep.settings import Settings
from data_prep.sources import list_sources
from pipelines import report
from pipelines.cluster import ray_running
from pipelines.commit import claim, dataset_id, finish, read_summary
from pipelines.encode import EncodeSettings
from pipelines.graph import Callables, Stage, run_graph
from pipelines.tracking import Run, TrackingSettings, start_run

log = logging.getLogger("kinotone.prepare")

Progress = Callable[[str, int, int], None]

STAGES: dict[str, type[Settings]] = {"curate": CurateSettings, "caption": CaptionSettings, "encode": EncodeSettings}
# Settings that may name a file or folder: made absolute, since a worker's working directory is not the user's.
_PATHS = {"tagger", "whisper", "text_encoder", "video_vae", "audio_vae", "text_conditioner"}
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
        stages: one of ("curate",), ("caption",), ("encode",), or neighbours in this order.
        inputs: sources for a slice that begins with `curate`; else the folder of one committed set.
        output: the set that is made.
        settings: of each stage, by its name; defaults where it has none.
        progress: called with the verb, segments committed, and segments in all.

    Raises:
        ValueError: the user's mistake, as one line with its mend: an input, a setting, weights, or an output that
            was made with other settings.
    """
    began = time.monotonic()
    verb = _verb(stages)
    chosen = {name: _absolute((settings or {}).get(name) or STAGES[name]()) for name in stages}
    root = storage.local(output).absolute()
    source, segments = _segments(stages[0], inputs, root, chosen)
    claim(root, _record(chosen, source), [os.path.abspath(i) if "://" not in i else i for i in inputs])
    done = Ledger(root).done()
    left = [segment for segment in segments if segment.segment_id not in done]
    if "encode" in chosen and left:
        _warn_of_untrained(chosen["encode"])
    show = partial(progress or (lambda *_: None), verb)
    show(len(segments) - len(left), len(segments))
    summary = read_summary(root)
    if not left and summary is not None and (root / report.NAME).exists():
        return summary

    params = {name: stage.model_dump(mode="json") for name, stage in chosen.items()}
    seconds: Counter[str] = Counter()
    tags = {"input": ", ".join(inputs)}
    with start_run(tracking or TrackingSettings(), "kinotone", verb, tags, params, root) as run:
        if left:
            _through(left, chosen, root, source, seconds, run, partial(_advance, show, len(segments)))
        summary = finish(root, verb, seconds, time.monotonic() - began)
        made = report.write_report(root)
        run.tags({"dataset": dataset_id(root)})
        run.metrics(_funnel(summary), len(segments))
        run.image("funnel", report.funnel_figure(summary), len(segments))
        for path in (made.path, root / "summary.json", root / "settings.yaml"):
            run.artifact(path)
        for name, data in made.samples:
            run.artifact(_kept_until_closed(root, name, data), "sample")
    _forget_samples(root)
    return summary


def _through(
    left: list[Segment],
    chosen: Mapping[str, Settings],
    root: Path,
    source: Path | None,
    seconds: Counter[str],
    run: Run,
    advance: Callable[[int], None],
) -> None:
    """Take what is left through the graph; count, show and track as it comes."""
    considered = kept = 0
    tracked = time.monotonic()
    graph = [Stage(name, partial(_build, name, stage), gpu=name != "curate") for name, stage in chosen.items()]
    with ray_running():
        for count, one in enumerate(run_graph(left, graph, root, source), 1):
            considered, kept = considered + one.considered, kept + one.kept
            seconds.update(one.seconds)
            advance(len(left) - count)
            if time.monotonic() - tracked > _TRACK_EVERY_S or count == len(left):
                tracked = time.monotonic()
                spent = {f"seconds/{name}": value for name, value in seconds.items()}
                run.metrics({"segments": count, "clips/considered": considered, "clips/kept": kept, **spent}, count)


def _advance(show: Callable[[int, int], None], total: int, left: int) -> None:
    show(total - left, total)


def _verb(stages: Sequence[str]) -> str:
    order = list(STAGES)
    first = order.index(stages[0]) if stages and stages[0] in order else -1
    if first < 0 or list(stages) != order[first : first + len(stages)]:
        raise ValueError(f"stages {list(stages)}: give neighbours out of {order}, in this order")
    return stages[0] if len(stages) == 1 else "prepare"


def _segments(
    first: str, inputs: list[str], root: Path, chosen: Mapping[str, Settings]
) -> tuple[Path | None, list[Segment]]:
    """(the committed set that is read, or None, what is to be done)."""
    if first == "curate":
        curate = chosen["curate"]
        assert isinstance(curate, CurateSettings)
        return None, list_sources(inputs, curate.segment_s)
    if len(inputs) != 1:
        raise ValueError(f"{first} reads one set: give one input, the output folder of the stage before it")
    source = storage.local(inputs[0]).absolute()
    if source == root:
        raise ValueError(f"{first}: input and output are both {root}; give another output")
    entries = Ledger(source).entries()
    if not entries:
        made_by = "curate" if first == "caption" else "caption"
        raise ValueError(f"input {inputs[0]!r} is no set that `kinotone {made_by}` made: it has no committed segment")
    return source, [Segment(entry.segment_id, entry.uri, size=entry.size) for entry in entries]


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


def _record(chosen: Mapping[str, Settings], source: Path | None) -> dict[str, Any]:
    """What an output is made with: the settings, the weights behind the paths, and the set that is read."""
    record: dict[str, Any] = {name: stage.model_dump(mode="json") for name, stage in chosen.items()}
    for stage in chosen.values():
        if isinstance(stage, EncodeSettings):
            record["weights"] = stage.fingerprints()
    if source is not None:
        record["input_set"] = str(source)
    return record


def _absolute(settings: Settings) -> Settings:
    changes: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            changes[name] = _absolute(value)
        elif name in _PATHS and value and os.path.exists(value):
            changes[name] = os.path.abspath(value)
    return settings.model_copy(update=changes)


def _build(name: str, settings: Settings) -> Callables:
    """A stage's callable, made inside a worker; the imports are here, so that a worker has its own stage's alone."""
    if name == "curate":
        from data_prep.curate import Curator

        assert isinstance(settings, CurateSettings)
        return Curator(settings)
    if name == "caption":
        from captioning.caption import Captioner

        assert isinstance(settings, CaptionSettings)
        return Captioner(settings)
    from pipelines.encode import Encoder

    assert isinstance(settings, EncodeSettings)
    return Encoder(settings)


def _funnel(summary: Mapping[str, Any]) -> dict[str, float]:
    """The clip funnel as metrics; clips considered = kept + Σ dropped + Σ failed."""
    counts = {f"funnel/{key}": summary[key] for key in ("considered", "kept", "hours_considered", "hours_kept")}
    for verdict in ("dropped", "failed"):
        counts |= {f"funnel/{verdict}/{reason}": count for reason, count in summary[verdict].items()}
    return counts


def _kept_until_closed(root: Path, name: str, data: bytes) -> Path:
    path = root / ".sample" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _forget_samples(root: Path) -> None:
    with suppress(FileNotFoundError):
        for path in (root / ".sample").iterdir():
            path.unlink()
        (root / ".sample").rmdir()
