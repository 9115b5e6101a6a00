"""The review table has a line per sentence, and a filled table is summarised."""

import csv
import json
from pathlib import Path

import pytest

from data_prep.clip import Clip, Segment
from data_prep.dataset.index import read_manifest
from data_prep.dataset.shards import commit_segment
from jobs.cli import main
from pipelines.dataflow.commit import claim, finish
from pipelines.report import review
from tests.pipelines.report.test_captions import CAPTION


@pytest.fixture
def captioned(tmp_path) -> Path:
    """A committed set of two captioned clips without real media."""
    root = tmp_path / "set"
    claim(root, {}, ["films"])
    for n, score in enumerate((0.9, 0.6)):
        caption = json.loads(json.dumps(CAPTION))
        caption["evidence"][2]["facts"]["tags"][0]["score"] = score
        clip = Clip(f"{n:020x}", 0.0, 4.0, media=b"packets", sound_class="speech", caption=caption)
        commit_segment(root, Segment(f"s{n}", f"/films/{n}.mp4", content_key="k", clips=[clip]))
    finish(root, "caption", {}, 0.0)
    return root


def filled(root: Path, path: Path, answers: dict[tuple[str, str], str]) -> Path:
    """The set's table with answers by (film, source)."""
    rows = [row | {"caption": json.loads(row["caption"])} for row in read_manifest(root).to_pylist()]
    lines = list(csv.reader(review.table(rows).decode().splitlines(), delimiter="\t"))
    at = {name: place for place, name in enumerate(lines[0])}
    for line in lines[1:]:
        line[at["true"]] = answers.get((line[at["film"]], line[at["source"]]), "")
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(lines)
    return path


def test_the_table_has_a_line_for_each_sentence_and_where_to_look(captioned) -> None:
    rows = [row | {"caption": json.loads(row["caption"])} for row in read_manifest(captioned).to_pylist()]
    lines = list(csv.DictReader(review.table(rows).decode().splitlines(), delimiter="\t"))
    assert [(line["film"], line["source"], line["from"], line["to"], line["score"]) for line in lines[:3]] == [
        ("0.mp4", "picture", "0.00", "4.00", ""),
        ("0.mp4", "transcript", "1.00", "2.00", "0.900"),
        ("0.mp4", "tags", "2.00", "3.00", "0.900"),
    ]
    assert lines[1]["sentence"] == "“<b>shut</b> it”."
    assert {line["true"] for line in lines} == {""}


def test_what_people_found_is_read_back(captioned, tmp_path) -> None:
    answers = {("0.mp4", "tags"): "yes", ("1.mp4", "tags"): "No", ("0.mp4", "picture"): "yes"}
    labels = filled(captioned, tmp_path / "review.tsv", answers)
    assert main(["calibrate", "--labels", str(labels), "--input", str(captioned), "--output", str(tmp_path / "o")]) == 0
    read = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert (read["sentences"], read["true"]) == (3, 2)
    assert read["by_source"] == {"picture": {"sentences": 1, "true": 1}, "tags": {"sentences": 2, "true": 1}}
    assert read["untrue"] == ["1.mp4: A dog is heard."]
    assert read["proposed"] == {"caption.min_tag_score": 0.9}


def test_a_table_that_cannot_be_read_is_refused_with_the_fix(captioned, tmp_path, capsys) -> None:
    for answers, wanted in (({}, "write yes or no"), ({("0.mp4", "tags"): "maybe"}, "'maybe'")):
        labels = filled(captioned, tmp_path / "review.tsv", answers)
        out = ["--input", str(captioned), "--output", str(tmp_path / "o")]
        assert main(["calibrate", "--labels", str(labels), *out]) == 2
        assert wanted in capsys.readouterr().err
    other = tmp_path / "other.tsv"
    other.write_text("\t".join(review.COLUMNS) + "\nx\tx.mp4\t0\t1\ttags\t0.9\tA cat is heard.\tyes\n")
    assert main(["calibrate", "--labels", str(other), *out]) == 2
    assert "no sentence of it is in" in capsys.readouterr().err
