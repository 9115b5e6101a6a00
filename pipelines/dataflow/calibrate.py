"""The verb `calibrate`: compare a curated set with its labels and propose thresholds.

It writes four files:

    <output>/calibration.html  the page; opens from disk, offline
    <output>/calibration.png   precision and recall for every value of each threshold
    <output>/policy.yaml       the proposed thresholds, to paste into a recipe
    <output>/summary.json      precision, recall, classes
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_prep.curation import calibration
from data_prep.curation.calibration import CLASSES, Calibration, Source
from data_prep.dataset import layout, storage
from data_prep.dataset.index import read_manifest
from data_prep.settings import PolicySettings
from pipelines.report import pages
from pipelines.report.figures import new_figure, to_png

KEEP, DROP, RECALL = "#3f7d58", "#b4483c", "#2f5f9e"


def run_calibrate(labels: str | Path, source: str | Path, output: str | Path) -> dict[str, Any]:
    """Compare a curated set with its labels, and write the files that the module's docstring lists.

    Args:
        labels: a .tsv or .parquet file, see `data_prep.curation.calibration.read_labels`.
        source: the set that `kinotone curate` made of the labelled files.
        output: the folder to write to.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: the labels cannot be read, or the set has no source that is labelled.
    """
    truth = calibration.read_labels(labels)
    policy = read_policy(source)
    columns = ["uri", "scores", "start_s", "end_s", "verdict", "reason"]
    sources = calibration.labelled(read_manifest(source).select(columns).to_pylist(), truth)
    found = calibration.calibrate(sources, policy, truth)
    snippet = calibration.proposal(found)
    picture = curves_figure(found, sources)
    summary = {
        "verb": "calibrate",
        "sources": len(sources),
        "labels_without_a_source": found.missing,
        "verdicts_right": found.outcome.verdicts_right,
        "classes_right": found.outcome.class_right,
        "precision": round(found.outcome.precision, 4),
        "recall": round(found.outcome.recall, 4),
        "wrong": [one["file"] for one in found.wrong],
        "proposed": {
            "precision": round(found.proposed_outcome.precision, 4),
            "recall": round(found.proposed_outcome.recall, 4),
            "verdicts_right": found.proposed_outcome.verdicts_right,
            "classes_right": found.proposed_outcome.class_right,
            "changed": {
                curve.name: getattr(found.proposed, curve.name)
                for curve in found.curves
                if getattr(found.proposed, curve.name) != curve.now
            },
        },
    }
    page = pages.render(
        "calibration.html",
        summary=summary,
        outcome=found.outcome,
        table=confusion_table(found),
        curves=found.curves,
        proposed=found.proposed.model_dump(),
        after=found.proposed_outcome,
        wrong=found.wrong,
        snippet=snippet,
        figure=base64.b64encode(picture).decode(),
        names={"labels": Path(labels).name, "set": Path(source).name},
    )
    for name, data in (
        ("calibration.png", picture),
        ("policy.yaml", snippet.encode()),
        ("calibration.html", page),
        (layout.SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n"),
    ):
        storage.put(storage.at(output, name), data)
    return summary


def read_policy(source: str | Path) -> PolicySettings:
    """Read the thresholds with which a curated set was judged, from its `settings.yaml`.

    Raises:
        ValueError: `source` is not a curated set.
    """
    try:
        settings = yaml.safe_load(storage.read(storage.at(source, layout.SETTINGS)))["settings"]
    except FileNotFoundError:
        raise ValueError(f"{source} holds no settings.yaml; give the output folder of `kinotone curate`") from None
    if "curate" not in settings:
        raise ValueError(f"{source} was not made by `kinotone curate`; give a curated set")
    return PolicySettings(**settings["curate"]["policy"])


def confusion_table(found: Calibration) -> dict[str, Any]:
    """Make the confusion matrix of the sound classes, for the page.

    Returns:
        {"names": the class names, "rows": [(labelled class, number of sources per found class)]}. The counts are in the
        order of `names`. A class that no source is labelled with has no row.
    """
    names = sorted({name for pair in found.confusion for name in pair}, key=_order)
    rows = [(true, [found.confusion.get((true, name), 0) for name in names]) for true in names]
    return {"names": names, "rows": [(true, counts) for true, counts in rows if any(counts)]}


def curves_figure(found: Calibration, sources: list[Source]) -> bytes:
    """Draw a panel per threshold: how precision and recall depend on its value.

    Ticks below the curves are the scores of the clips: green for sources labelled keep, red for drop.

    Args:
        found: the result of `calibration.calibrate`.
        sources: the labelled sources with the scores of their clips.

    Returns:
        A PNG.
    """
    columns = 3
    rows = -(-len(found.curves) // columns)
    figure = new_figure(4.4 * columns, 3.1 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, curve in zip(panels, found.curves, strict=False):
        panel.axvspan(curve.low, curve.high, color="#e8e4da", label="as good")
        panel.plot(curve.values, curve.precision, color=KEEP, drawstyle="steps-post", label="precision")
        panel.plot(curve.values, curve.recall, color=RECALL, drawstyle="steps-post", label="recall")
        if curve.name in ("speech_min", "music_min"):
            panel.plot(curve.values, curve.class_right, color="#8a6d1d", drawstyle="steps-post", label="class right")
        panel.axvline(curve.now, color="black", lw=1, ls="--", label="current")
        for keep, level, colour in ((True, -0.06, KEEP), (False, -0.14, DROP)):
            measured = [
                scores[curve.score]
                for source in sources
                if source.label.keep == keep
                for scores, _ in source.clips
                if curve.score in scores
            ]
            panel.plot(measured, np.full(len(measured), level), "|", color=colour, ms=7, alpha=0.7)
        panel.set_ylim(-0.2, 1.05)
        panel.set_title(f"{curve.name}  ({curve.score})", fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(found.curves) :]:
        panel.set_visible(False)
    panels[0].legend(fontsize=7, loc="lower left")
    return to_png(figure, dpi=100)


def _order(name: str) -> tuple[int, str]:
    """Return a sort key of class names: in the order of `CLASSES`, then other names by alphabet."""
    return (CLASSES.index(name) if name in CLASSES else len(CLASSES)), name
