"""New thresholds on stored scores: which clips are dropped, kept, or cut from their source again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.clip import Clip, Segment
from data_prep.curation.curator import Curator
from data_prep.curation.rejudge import Rejudger, rejudged_settings
from data_prep.dataset.shards import commit_segment, read_segment
from data_prep.media.write_mp4 import write_mp4
from data_prep.settings import CurateSettings, KeptClipScoreSettings, PolicySettings
from data_prep.sources.listing import list_sources
from tests.data_prep.media.marked_media import numbered_frame

RATE = 48000


def _film(path: Path, *, hiss: bool) -> Segment:
    """Three seconds of hiss or of knocks."""
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.05 if hiss else 0.0003, (2, 3 * RATE)).astype(np.float32)
    if not hiss:
        for start in range(4800, 3 * RATE - 9600, 28800):
            sound[:, start : start + 9600] += 0.3 * np.exp(-np.arange(9600) / 1500) * rng.standard_normal(9600)
    write_mp4(path, [numbered_frame(10)] * 75, 25, np.clip(sound, -1, 1).astype(np.float32), RATE)
    (segment,) = list_sources([str(path)])
    return segment


def _never():
    raise AssertionError("no network is needed")


def _loose(**changes) -> CurateSettings:
    return CurateSettings(policy=PolicySettings(**changes))


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> tuple[Path, list[Segment]]:
    """A set of two sources, knocks and hiss, and its segments with their media."""
    folder = tmp_path_factory.mktemp("films")
    films = [_film(folder / f"{name}.mp4", hiss=name == "hiss") for name in ("hiss", "knocks")]
    made = Curator(CurateSettings())(films)
    for segment in made:
        commit_segment(folder / "set", segment)
    return folder, [read_segment(folder / "set", segment.segment_id) for segment in made]


def test_the_same_thresholds_give_the_same_bytes_without_a_source(curated, tmp_path):
    folder, segments = curated
    gone = [replace(segment, uri=str(tmp_path / "gone.mp4")) for segment in segments]
    for segment, again in zip(segments, Rejudger(CurateSettings(), _never)(gone), strict=True):
        commit_segment(tmp_path / "set", replace(again, uri=segment.uri))
        for part in ("shards", "manifest", "ledger"):
            for file in (folder / "set" / part).glob(f"{segment.segment_id}.*"):
                assert (tmp_path / "set" / part / file.name).read_bytes() == file.read_bytes()


def test_a_tighter_threshold_drops_without_a_source(curated):
    _, (_, knocks) = curated
    assert [clip.verdict for clip in knocks.clips] == ["kept"]
    settings = _loose(bandwidth_min_hz=30_000.0)
    (again,) = Rejudger(settings, _never)([replace(knocks, uri="/no/such.mp4")])
    (clip,) = again.clips
    assert (clip.verdict, clip.reason, clip.sound_class, clip.media) == ("dropped", "narrow_band", "noise", b"")
    assert clip.scores == knocks.clips[0].scores


def test_a_looser_threshold_cuts_a_clip_from_its_source(curated):
    _, (hiss, _) = curated
    assert [clip.reason for clip in hiss.clips] == ["steady_noise"]
    settings = _loose(stationary_min=1.0)
    (again,) = Rejudger(settings, lambda: Curator(settings))([hiss])
    (fresh,) = Curator(settings)([replace(hiss, clips=[], content_key="")])
    assert again.clips[0].kept
    assert again == fresh
    assert again.segment_id == hiss.segment_id


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_a_clip_that_cannot_be_cut_is_failed(curated, how, tmp_path):
    _, (hiss, _) = curated
    path = tmp_path / "film.mp4"
    if how == "changed":
        path.write_bytes(b"something else")
    (again,) = Rejudger(_loose(stationary_min=1.0), _never)([replace(hiss, uri=str(path))])
    (clip,) = again.clips
    assert (clip.verdict, clip.reason) == ("failed", "rejudge")
    assert "curate it again" in clip.error
    commit_segment(tmp_path / "set", again)


def test_failures_and_short_clips_stay_as_they_are():
    clips = [
        Clip("a", 0.0, 2.0).failed("read", "broken"),
        Clip("b", 2.0, 3.0, scores={"active_s": 1.0}).dropped("too_short"),
        Clip("c", 3.0, 6.0, media=b"x").dropped("near_duplicate"),
    ]
    (again,) = Rejudger(CurateSettings(), _never)([Segment("s", "/no/such.mp4", clips=clips)])
    assert again.clips == clips


def test_only_thresholds_may_change():
    before = CurateSettings(clip_max_s=9.0)
    found = rejudged_settings(before, _loose(stationary_min=0.7))
    assert (found.clip_max_s, found.policy.stationary_min) == (9.0, 0.7)
    with pytest.raises(ValueError, match=r"policy\.silence_db"):
        rejudged_settings(before, _loose(silence_db=-40.0))
    with pytest.raises(ValueError, match=r"curate\.clip_max_s"):
        rejudged_settings(before, CurateSettings(clip_max_s=5.0))
    with pytest.raises(ValueError, match=r"curate\.appraisal"):
        rejudged_settings(before, CurateSettings(appraisal=KeptClipScoreSettings(av_agreement=True)))
