"""The calibration page, and `curate --rejudge` as a user runs it."""

import json
import re
from pathlib import Path

import pytest
import yaml

from data_prep.clip import Clip, Segment
from data_prep.curation import near_duplicates
from data_prep.curation.policy import judge
from data_prep.dataset.index import read_manifest
from data_prep.dataset.shards import commit_segment
from data_prep.settings import CurateSettings, PolicySettings
from jobs.cli import main
from jobs.settings import load_recipe
from pipelines.dataflow.calibrate import run_calibrate
from pipelines.dataflow.commit import claim, finish
from pipelines.dataflow.prepare import REJUDGE, run_prepare
from tests.data_prep.curation.test_policy import SCENE, SPEECH, STEADY

HISS = STEADY | {"tag_event": 0.1, "tag_noise": 0.6}
SOUNDS = {
    "talk": SPEECH | {"bandwidth_hz": 9000.0},
    "yard": SCENE,
    "hiss": HISS,
    "fan": HISS | {"stationarity": 0.6, "tag_noise": 0.3},
}
PLACE = {"width": 64, "height": 48, "picture_hashes": ["00000000000000ff"], "sound_hash": "0f"}


@pytest.fixture
def curated(tmp_path) -> Path:
    """A committed set of four sources without real media, judged by the usual thresholds."""
    root = tmp_path / "set"
    claim(root, {"curate": CurateSettings().model_dump(mode="json")}, ["films"])
    for n, (name, scores) in enumerate(SOUNDS.items()):
        judgement = judge(scores, PolicySettings())
        info = PLACE | {"picture_hashes": [f"{0xFF << 8 * n:016x}"]}
        clip = Clip(
            f"{n:020x}", 0.0, 4.0, scores=scores, media=b"packets", info=info, sound_class=judgement.sound_class
        )
        clip = clip if judgement.verdict == "kept" else clip.dropped(judgement.reason)
        commit_segment(root, Segment(f"s{n}", f"/no/such/{name}.mp4", content_key="k", clips=[clip]))
    finish(root, "curate", {}, 0.0)
    (tmp_path / "labels.tsv").write_text(
        "file\tclass\tverdict\ntalk.mp4\tspeech\tkeep\nyard.mp4\tenvironment\tkeep\nhiss.mp4\tnoise\tdrop\n"
        "fan.mp4\tenvironment\tkeep\nelsewhere.mp4\tmusic\tkeep\n"
    )
    return root


def test_the_page_opens_offline_and_the_proposal_is_a_recipe(curated, tmp_path):
    found = run_calibrate(tmp_path / "labels.tsv", curated, tmp_path / "out")
    assert (found["sources"], found["verdicts_right"], found["classes_right"]) == (4, 3, 3)
    assert (found["precision"], found["recall"]) == (1.0, 0.6667)
    assert found["wrong"] == ["fan.mp4"]
    assert found["labels_without_a_source"] == ["elsewhere.mp4"]
    page = (tmp_path / "out" / "calibration.html").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert "fan.mp4" in page
    assert (tmp_path / "out" / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == found
    # In a recipe, the proposed policy gives these sources the labelled verdicts.
    policy = load_recipe(tmp_path / "out" / "policy.yaml").curate.policy
    assert found["proposed"]["changed"]
    assert (found["proposed"]["precision"], found["proposed"]["recall"]) == (1.0, 1.0)
    assert judge(SOUNDS["fan"], policy).verdict == "kept"
    assert judge(SOUNDS["hiss"], policy).verdict == "dropped"


def test_a_mistake_is_one_line(curated, tmp_path, capsys):
    labels = str(tmp_path / "labels.tsv")
    (tmp_path / "none.tsv").write_text("file\tclass\tverdict\nother.mp4\tmusic\tkeep\n")
    for args, said in [
        (["--labels", labels, "--input", str(tmp_path / "nothing")], "holds no settings.yaml"),
        (["--labels", str(tmp_path / "none.tsv"), "--input", str(curated)], "no source of the set is labelled"),
    ]:
        assert main(["calibrate", *args, "--output", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("ray_session")
def test_rejudge_makes_a_set_of_its_own_and_drops_doubles(curated, tmp_path):
    double = Clip("f" * 20, 0.0, 4.0, scores=SOUNDS["talk"], media=b"again", info=PLACE, sound_class="speech")
    commit_segment(curated, Segment("s9", "/no/such/copy.mp4", content_key="k", clips=[double]))
    assert finish(curated, "curate", {}, 0.0)["near_duplicates"] == 1
    assert near_duplicates.read(curated) == {"f" * 20: "0" * 20}
    before = read_manifest(curated)
    # "yard" is now too narrow; "fan" is no longer steady noise, but too narrow; the others keep their verdicts.
    settings = {REJUDGE: CurateSettings(policy=PolicySettings(bandwidth_min_hz=8500.0, stationary_min=0.7))}
    summary = run_prepare((REJUDGE,), [str(curated)], tmp_path / "new", settings)
    dropped = {"narrow_band": 2, "near_duplicate": 1, "steady_noise": 1}
    assert (summary["kept"], summary["dropped"], summary["failed"]) == (1, dropped, {})
    assert summary["near_duplicates"] == 0
    assert read_manifest(curated) == before
    recorded = yaml.safe_load((tmp_path / "new" / "settings.yaml").read_text())["settings"]
    assert recorded["curate"]["policy"]["stationary_min"] == 0.7
    assert recorded["input_set"] == str(curated)
    assert run_prepare((REJUDGE,), [str(curated)], tmp_path / "new", settings) == summary
    with pytest.raises(ValueError, match="stationary_min"):
        run_prepare((REJUDGE,), [str(curated)], tmp_path / "new", {REJUDGE: CurateSettings()})
