"""`report.html`: what came of a set's clips, on pages that open from disk and need no network.

The first page shows where clips ended and how many hours that is, the scores with the thresholds that judged them, the
classes, the languages where clips are transcribed, and a few examples of every verdict. Behind each verdict stands a
page of its own, `report/{verdict}-{reason}.html`, with more of its clips to play. Where clips are captioned, one more
shows each caption beside its evidence (`captions`).
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_prep.curation import near_duplicates
from data_prep.dataset import layout, storage
from data_prep.dataset.index import each_manifest, round_robin
from pipelines.report import captions, pages, review
from pipelines.report.examples import Drawing, Example
from pipelines.report.statistics import EXAMPLES, SCORES, Kind, SetStatistics, collect_statistics

PAGES = "report"

# Examples on the first page: of kept clips, and of each reason for which clips were not kept; and on a verdict's own.
KEPT_EXAMPLES, OTHER_EXAMPLES, PAGE_EXAMPLES = 9, 3, EXAMPLES


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the first page.
        pages: names of the others inside the set.
        removed: what was kept out of the captions, times by kind (see `captions.removed_kinds`).
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
    doubles = near_duplicates.read(root)
    pairs = sorted(doubles.items())[: PAGE_EXAMPLES // 2]
    counted = collect_statistics(each_manifest(root), [clip_id for pair in pairs for clip_id in pair])
    summary = json.loads(storage.read(storage.at(root, layout.SUMMARY)))
    sections = _sections(root, counted, pairs, len(doubles))
    folder = str(root).rstrip("/").rsplit("/", 1)[-1]
    for section in sections:
        page = pages.render("examples.html", section=section, folder=folder, index=layout.REPORT)
        storage.put(storage.at(root, PAGES, section.page), page)
    named = [section.page for section in sections]
    if counted.captioned:
        shown = [pair for section in sections for pair in section.pairs if captions.captioned(pair[0]["caption"])]
        page = captions.render(shown, counted.removed, counted.captioned, folder, layout.REPORT, review.NAME)
        storage.put(storage.at(root, PAGES, captions.NAME), page)
        storage.put(storage.at(root, PAGES, review.NAME), review.table([row for row, _ in shown]))
        named += [captions.NAME, review.NAME]
    page = pages.render(
        "report.html",
        summary=summary,
        funnel=funnel(counted),
        classes=_ranked(counted.classes),
        languages=_ranked(counted.languages),
        histograms=_histograms(counted, _policy(root)),
        sections=sections,
        settings=storage.read(storage.at(root, layout.SETTINGS)).decode(),
        folder=folder,
        pages=PAGES,
        captions=captions.NAME if captions.NAME in named else "",
    )
    path = storage.at(root, layout.REPORT)
    storage.put(path, page)
    samples = next((e.files() for s in sections if s.title == "Kept" for e in s.examples if e.video), [])
    return Report(path, named, samples, counted.removed)


def funnel(counted: SetStatistics) -> list[Step]:
    """Where clips ended, most frequent reason first within a verdict; the counts sum to the clips considered."""
    order = {"kept": 0, "dropped": 1, "failed": 2}
    ranked = sorted(counted.clips, key=lambda key: (order[key[0]], -counted.clips[key], key[1]))
    total = max(1, counted.clips.total())
    return [
        Step(_words(key[1]) or "kept", key[0], _page(*key), clips, counted.hours[key], clips / total)
        for key, clips in ((key, counted.clips[key]) for key in ranked)
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


def _ranked(kinds: Mapping[str, Kind]) -> list[tuple[str, Kind]]:
    """The most frequent first."""
    return sorted(kinds.items(), key=lambda item: (-item[1].kept, -item[1].clips, item[0]))


def _policy(root: str | Path) -> dict[str, Any]:
    """The thresholds that judged this set: its own, or those of the set that it was made from."""
    for _ in range(3):
        path = storage.at(root, layout.SETTINGS)
        if not storage.exists(path):
            break
        settings = yaml.safe_load(storage.read(path))["settings"]
        if "curate" in settings:
            return settings["curate"]["policy"]
        root = settings.get("input_set", "")
    return {}


def _histograms(counted: SetStatistics, policy: Mapping[str, Any]) -> list[dict]:
    """A stacked histogram per score that was measured: kept below, not kept above, thresholds as lines."""
    drawn = []
    for name, axis in SCORES.items():
        if name not in counted.histograms:
            continue
        above, below = counted.histograms[name]
        top = max(1, int((below + above).max()))
        lines = [(key, float(policy[key])) for key in axis.thresholds if key in policy]
        drawn.append(
            {
                "name": name,
                "axis": axis,
                "top": top,
                "bars": [
                    (n, 60 * b / top, 60 * (a + b) / top) for n, (b, a) in enumerate(zip(below, above, strict=True))
                ],
                # Labels of several thresholds stand below each other; one beyond the axis stands at its end.
                "lines": [
                    (key, f"{at:g}", 240 * min(max((at - axis.low) / (axis.high - axis.low), 0.0), 1.0), 10 * row)
                    for row, (key, at) in enumerate(lines)
                ],
                "count": int((below + above).sum()),
            }
        )
    return drawn


def _sections(root: str | Path, counted: SetStatistics, doubles: list[tuple[str, str]], total: int) -> list[Section]:
    """Kept clips first, then each reason, then near duplicates beside what they are doubles of."""
    sections = []
    with Drawing(root) as drawing:
        for verdict, first in (("kept", KEPT_EXAMPLES), ("dropped", OTHER_EXAMPLES), ("failed", OTHER_EXAMPLES)):
            for _, reason in sorted(key for key in counted.clips if key[0] == verdict):
                title = "Kept" if verdict == "kept" else f"{verdict.capitalize()}: {_words(reason)}"
                rows = round_robin(counted.rows(verdict, reason), PAGE_EXAMPLES)
                pairs = [(row, drawing.example(row)) for row in rows]
                clips = counted.clips[verdict, reason]
                sections.append(Section(title, _page(verdict, reason), clips, first, pairs))
        if doubles:
            title = "Near duplicates, each before what it is a double of"
            rows = [counted.chosen[clip_id] for pair in doubles for clip_id in pair]
            pairs = [(row, drawing.example(row)) for row in rows]
            sections.append(Section(title, "near_duplicates.html", 2 * total, 2, pairs))
    return sections


def _page(verdict: str, reason: str) -> str:
    return f"{verdict}-{reason}.html" if reason else f"{verdict}.html"


def _words(reason: str) -> str:
    return reason.replace("_", " ")
