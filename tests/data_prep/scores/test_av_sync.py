"""Motion that begins with the sound is distinguished from motion that does not."""

import numpy as np
import pytest

from data_prep.media.write_mp4 import write_mp4
from data_prep.scores.av_sync import agreement, motion


def _jumps(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    moving = np.full(len(times), -6.0)
    for moment in moments:
        moving[(times >= moment) & (times < moment + 0.15)] = -2.0
    return moving


@pytest.mark.parametrize("late_s", [-0.12, 0.0, 0.12])
def test_agreement_and_offset(late_s):
    rng = np.random.default_rng(0)
    onsets = np.cumsum(rng.uniform(0.5, 1.3, 10))
    times = np.arange(0, 12, 0.04)
    found = agreement(onsets, times, _jumps(times, onsets + late_s))
    assert found["av_agreement"] > 4
    assert found["av_offset_s"] == pytest.approx(late_s, abs=0.06)


def test_motion_elsewhere_does_not_agree():
    rng = np.random.default_rng(1)
    times = np.arange(0, 12, 0.04)
    found = []
    for _ in range(20):
        onsets, moments = (np.cumsum(rng.uniform(0.5, 1.3, 10)) for _ in range(2))
        found.append(agreement(onsets, times, _jumps(times, moments))["av_agreement"])
    assert np.median(found) < 2.5


def test_no_score_without_onsets_or_motion():
    times = np.arange(0, 12, 0.04)
    assert agreement(np.array([1.0, 2.0]), times, _jumps(times, np.array([1.0]))) == {}
    assert agreement(np.array([1.0, 2.0, 3.0]), times, np.zeros(len(times))) == {}
    assert agreement(np.array([1.0, 2.0, 3.0]), np.zeros(1), np.zeros(1)) == {}


def test_motion_is_where_the_picture_changes(tmp_path):
    frames = [np.full((64, 96, 3), 40, np.uint8) for _ in range(50)]
    for n in range(20, 24):
        frames[n] = np.full((64, 96, 3), 60 + 30 * (n - 20), np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, 25, None, 48000)
    times, moving = motion(tmp_path / "a.mp4", 0.0, 2.0)
    assert len(times) == len(moving) == 50
    assert set(np.flatnonzero(moving > -4)) == set(range(20, 25))
