"""`report.html`: what came of a set's clips, on pages that open from disk and need no network.

The first page shows where clips ended and how many hours that is, the scores with the thresholds that judged them, the
classes, the languages where clips are transcribed, and a few examples of every verdict. Behind each verdict stands a
page of its own, `report/{verdict}-{reason}.html`, with more of its clips to play. Where clips are captioned, one more
shows each caption beside its evidence (`captions`).
"""

import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_prep import storage
from data_prep.index import read_manifest
from pipelines import captions, pages
from pipelines.commit import SETTINGS, SUMMARY
from pipelines.examples import Drawing, Example, spread

NAME = "report.html"
PAGES = "report"

# Examples on the first page: of kept clips, and of each reason for which clips were not kept; and on a verdict's own.
KEPT_EXAMPLES, OTHER_EXAMPLES, PAGE_EXAMPLES = 9, 3, 12
BINS = 24

# Score → (what it is, its unit, the policy's thresholds on it).
SCORES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "silence_ratio": ("silent share of the clip", "", ("silence_max",)),
    "active_s": ("time with sound", "s", ("active_min_s",)),
    "loudness_lufs": ("integrated loudness of kept clips", "LUFS", ()),
    "stationarity": ("share of energy that is always there", "", ("stationary_min",)),
    "tone_ratio": ("share of energy in unceasing lines", "", ("tone_min",)),
    "salient_ratio": ("share of time in which something rises from it", "", ("salient_min",)),
    "prominent_s": ("time in which something rises by 10 dB", "s", ("prominent_min_s",)),
    "uneven_db": ("distance of the spectrum from a power law", "dB", ("uneven_min_db",)),
    "wander": ("unsteadiness, 1 = Gaussian noise", "", ("wander_min",)),
    "bandwidth_hz": ("bandwidth", "Hz", ("bandwidth_min_hz",)),
    "clipped_ratio": ("share of samples at full scale", "", ("clipped_max",)),
    "voice_ratio": ("share of time with a voice", "", ("voice_min",)),
    "tag_event": ("strongest sound event", "", ("event_min",)),
    "tag_music": ("music", "", ("music_min",)),
    "tag_noise": ("noise", "", ("noise_tag_min",)),
}


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the first page.
        pages: names of the others inside the set.
        removed: what was kept out of the captions, times by kind (see `captions.removed_counts`).
        samples: one kept clip's files (name, bytes) for the tracking run: its film, contact sheet, spectrogram.
    """

    path: str
    pages: list[str] = field(default_factory=list)
    samples: list[tuple[str, bytes]] = field(default_factory=list)
    removed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A verdict's examples."""

    title: str
    page: str
    total: int
    first: int  # how many of the examples the first page shows
    pairs: list[tuple[dict, Example]]  # a row of the manifest, and what it looks like

    @property
    def examples(self) -> list[Example]:
        return [example for _, example in self.pairs]


@dataclass(frozen=True)
class Step:
    """A row of the funnel."""

    name: str
    verdict: str
    page: str
    clips: int
    hours: float
    share: float


def write_report(root: str | Path) -> Report:
    """Write the pages from the committed segments and `summary.json`; `<root>/report.html` last."""
    rows = read_manifest(root).to_pylist()
    for row in rows:
        row["scores"], row["info"], row["caption"] = (
            dict(row["scores"]),
            json.loads(row["info"]),
            json.loads(row["caption"]),
        )
    summary = json.loads(storage.read(storage.at(root, SUMMARY)))
    sections = _sections(root, rows)
    folder = str(root).rstrip("/").rsplit("/", 1)[-1]
    for section in sections:
        page = pages.render("examples.html", section=section, folder=folder, index=NAME)
        storage.put(storage.at(root, PAGES, section.page), page)
    named = [section.page for section in sections]
    if any(map(captions.captioned, rows)):
        shown = [pair for section in sections for pair in section.pairs if captions.captioned(pair[0])]
        storage.put(storage.at(root, PAGES, captions.NAME), captions.render(rows, shown, folder, NAME))
        named.append(captions.NAME)
    page = pages.render(
        "report.html",
        summary=summary,
        funnel=funnel(rows),
        classes=_counted(rows, lambda row: row["sound_class"] or "not judged"),
        languages=_counted([row for row in rows if _language(row)], _language),
        histograms=_histograms(rows, _policy(root)),
        sections=sections,
        settings=storage.read(storage.at(root, SETTINGS)).decode(),
        folder=folder,
        pages=PAGES,
        captions=captions.NAME if captions.NAME in named else "",
    )
    path = storage.at(root, NAME)
    storage.put(path, page)
    samples = next((e.files() for s in sections if s.title == "Kept" for e in s.examples if e.video), [])
    return Report(path, named, samples, captions.removed_counts(rows))


def funnel(rows: list[dict]) -> list[Step]:
    """Where clips ended, most frequent reason first within a verdict; the counts sum to the clips considered."""
    counts, hours = Counter[tuple[str, str]](), defaultdict[tuple[str, str], float](float)
    for row in rows:
        key = row["verdict"], row["reason"]
        counts[key] += 1
        hours[key] += _hours(row)
    order = {"kept": 0, "dropped": 1, "failed": 2}
    ranked = sorted(counts, key=lambda key: (order[key[0]], -counts[key], key[1]))
    total = max(1, len(rows))
    return [
        Step(_words(key[1]) or "kept", key[0], _page(*key), counts[key], hours[key], counts[key] / total)
        for key in ranked
    ]


