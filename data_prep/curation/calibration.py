"""Compare the verdicts of a policy with labels: precision, recall, classes, and a curve for each threshold.

A label gives the right verdict and class of one source file. A source counts as kept when any of its clips is kept; its
class is the one with the most kept seconds. For each curve, one threshold takes many values, the others do not change,
and the stored scores are judged again. A clip that was dropped at a gate has no scores of the later gates, so make the
set to calibrate on with `--curate.measure-all`.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_prep.curation.policy import THRESHOLDS, judge
from data_prep.settings import PolicySettings

POINTS = 41  # evenly spaced thresholds that a curve tries, and as many quantiles of the score
CLASSES = ("speech", "environment", "music", "mixed", "noise", "silence", "no_audio")


@dataclass(frozen=True)
class Label:
    """What a person says of a source file: its name, whether to keep it, and its sound class."""

    file: str
    keep: bool
    sound_class: str


@dataclass(frozen=True)
class Source:
    """A labelled source.

    Attributes:
        label: what is right for it.
        clips: (stored scores by name, length in seconds) of each of its clips.
    """

    label: Label
    clips: list[tuple[dict[str, float], float]]


@dataclass(frozen=True)
class Outcome:
    """Numbers of sources by verdict and by whether the label agrees.

    Attributes:
        kept_right, kept_wrong: kept sources whose label says keep, or drop.
        dropped_right, dropped_wrong: dropped sources whose label says drop, or keep.
        class_right: sources whose class is the labelled one.
    """

    kept_right: int
    kept_wrong: int
    dropped_right: int
    dropped_wrong: int
    class_right: int

    @property
    def precision(self) -> float:
        """Return the share of the kept sources whose label says keep, in [0, 1]; 1 if none is kept."""
        return _share(self.kept_right, self.kept_right + self.kept_wrong)

    @property
    def recall(self) -> float:
        """Return the share of the sources labelled keep that are kept, in [0, 1]; 1 if no label says keep."""
        return _share(self.kept_right, self.kept_right + self.dropped_wrong)

    @property
    def verdicts_right(self) -> int:
        """Return the number of sources that are kept or dropped as labelled."""
        return self.kept_right + self.dropped_right


@dataclass(frozen=True)
class Curve:
    """The outcome as a function of one threshold, with the other thresholds unchanged.

    Attributes:
        name: name of the threshold.
        score: name of the score that is compared with the threshold.
        values: the tried values of the threshold, (V,), ascending.
        precision, recall: precision and recall at each value, (V,).
        class_right: share of all sources whose class is right, at each value, (V,).
        now: the threshold's present value.
        low, high: a range of values that are all best: the range that includes `now` if there is one, else the longest.
        best: `now` if it is in that range, else the middle of the range.
        gain: how many more sources are judged correctly at `best` than at `now`.
        unmeasured: number of sources with a clip that stopped before the score was measured.
    """

    name: str
    score: str
    values: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    class_right: np.ndarray
    now: float
    low: float
    high: float
    best: float
    gain: float
    unmeasured: int


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` finds out about a policy.

    Attributes:
        outcome: outcome of the present policy.
        proposed: the policy with those thresholds changed that improve the outcome.
        proposed_outcome: outcome of the proposed policy.
        confusion: (labelled class, found class) → number of sources.
        curves: one per threshold.
        wrong: a row about each source that is judged wrongly.
        missing: file names with a label but without a clip in the set.
    """

    outcome: Outcome
    proposed: PolicySettings
    proposed_outcome: Outcome
    confusion: dict[tuple[str, str], int]
    curves: list[Curve]
    wrong: list[dict[str, Any]]
    missing: list[str] = field(default_factory=list)


