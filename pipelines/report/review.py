"""People's judgement of captions: a table of sentences to fill in, and what the filled table says.

`report/review.tsv` lies beside the caption page and has a line for each sentence of each clip that the page shows. Who
has watched the clip writes yes or no into the column `true`; `kinotone calibrate --labels review.tsv` reads it back.
"""

import csv
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from data_prep.dataset import layout, storage
from data_prep.dataset.index import each_manifest
from pipelines.report import captions

NAME = "review.tsv"
COLUMNS = ("clip", "film", "from", "to", "source", "score", "sentence", "true")
_WANTED = 0.95  # of the sentences about sounds: the share that should be true


def table(shown: list[dict]) -> bytes:
    """The sentences of captioned rows of the manifest, the column `true` empty. Times are seconds within the clip."""
    out = io.StringIO()
    lines = csv.writer(out, delimiter="\t", lineterminator="\n")
    lines.writerow(COLUMNS)
    for row in shown:
        for item in captions.medium_sentences(row["caption"]):
            spans = captions.evidence_spans(item, row["caption"])
            start, end = min(start for start, _ in spans), max(end for _, end in spans)
            film = row["uri"].rsplit("/", 1)[-1]
            score = captions.sureness(item, row["caption"])
            measured = "" if score is None else f"{score:.3f}"
            lines.writerow(
                [row["clip_id"], film, f"{start:.2f}", f"{end:.2f}", item["source"], measured, item["sentence"], ""]
            )
    return out.getvalue().encode()


def is_review(path: str | Path) -> bool:
    """Whether a file of labels is such a table."""
    path = Path(path)
    if path.suffix != ".tsv" or not path.is_file():
        return False
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(next(csv.reader(file, delimiter="\t"), ())) == COLUMNS


def run_review(labels: str | Path, source: str, output: str | Path) -> dict[str, Any]:
    """Write `<output>/summary.json` and give it: how many sentences people found true, by their source, those found
    untrue, and the least tag score that leaves 95 % of the sentences about sounds true.

    Args:
        labels: a `review.tsv` with yes or no in the column `true`; lines left empty are not counted.
        source: the captioned set it was written for.

    Raises:
        ValueError: nothing filled in, something else than yes or no, or no sentence of it stands in the set.
    """
    judged = _judged(Path(labels))
    sentences = {
        (row["clip_id"], item["sentence"])
        for part in each_manifest(source)
        for row in part.select(["clip_id", "caption"]).to_pylist()
        for item in json.loads(row["caption"]).get("evidence", [])
    }
    known = [line for line in judged if (line["clip"], line["sentence"]) in sentences]
    if not known:
        raise ValueError(f"labels {labels}: no sentence of it stands in {source}; give the set that it was written for")
    by_source: dict[str, list[bool]] = defaultdict(list)
    for line in known:
        by_source[line["source"]].append(line["true"] == "yes")
    summary = {
        "verb": "calibrate",
        "sentences": len(known),
        "true": sum(line["true"] == "yes" for line in known),
        "by_source": {name: {"sentences": len(of), "true": sum(of)} for name, of in sorted(by_source.items())},
        "untrue": [f"{line['film']}: {line['sentence']}" for line in known if line["true"] == "no"],
        "labels_without_a_sentence": len(judged) - len(known),
        "proposed": {"caption.min_tag_score": _least_score(known)},
    }
    data = json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n"
    storage.put(storage.at(output, layout.SUMMARY), data)
    return summary


def _judged(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    for number, line in enumerate(lines, 1):
        line["true"] = (line["true"] or "").strip().lower()
        if line["true"] not in ("", "yes", "no"):
            raise ValueError(f"labels {path}, row {number}: true is {line['true']!r}; write yes, no, or nothing")
    judged = [line for line in lines if line["true"]]
    if not judged:
        raise ValueError(f"labels {path}: no line is judged; write yes or no into the column true")
    return judged


def _least_score(known: list[dict[str, str]]) -> float | None:
    """The least score above which the wanted share of the sentences about sounds is true; None: no score does it."""
    scored = [(float(line["score"]), line["true"] == "yes") for line in known if line["source"] == "tags"]
    for least in sorted({score for score, _ in scored}):
        right = [true for score, true in scored if score >= least]
        if sum(right) >= _WANTED * len(right):
            return least
    return None
