"""`report.html`: an overview of a set, on pages that open from disk and need no network.

The first page shows the verdicts of the clips with their hours, the scores with the thresholds that they were compared
with, the sound classes, the languages of transcribed clips, and a few examples of every verdict. Each verdict has a
page with more examples, `report/{verdict}-{reason}.html`. A captioned set also has a page that shows each caption
together with its evidence (`pipelines.report.captions`).
"""

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
from pipelines.report.examples import Example, ExampleDrawer
from pipelines.report.figures import new_figure, to_png
from pipelines.report.statistics import EXAMPLES, SCORES, Kind, SetStatistics, collect_statistics

PAGES = "report"

# Numbers of examples: of kept clips on the first page; of each other verdict on it; on the page of one verdict.
KEPT_EXAMPLES, OTHER_EXAMPLES, PAGE_EXAMPLES = 9, 3, EXAMPLES


@dataclass(frozen=True)
class Report:
    """The report that was written.

    Attributes:
        path: the first page.
        pages: file names of the other pages, in the set's folder `PAGES`.
        samples: (file name, bytes) of one kept clip for the tracking run: video, contact sheet, spectrogram.
        removed: how often something was removed from the captions, by kind (see `captions.removed_kinds`).
    """

    path: str
    pages: list[str] = field(default_factory=list)
    samples: list[tuple[str, bytes]] = field(default_factory=list)
    removed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A section of the report: the examples of one verdict and reason, or of near duplicates.

    Attributes:
        title: the section's heading.
        page: the file name of the page with all examples.
        total: the number of clips with this verdict.
        first: the number of examples that the first page shows.
        pairs: the examples, as (row of the manifest, example).
    """

    title: str
    page: str
    total: int
    first: int
    pairs: list[tuple[dict, Example]]

    @property
    def examples(self) -> list[Example]:
        """The examples of `pairs`, without their rows."""
        return [example for _, example in self.pairs]


@dataclass(frozen=True)
class Step:
    """A row of the funnel, the table of all verdicts: a verdict and reason, page, clips, hours, and share of clips."""

    name: str
    verdict: str
    page: str
    clips: int
    hours: float
    share: float


def write_report(root: str | Path) -> Report:
    """Write the report of a finished set from its manifest and `summary.json`. `<root>/report.html` is written last."""
    duplicates = near_duplicates.read(root)
    pairs = sorted(duplicates.items())[: PAGE_EXAMPLES // 2]
    counted = collect_statistics(each_manifest(root), [clip_id for pair in pairs for clip_id in pair])
    summary = json.loads(storage.read(storage.at(root, layout.SUMMARY)))
    sections = _sections(root, counted, pairs, len(duplicates))
    folder = str(root).rstrip("/").rsplit("/", 1)[-1]
    for section in sections:
        page = pages.render("examples.html", section=section, folder=folder, index=layout.REPORT)
        storage.put(storage.at(root, PAGES, section.page), page)
    names = [section.page for section in sections]
    if counted.captioned:
        shown = [pair for section in sections for pair in section.pairs if captions.captioned(pair[0]["caption"])]
        page = captions.render(shown, counted.removed, counted.captioned, folder, layout.REPORT, review.NAME)
        storage.put(storage.at(root, PAGES, captions.NAME), page)
        storage.put(storage.at(root, PAGES, review.NAME), review.table([row for row, _ in shown]))
        names += [captions.NAME, review.NAME]
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
        captions=captions.NAME if captions.NAME in names else "",
    )
    path = storage.at(root, layout.REPORT)
    storage.put(path, page)
    samples = next((e.files() for s in sections if s.title == "Kept" for e in s.examples if e.video), [])
    return Report(path, names, samples, counted.removed)


def funnel(counted: SetStatistics) -> list[Step]:
    """Return the rows of the funnel: kept, dropped, failed; within a verdict the most frequent reason first.

    Their clips sum to the clips considered.
    """
    order = {"kept": 0, "dropped": 1, "failed": 2}
    ranked = sorted(counted.clips, key=lambda key: (order[key[0]], -counted.clips[key], key[1]))
    total = max(1, counted.clips.total())
    return [
        Step(_words(key[1]) or "kept", key[0], _page(*key), clips, counted.hours[key], clips / total)
        for key, clips in ((key, counted.clips[key]) for key in ranked)
    ]


def funnel_figure(summary: Mapping[str, Any]) -> bytes:
    """Draw the clips per verdict and reason of a `summary.json` as a bar chart, and return it as a PNG."""
    dropped, failed = (sorted(summary[verdict].items(), key=_by_count) for verdict in ("dropped", "failed"))
    bars = [("kept", summary["kept"], "#3f7d58")]
    bars += [(_words(reason), count, "#c58b2a") for reason, count in dropped]
    bars += [(f"failed: {stage}", count, "#b4483c") for stage, count in failed]
    figure = new_figure(7, 0.7 + 0.36 * len(bars))
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
    return to_png(figure, dpi=110)


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    """Return a sort key of (name, count): the highest count first; equal counts by name."""
    return -item[1], item[0]


def _ranked(kinds: Mapping[str, Kind]) -> list[tuple[str, Kind]]:
    """Sort classes or languages by their kept clips, then by all clips, the highest number first."""
    return sorted(kinds.items(), key=lambda item: (-item[1].kept, -item[1].clips, item[0]))


def _policy(root: str | Path) -> dict[str, Any]:
    """Return the thresholds with which the clips were judged, by name; {} if they are not found.

    They are in the settings of this set, or in those of the set that it was made from.
    """
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
    """Return what the template draws for each measured score: bars of kept and other clips, and lines at thresholds.

    A bar of kept clips is below the bar of the others. Positions are in pixels of a plot that is 240 × 60.
    """
    histograms = []
    for name, axis in SCORES.items():
        if name not in counted.histograms:
            continue
        above, below = counted.histograms[name]
        top = max(1, int((below + above).max()))
        lines = [(key, float(policy[key])) for key in axis.thresholds if key in policy]
        histograms.append(
            {
                "name": name,
                "axis": axis,
                "top": top,
                "bars": [
                    (n, 60 * b / top, 60 * (a + b) / top) for n, (b, a) in enumerate(zip(below, above, strict=True))
                ],
                # Put the labels of several thresholds below each other, and one beyond the axis at its end.
                "lines": [
                    (key, f"{at:g}", 240 * min(max((at - axis.low) / (axis.high - axis.low), 0.0), 1.0), 10 * row)
                    for row, (key, at) in enumerate(lines)
                ],
                "count": int((below + above).sum()),
            }
        )
    return histograms


def _sections(root: str | Path, counted: SetStatistics, duplicates: list[tuple[str, str]], total: int) -> list[Section]:
    """Make the sections of the report: kept clips first, then one for each reason, then near duplicates.

    Args:
        root: the folder of the set.
        counted: its statistics, with candidates for examples.
        duplicates: ids of near duplicates to show: (clip, its original).
        total: the number of near duplicates in the set.

    Returns:
        The sections, with their examples drawn.
    """
    sections = []
    with ExampleDrawer(root) as drawer:
        for verdict, first in (("kept", KEPT_EXAMPLES), ("dropped", OTHER_EXAMPLES), ("failed", OTHER_EXAMPLES)):
            for _, reason in sorted(key for key in counted.clips if key[0] == verdict):
                title = "Kept" if verdict == "kept" else f"{verdict.capitalize()}: {_words(reason)}"
                rows = round_robin(counted.rows(verdict, reason), PAGE_EXAMPLES)
                pairs = [(row, drawer.example(row)) for row in rows]
                clips = counted.clips[verdict, reason]
                sections.append(Section(title, _page(verdict, reason), clips, first, pairs))
        if duplicates:
            title = "Near duplicates, each followed by its original"
            rows = [counted.chosen[clip_id] for pair in duplicates for clip_id in pair]
            pairs = [(row, drawer.example(row)) for row in rows]
            sections.append(Section(title, "near_duplicates.html", 2 * total, 2, pairs))
    return sections


def _page(verdict: str, reason: str) -> str:
    """Return the file name of the page with the examples of a verdict and reason."""
    return f"{verdict}-{reason}.html" if reason else f"{verdict}.html"


def _words(reason: str) -> str:
    return reason.replace("_", " ")