def read_labels(path: str | Path) -> dict[str, Label]:
    """Read labels from a table, and return them by file name.

    Args:
        path: a `.tsv` with the columns file, class and verdict, or the `labels.parquet` of `kinotone synth`.

    Raises:
        ValueError: the file, a column or a value is missing; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"labels {path}: no such file; give a .tsv, or the labels.parquet of `kinotone synth`")
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
        names = ("clip", "sound_class", "verdict")
    else:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        names = ("file", "class", "verdict")
    labels = {}
    for line, row in enumerate(rows, 1):
        lacking = [name for name in names if not row.get(name)]
        if lacking:
            raise ValueError(f"labels {path}, row {line}: no {lacking[0]}; every row needs {', '.join(names)}")
        file, sound_class, verdict = (str(row[name]) for name in names)
        if verdict not in ("keep", "drop"):
            raise ValueError(f"labels {path}, row {line}: verdict {verdict!r}; write keep or drop")
        name = PurePosixPath(file).name
        if name in labels:
            raise ValueError(f"labels {path}, row {line}: {name} is labelled twice")
        labels[name] = Label(name, verdict == "keep", sound_class)
    if not labels:
        raise ValueError(f"labels {path}: no row")
    return labels


def labelled(rows: Iterable[dict[str, Any]], labels: dict[str, Label]) -> list[Source]:
    """Return the sources of a manifest that have a label, with the scores of their clips, ordered by file name.

    Clips that failed or were too short are left out, because no policy changes their verdict.

    Args:
        rows: rows of the manifest, with `uri`, `scores`, `start_s`, `end_s`, `verdict`, `reason`.
        labels: labels by file name.

    Raises:
        ValueError: two sources have the same name, or no source has a label.
    """
    clips: dict[str, list[tuple[dict[str, float], float]]] = defaultdict(list)
    uris: dict[str, str] = {}
    for row in rows:
        name = PurePosixPath(row["uri"]).name
        if name not in labels or row["verdict"] == "failed" or row["reason"] == "too_short":
            continue
        if uris.setdefault(name, row["uri"]) != row["uri"]:
            raise ValueError(f"the set holds two sources named {name} ({uris[name]}, {row['uri']}): label one set each")
        clips[name].append((dict(row["scores"]), row["end_s"] - row["start_s"]))
    if not clips:
        raise ValueError("no source of the set is labelled; labels name files as the set's sources are named")
    return [Source(labels[name], clips[name]) for name in sorted(clips)]


def calibrate(sources: Sequence[Source], policy: PolicySettings, labels: dict[str, Label]) -> Calibration:
    """Compute the outcome of a policy on labelled sources, the curve of each threshold, and a better policy.

    Args:
        sources: the labelled sources, from `labelled`.
        policy: the present thresholds.
        labels: all labels by file name, to report those without a source.
    """
    confusion: Counter[tuple[str, str]] = Counter()
    wrong = []
    for source in sources:
        kept, found, reasons = _judged(source, policy)
        confusion[source.label.sound_class, found] += 1
        if kept != source.label.keep or (kept and found != source.label.sound_class):
            longest = max(source.clips, key=lambda clip: clip[1])[0]
            wrong.append(
                {
                    "file": source.label.file,
                    "truth": f"{'keep' if source.label.keep else 'drop'}, {source.label.sound_class}",
                    "found": f"{'kept' if kept else 'dropped: ' + ', '.join(reasons)}, {found}",
                    "scores": {name: longest[name] for name in THRESHOLDS.values() if name in longest},
                }
            )
    curves = [_curve(name, sources, policy) for name in THRESHOLDS]
    known = {source.label.file for source in sources}
    missing = sorted(set(labels) - known)
    proposed = _improved(sources, policy, curves)
    return Calibration(
        outcome(sources, policy), proposed, outcome(sources, proposed), dict(confusion), curves, wrong, missing
    )


def outcome(sources: Sequence[Source], policy: PolicySettings) -> Outcome:
    """Judge every source by a policy, and count how many verdicts and classes agree with the labels."""
    counts: Counter[str] = Counter()
    for source in sources:
        kept, found, _ = _judged(source, policy)
        counts[f"{'kept' if kept else 'dropped'}_{'right' if kept == source.label.keep else 'wrong'}"] += 1
        counts["class_right"] += found == source.label.sound_class
    return Outcome(**{name: counts[name] for name in Outcome.__dataclass_fields__})


def proposal(found: Calibration) -> str:
    """Return the proposed thresholds as YAML for a recipe, each with its old value or the range that is as good."""
    lines = ["curate:", "  policy:"]
    for curve in found.curves:
        value = getattr(found.proposed, curve.name)
        note = f"was {curve.now:g}" if value != curve.now else f"{curve.low:.4g} … {curve.high:.4g} are as good"
        lines.append(f"    {curve.name}: {json.dumps(value)}  # {note}")
    return "\n".join(lines) + "\n"


def _improved(sources: Sequence[Source], policy: PolicySettings, curves: list[Curve]) -> PolicySettings:
    """Return a better policy: change one threshold at a time, the one with the largest gain, until none has a gain.

    Two changes that help alone may harm together, so all curves are computed again after each change.
    """
    for _ in THRESHOLDS:
        best = max(curves, key=lambda curve: curve.gain)
        if best.gain <= 0:
            break
        policy = policy.model_copy(update={best.name: best.best})
        curves = [_curve(name, sources, policy) for name in THRESHOLDS]
    return policy


def _judged(source: Source, policy: PolicySettings) -> tuple[bool, str, list[str]]:
    """Judge every clip of a source.

    Returns:
        Whether any clip is kept; the class with the most seconds (of kept clips, or of all clips if none is kept); the
        reasons of the dropped clips, sorted.
    """
    found = [(judge(scores, policy), seconds) for scores, seconds in source.clips]
    kept = [one for one in found if one[0].verdict == "kept"]
    seconds = defaultdict[str, float](float)
    for judgement, length in kept or found:
        seconds[judgement.sound_class] += length if np.isfinite(length) else 1.0
    return (
        bool(kept),
        max(sorted(seconds), key=seconds.__getitem__),
        sorted({one[0].reason for one in found if one[0].reason}),
    )


def _curve(name: str, sources: Sequence[Source], policy: PolicySettings) -> Curve:
    """Return the curve of the threshold `name`: judge all sources at each of its values, and find the best values."""
    score, now = THRESHOLDS[name], float(getattr(policy, name))
    measured = [scores[score] for source in sources for scores, _ in source.clips if score in scores]
    values = _values(np.array(measured), now, share=PolicySettings.model_fields[name].metadata)
    outcomes = [outcome(sources, policy.model_copy(update={name: float(value)})) for value in values]
    verdicts = np.array([one.verdicts_right for one in outcomes])
    classes = np.array([one.class_right for one in outcomes])
    right = verdicts * (len(sources) + 1) + classes  # order by right verdicts, then by right classes
    here = int(np.argmin(np.abs(values - now)))
    low, high = _plateau(right, here)
    middle = float(f"{(values[low] + values[high]) / 2:.3g}")
    return Curve(
        name,
        score,
        values,
        np.array([one.precision for one in outcomes]),
        np.array([one.recall for one in outcomes]),
        classes / len(sources),
        now,
        float(values[low]),
        float(values[high]),
        now if low <= here <= high else middle,
        float(right.max() - right[here]) / (len(sources) + 1),
        sum(any(score not in scores for scores, _ in source.clips) for source in sources),
    )


def _values(measured: np.ndarray, now: float, share: list[Any]) -> np.ndarray:
    """Return values of a threshold to try, ascending: spread over the measured values, and the present one.

    Args:
        measured: the score that is compared with the threshold, of every clip that has it, (N,).
        now: the present threshold.
        share: pydantic's limits of the setting; where its maximum is 1, the values cover [0, 1].
    """
    bounded = any(getattr(limit, "le", None) == 1 for limit in share)
    low = min([now, *measured]) if len(measured) else now - 1
    high = max([now, *measured]) if len(measured) else now + 1
    low, high = (0.0, 1.0) if bounded else (low, high)
    spread = np.linspace(low, high, POINTS)
    # Even steps are too coarse where scores are dense, so quantiles of the measured values are tried too.
    crowded = np.quantile(measured, np.linspace(0, 1, POINTS)) if len(measured) else spread
    return np.unique(np.concatenate([spread, np.clip(crowded, low, high), [now]]))


def _plateau(right: np.ndarray, now: int) -> tuple[int, int]:
    """Return the first and last index of a run of neighbouring best values.

    Args:
        right: how good each value is, (V,).
        now: index of the present value. The run that includes it is returned; if none does, the longest.
    """
    best = np.flatnonzero(right == right.max())
    stretches = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    chosen = next((one for one in stretches if now in one), max(stretches, key=len))
    return int(chosen[0]), int(chosen[-1])


def _share(count: int, total: int) -> float:
    return count / total if total else 1.0
