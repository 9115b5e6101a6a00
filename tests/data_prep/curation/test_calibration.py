"""Calibrate on stored scores: counts that can be checked by hand, and known thresholds that are found."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.curation import calibration
from data_prep.curation.calibration import Label, Source, calibrate, labelled, outcome, proposal, read_labels
from data_prep.settings import PolicySettings
from jobs.settings import Recipe
from tests.data_prep.curation.test_policy import SCENE, SPEECH, STEADY

HISS = STEADY | {"tag_event": 0.1, "tag_noise": 0.6}


def _source(name: str, keep: bool, sound_class: str, *scores: dict[str, float]) -> Source:
    return Source(Label(name, keep, sound_class), [(one, 4.0) for one in scores])


SOURCES = [
    _source("a.mp4", True, "speech", SPEECH),
    _source("b.mp4", True, "environment", SCENE, HISS),
    _source("c.mp4", False, "noise", HISS),
    _source("d.mp4", False, "noise", SCENE),
    _source("e.mp4", True, "environment", HISS),
    _source("f.mp4", True, "music", SCENE),
]


def test_outcome_counts_sources():
    found = outcome(SOURCES, PolicySettings())
    assert (found.kept_right, found.kept_wrong, found.dropped_right, found.dropped_wrong) == (3, 1, 1, 1)
    assert found.class_right == 3
    assert (found.precision, found.recall, found.verdicts_right) == (0.75, 0.75, 4)


def test_confusion_and_wrong_sources():
    found = calibrate(SOURCES, PolicySettings(), {source.label.file: source.label for source in SOURCES})
    assert found.confusion["environment", "environment"] == 1
    assert found.confusion["environment", "noise"] == 1
    assert sum(found.confusion.values()) == len(SOURCES)
    assert [one["file"] for one in found.wrong] == ["d.mp4", "e.mp4", "f.mp4"]
    assert found.missing == []


@pytest.mark.parametrize("truth", [0.2, 0.5, 0.8])
def test_a_known_threshold_is_found(truth):
    rng = np.random.default_rng(0)
    sources = []
    for n, share in enumerate(rng.uniform(0, 1, 80)):
        scores = SPEECH | {"clipped_ratio": float(share)}
        keep = share <= truth
        sources.append(_source(f"{n}", keep, "speech" if keep else "noise", scores))
    found = calibrate(sources, PolicySettings(), {})
    (curve,) = [curve for curve in found.curves if curve.name == "clipped_max"]
    assert curve.best == pytest.approx(truth, abs=0.03)
    assert found.proposed.clipped_max == curve.best
    assert found.proposed_outcome.verdicts_right >= 79
    assert curve.low <= truth + 0.03
    assert curve.precision[0] == 1.0
    assert curve.recall[-1] == 1.0


def test_a_threshold_that_is_good_stays_and_the_proposal_is_a_recipe():
    found = calibrate(SOURCES[:3], PolicySettings(), {})
    assert found.proposed == PolicySettings()
    assert found.proposed_outcome == found.outcome
    recipe = Recipe.model_validate(yaml.safe_load(proposal(found)))
    assert recipe.curate.policy == PolicySettings()


def test_every_threshold_has_its_curve():
    assert set(calibration.THRESHOLDS) == set(PolicySettings.model_fields) - {"silence_db"}


def test_scores_that_were_not_measured_are_reported():
    found = calibrate([_source("a", False, "no_audio", {"has_audio": 0.0})], PolicySettings(), {})
    assert all(curve.unmeasured == 1 for curve in found.curves)


def test_labels_of_both_kinds(tmp_path):
    (tmp_path / "labels.tsv").write_text("file\tclass\tverdict\tlanguage\na.mp4\tspeech\tkeep\ten\n")
    assert read_labels(tmp_path / "labels.tsv") == {"a.mp4": Label("a.mp4", True, "speech")}
    table = pa.table({"clip": ["clips/000000.mp4"], "sound_class": ["noise"], "verdict": ["drop"]})
    pq.write_table(table, tmp_path / "labels.parquet")
    assert read_labels(tmp_path / "labels.parquet") == {"000000.mp4": Label("000000.mp4", False, "noise")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file\tclass\na\tb\n", "row 1: no verdict"),
        ("file\tclass\tverdict\na\tspeech\tmaybe\n", "'maybe'; write keep or drop"),
        ("file\tclass\tverdict\nx/a\tspeech\tkeep\ny/a\tspeech\tkeep\n", "row 2: a is labelled twice"),
        ("file\tclass\tverdict\n", "no row"),
    ],
)
def test_a_mistake_in_labels_names_its_row(text, said, tmp_path):
    (tmp_path / "labels.tsv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_labels(tmp_path / "labels.tsv")


def test_sources_are_matched_by_name():
    row = {"uri": "s3://b/a.mp4", "scores": [("x", 1.0)], "start_s": 0.0, "end_s": 2.0, "verdict": "kept", "reason": ""}
    labels = {"a.mp4": Label("a.mp4", True, "speech")}
    (source,) = labelled([row, {**row, "uri": "s3://b/unlabelled.mp4"}, {**row, "reason": "too_short"}], labels)
    assert source.clips == [({"x": 1.0}, 2.0)]
    with pytest.raises(ValueError, match="two sources named"):
        labelled([row, {**row, "uri": "s3://c/a.mp4"}], labels)
    with pytest.raises(ValueError, match="no source of the set is labelled"):
        labelled([{**row, "uri": "b.mp4"}], labels)
