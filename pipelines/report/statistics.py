"""Statistics of a set for its report, counted while the manifest is streamed, in memory that does not grow with it.

The histogram of a score has the same axis in every set, so that two reports can be compared. Values outside the axis
are counted in its outermost bins.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report import captions

BINS = 24
# Rows to keep per verdict, reason and class, as candidates for examples.
EXAMPLES = 12
_ORDER = ("segment_id", "start_s", "end_s", "clip_id")


@dataclass(frozen=True)
class Axis:
    """The axis of a score's histogram: its meaning, unit and range, and the names of the thresholds to mark on it."""

    meaning: str
    unit: str = ""
    thresholds: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0


SCORES = {
    "silence_ratio": Axis("silent share of the clip", thresholds=("silence_max",)),
    "active_s": Axis("time with sound", "s", ("active_min_s",), high=12.0),
    "loudness_lufs": Axis("integrated loudness of kept clips", "LUFS", low=-72.0, high=0.0),
    "stationarity": Axis("share of energy that is constant", thresholds=("stationary_min",)),
    "tone_ratio": Axis("share of energy in steady tones", thresholds=("tone_min",)),
    "salient_ratio": Axis("share of time with sound above the background", thresholds=("salient_min",)),
    "prominent_s": Axis("time with sound 10 dB above the background", "s", ("prominent_min_s",), high=12.0),
    "uneven_db": Axis("distance of the spectrum from a power law", "dB", ("uneven_min_db",), high=12.0),
    "wander": Axis("unsteadiness, 1 = Gaussian noise", thresholds=("wander_min",), high=6.0),
    "bandwidth_hz": Axis("bandwidth", "Hz", ("bandwidth_min_hz",), high=16_000.0),
    "clipped_ratio": Axis("share of samples at full scale", thresholds=("clipped_max",), high=0.24),
    "tag_speech_max": Axis("speech at its best moment", thresholds=("speech_trace_min",)),
    "voice_ratio": Axis("share of time with a voice", thresholds=("voice_min",)),
    "tag_event": Axis("strongest sound event", thresholds=("event_min",)),
    "tag_music": Axis("music", thresholds=("music_min",)),
    "tag_noise": Axis("noise", thresholds=("noise_tag_min",)),
}


@dataclass
class Kind:
    """Counts of one sound class or language; `hours` are those of its kept clips."""

    clips: int = 0
    kept: int = 0
    hours: float = 0.0


