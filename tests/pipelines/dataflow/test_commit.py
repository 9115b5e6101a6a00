"""A set keeps the settings it was made with, and its summary is valid only for its current ledger."""

from pathlib import Path

import pytest

from data_prep.clip import Clip, Segment
from data_prep.settings import differences
from pipelines.dataflow.commit import claim, commit_segments, dataset_id, finish, read_summary

SETTINGS = {"curate": {"min_s": 1.0, "classes": ["speech"]}}


def _segment(name: str, kept: bool = True) -> Segment:
    clip = Clip(f"{name}-0", 0.0, 1.5, media=b"film")
    return Segment(name, f"/media/{name}.mp4", content_key=name, clips=[clip if kept else clip.dropped("hiss")])


def test_changed_settings_are_refused_and_named(tmp_path: Path) -> None:
    claim(tmp_path, {"curate": {"min_s": 3.0}}, ["a"])
    claim(tmp_path, SETTINGS, ["a"])  # nothing is committed yet
    commit_segments(tmp_path, [_segment("one")], [{}])
    claim(tmp_path, SETTINGS, ["a"])
    with pytest.raises(ValueError, match=r"curate.min_s: 1.0 → 2.0\).*another output"):
        claim(tmp_path, {"curate": {"min_s": 2.0, "classes": ["speech"]}}, ["a"])


def test_inputs_may_grow(tmp_path: Path) -> None:
    claim(tmp_path, SETTINGS, ["a"])
    commit_segments(tmp_path, [_segment("one")], [{}])
    claim(tmp_path, SETTINGS, ["b", "a"])
    assert (tmp_path / "settings.yaml").read_text().startswith("inputs:\n- a\n- b\n")


def test_an_output_that_is_a_file_or_has_lost_its_settings_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        claim(tmp_path / "file", SETTINGS, ["a"])
    commit_segments(tmp_path / "set", [_segment("one")], [{}])
    with pytest.raises(ValueError, match=r"no settings\.yaml"):
        claim(tmp_path / "set", SETTINGS, ["a"])


def test_differences_name_the_setting() -> None:
    assert list(map(str, differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "d": 3}))) == [
        "c: 2 → unset",
        "d: unset → 3",
    ]


def test_a_summary_counts_the_ledger_and_ages_with_it(tmp_path: Path) -> None:
    claim(tmp_path, SETTINGS, ["a"])
    done = commit_segments(tmp_path, [_segment("one"), _segment("two", kept=False)], [{"curate": 0.5}, {}])
    assert [(d.entry.considered, d.entry.kept) for d in done] == [(1, 1), (1, 0)]
    assert done[0].seconds["curate"] == 0.5
    assert read_summary(tmp_path) is None
    summary = finish(tmp_path, "curate", {"curate": 0.5}, 2.0)
    assert (summary["considered"], summary["kept"], summary["dropped"]) == (2, 1, {"hiss": 1})
    assert read_summary(tmp_path) == summary
    before = dataset_id(tmp_path)
    commit_segments(tmp_path, [_segment("three")], [{}])
    assert read_summary(tmp_path) is None
    assert dataset_id(tmp_path) != before