def funnel_figure(summary: Mapping[str, Any]) -> bytes:
    """The funnel of a summary as a PNG, for the tracking run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [("kept", summary["kept"], "#3f7d58")]
    bars += [(_words(reason), count, "#c58b2a") for reason, count in sorted(summary["dropped"].items(), key=_second)]
    bars += [(f"failed: {stage}", count, "#b4483c") for stage, count in sorted(summary["failed"].items(), key=_second)]
    figure = Figure(figsize=(7, 0.7 + 0.36 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    drawn = axes.barh([name for name, _, _ in bars], [n for _, n, _ in bars], color=[c for _, _, c in bars])
    axes.bar_label(drawn, padding=3)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("clips")
    axes.set_title(
        f"{summary['considered']} clips considered, {summary['kept']} kept "
        f"({60 * summary['hours_kept']:.1f} of {60 * summary['hours_considered']:.1f} min)",
        loc="left",
        fontsize=11,
    )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _second(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _counted(rows: list[dict], kind: Callable[[dict], str]) -> list[dict]:
    """Clips by kind, with kept clips and kept hours; the most frequent first."""
    found: dict[str, dict] = {}
    for row in rows:
        name = kind(row)
        at = found.setdefault(name, {"name": name, "clips": 0, "kept": 0, "hours": 0.0})
        at["clips"] += 1
        if row["verdict"] == "kept":
            at["kept"] += 1
            at["hours"] += _hours(row)
    return sorted(found.values(), key=lambda at: (-at["kept"], -at["clips"], at["name"]))


def _language(row: dict) -> str:
    """The language that was heard, "" where nothing was transcribed or said."""
    return row["caption"].get("transcript", {}).get("language", "")


def _policy(root: str | Path) -> dict[str, Any]:
    """The thresholds that judged this set: its own, or those of the set that it was made from."""
    for _ in range(3):
        path = storage.at(root, SETTINGS)
        if not storage.exists(path):
            break
        settings = yaml.safe_load(storage.read(path))["settings"]
        if "curate" in settings:
            return settings["curate"]["policy"]
        root = settings.get("input_set", "")
    return {}


def _histograms(rows: list[dict], policy: Mapping[str, Any]) -> list[dict]:
    """A stacked histogram per score that was measured: kept below, not kept above, thresholds as lines."""
    drawn = []
    for name, (meaning, unit, thresholds) in SCORES.items():
        measured = [(row["scores"][name], row["verdict"] == "kept") for row in rows if name in row["scores"]]
        measured = [(value, kept) for value, kept in measured if math.isfinite(value)]
        if not measured:
            continue
        values = np.array([value for value, _ in measured])
        kept = np.array([is_kept for _, is_kept in measured])
        lines = [(key, float(policy[key])) for key in thresholds if key in policy]
        low, high = min([values.min(), *(at for _, at in lines)]), max([values.max(), *(at for _, at in lines)])
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        if high == low:
            low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, BINS + 1)
        below, _ = np.histogram(values[kept], edges)
        above, _ = np.histogram(values[~kept], edges)
        top = max(1, int((below + above).max()))
        drawn.append(
            {
                "name": name,
                "meaning": meaning,
                "unit": unit,
                "low": f"{low:.3g}" if abs(low) < 1000 else f"{low:.0f}",
                "high": f"{high:.3g}" if abs(high) < 1000 else f"{high:.0f}",
                "top": top,
                "bars": [
                    (n, 60 * b / top, 60 * (a + b) / top) for n, (b, a) in enumerate(zip(below, above, strict=True))
                ],
                # Labels of several thresholds stand below each other.
                "lines": [
                    (key, f"{at:g}", 240 * (at - low) / (high - low), 10 * row) for row, (key, at) in enumerate(lines)
                ],
                "count": len(measured),
            }
        )
    return drawn


def _sections(root: str | Path, rows: list[dict]) -> list[Section]:
    """Kept clips first, then each reason."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in rows:
        groups[row["verdict"], row["reason"]].append(row)
    sections = []
    with Drawing(root) as drawing:
        for verdict, first in (("kept", KEPT_EXAMPLES), ("dropped", OTHER_EXAMPLES), ("failed", OTHER_EXAMPLES)):
            for (_, reason), found in sorted((key, v) for key, v in groups.items() if key[0] == verdict):
                title = "Kept" if verdict == "kept" else f"{verdict.capitalize()}: {_words(reason)}"
                pairs = [(row, drawing.example(row)) for row in spread(found, PAGE_EXAMPLES)]
                sections.append(Section(title, _page(verdict, reason), len(found), first, pairs))
    return sections


def _page(verdict: str, reason: str) -> str:
    return f"{verdict}-{reason}.html" if reason else f"{verdict}.html"


def _hours(row: dict) -> float:
    length = row["end_s"] - row["start_s"]
    return length / 3600 if math.isfinite(length) else 0.0


def _words(reason: str) -> str:
    return reason.replace("_", " ")