@dataclass
class SetStatistics:
    """The counts of a set, and rows of its manifest as candidates for examples.

    Attributes:
        clips: clips by (verdict, reason).
        hours: hours by (verdict, reason), of clips whose end is known.
        classes: counts by sound class; "" for clips that were not classified.
        languages: counts by language, of clips in which a language was recognised.
        histograms: clips per bin by score, (2, `BINS`): row 0 not kept, row 1 kept.
        removed: how often something was removed from the captions, by kind (see `captions.removed_kinds`).
        captioned: clips whose caption has evidence.
        wanted: ids of clips whose rows are kept in `chosen`.
        chosen: rows of the manifest by clip id, with `scores`, `info` and `caption` as dicts.
    """

    clips: Counter[tuple[str, str]] = field(default_factory=Counter)
    hours: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    classes: defaultdict[str, Kind] = field(default_factory=lambda: defaultdict(Kind))
    languages: defaultdict[str, Kind] = field(default_factory=lambda: defaultdict(Kind))
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    removed: Counter[str] = field(default_factory=Counter)
    captioned: int = 0
    wanted: Sequence[str] = ()
    chosen: dict[str, dict] = field(default_factory=dict)
    _candidates: dict[tuple[str, str, str], list[dict]] = field(default_factory=dict)

    def add(self, manifest: pa.Table) -> None:
        """Count the rows of a table of `data_prep.dataset.shards.MANIFEST_SCHEMA`, in addition to those before."""
        length = np.asarray(manifest["end_s"]) - np.asarray(manifest["start_s"])
        table = manifest.append_column("hours", pa.array(np.where(np.isfinite(length), length / 3600, 0.0)))
        self._count(table)
        self._bin(table)
        self._read_captions(table)
        self._keep_candidates(table)
        if self.wanted:
            wanted_rows = manifest.filter(pc.field("clip_id").isin(self.wanted)).to_pylist()
            self.chosen |= {row["clip_id"]: _parsed(row) for row in wanted_rows}

    def rows(self, verdict: str, reason: str) -> list[dict]:
        """Return the first `EXAMPLES` clips of each sound class with this verdict and reason, in the order of `_ORDER`.

        Returns:
            Rows of the manifest with `scores`, `info` and `caption` as dicts.
        """
        by_class = [self._candidates[key] for key in sorted(self._candidates) if key[:2] == (verdict, reason)]
        return [_parsed(row) for rows in by_class for row in rows]

    def _count(self, table: pa.Table) -> None:
        """Add the rows to `clips`, `hours` and `classes`."""
        keys = ["verdict", "reason", "sound_class"]
        for group in table.group_by(keys).aggregate([([], "count_all"), ("hours", "sum")]).to_pylist():
            verdict, count, hours = group["verdict"], group["count_all"], group["hours_sum"]
            self.clips[verdict, group["reason"]] += count
            self.hours[verdict, group["reason"]] += hours
            _add(self.classes[group["sound_class"]], verdict, count, hours)

    def _bin(self, table: pa.Table) -> None:
        """Add the scores of the rows to `histograms`."""
        scores = table["scores"].combine_chunks()
        offsets = np.asarray(scores.offsets)
        kept = np.repeat(np.asarray(table["verdict"]) == "kept", np.diff(offsets))
        inside = slice(offsets[0], offsets[-1])
        names, values = np.asarray(scores.keys[inside]), np.asarray(scores.items[inside])
        for name, axis in SCORES.items():
            selected = (names == name) & np.isfinite(values)
            if selected.any():
                bins = (BINS * (values[selected] - axis.low) / (axis.high - axis.low)).astype(int).clip(0, BINS - 1)
                counts = np.bincount(bins + BINS * kept[selected], minlength=2 * BINS).reshape(2, BINS)
                self.histograms[name] = self.histograms.get(name, 0) + counts

    def _read_captions(self, table: pa.Table) -> None:
        """Add the captions of the rows to `languages`, `captioned` and `removed`."""
        written = table.select(["caption", "verdict", "hours"]).filter(pc.field("caption") != "{}")
        for row in written.to_pylist():
            caption = json.loads(row["caption"])
            language = caption.get("transcript", {}).get("language", "")
            if language:
                _add(self.languages[language], row["verdict"], 1, row["hours"])
            if captions.captioned(caption):
                self.captioned += 1
                self.removed.update(captions.removed_kinds(caption))

    def _keep_candidates(self, table: pa.Table) -> None:
        """Keep the first `EXAMPLES` rows per verdict, reason and class, in the order of `_ORDER`."""
        keys = ["verdict", "reason", "sound_class"]
        ordered = table.drop_columns(["hours"]).sort_by([(name, "ascending") for name in _ORDER])
        for group in ordered.select(keys).group_by(keys).aggregate([]).to_pylist():
            key = verdict, reason, sound_class = tuple(group[name] for name in keys)
            same_verdict = (pc.field("verdict") == verdict) & (pc.field("reason") == reason)
            same_key = same_verdict & (pc.field("sound_class") == sound_class)
            first = ordered.filter(same_key).slice(0, EXAMPLES).to_pylist()
            rows = sorted(self._candidates.get(key, []) + first, key=lambda row: tuple(row[name] for name in _ORDER))
            self._candidates[key] = rows[:EXAMPLES]


def collect_statistics(manifest: Iterable[pa.Table], wanted: Sequence[str] = ()) -> SetStatistics:
    """Compute the statistics of a set from its manifest.

    Args:
        manifest: the tables that it consists of.
        wanted: ids of clips whose rows are kept in `SetStatistics.chosen`.
    """
    counted = SetStatistics(wanted=wanted)
    for part in manifest:
        counted.add(part)
    return counted


def _add(kind: Kind, verdict: str, clips: int, hours: Any) -> None:
    """Add clips of one verdict to the counts of a class or language."""
    kind.clips += clips
    if verdict == "kept":
        kind.kept += clips
        kind.hours += hours


def _parsed(row: dict) -> dict:
    """Return a row of the manifest with the JSON of `info` and `caption` parsed, and `scores` as a dict."""
    return {**row, **{name: json.loads(row[name]) for name in ("info", "caption")}, "scores": dict(row["scores"])}
