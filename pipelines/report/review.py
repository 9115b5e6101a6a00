"""Human review of captions: write a table of sentences to judge, and summarise the filled table.

`report/review.tsv` is in the folder of the caption page and has a line for each sentence of each clip that the page
shows. A person who has watched the clip writes yes or no into the column `true`; `kinotone calibrate --labels
review.tsv` reads it back.
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
_MIN_TRUE_SHARE = 0.95  # of the sentences about sounds, at least this share is true above the proposed tag score


def table(shown: list[dict]) -> bytes:
    """Make the table that a person fills in.

    Args:
        shown: captioned rows of the manifest, with `caption` as a dict.

    Returns:
        A TSV file with the columns `COLUMNS`; times are seconds from the start of the clip, `true` is empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in shown:
        for item in captions.medium_sentences(row["caption"]):
            spans = captions.evidence_spans(item, row["caption"])
            start, end = min(start for start, _ in spans), max(end for _, end in spans)
            film = row["uri"].rsplit("/", 1)[-1]
            score = captions.evidence_score(item, row["caption"])
            score_text = "" if score is None else f"{score:.3f}"
            writer.writerow(
                [row["clip_id"], film, f"{start:.2f}", f"{end:.2f}", item["source"], score_text, item["sentence"], ""]
            )
    return out.getvalue().encode()


def is_review(path: str | Path) -> bool:
    """Return whether a file of labels is a table that `table` made, filled in or not."""
    path = Path(path)
    if path.suffix != ".tsv" or not path.is_file():
        return False
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(next(csv.reader(file, delimiter="\t"), ())) == COLUMNS


def run_review(labels: str | Path, source: str, output: str | Path) -> dict[str, Any]:
    """Summarise a filled table and write the summary to `<output>/summary.json`.

    Args:
        labels: a `review.tsv` with yes or no in the column `true`; empty lines are not counted.
        source: the captioned set that the table was written for.
        output: the folder to write to.

    Returns:
        The summary: how many sentences are true, in all and by source of evidence; the untrue ones; and the lowest tag
        score from which on 95 % of the sentences about sounds are true.

    Raises:
        ValueError: nothing is filled in, a value is not yes or no, or the set has none of the sentences.
    """
    judged = _read_judged(Path(labels))
    sentences = {
        (row["clip_id"], item["sentence"])
        for part in each_manifest(source)
        for row in part.select(["clip_id", "caption"]).to_pylist()
        for item in json.loads(row["caption"]).get("evidence", [])
    }
    known = [line for line in judged if (line["clip"], line["sentence"]) in sentences]
    if not known:
        raise ValueError(f"labels {labels}: no sentence of it is in {source}; give the set that it was written for")
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
        "proposed": {"caption.min_tag_score": _lowest_score(known)},
    }
    data = json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n"
    storage.put(storage.at(output, layout.SUMMARY), data)
    return summary


def _read_judged(path: Path) -> list[dict[str, str]]:
    """Read the lines of a filled table in which `true` is yes or no, as {column: text}.

    Raises:
        ValueError: `true` has another value, or no line is filled in.
    """
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


def _lowest_score(known: list[dict[str, str]]) -> float | None:
    """Return the lowest tag score from which on `_MIN_TRUE_SHARE` of the sentences about sounds are true, or None."""
    scored = [(float(line["score"]), line["true"] == "yes") for line in known if line["source"] == "tags"]
    for lowest in sorted({score for score, _ in scored}):
        right = [true for score, true in scored if score >= lowest]
        if sum(right) >= _MIN_TRUE_SHARE * len(right):
            return lowest
    return None
