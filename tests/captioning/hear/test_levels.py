import numpy as np
import pytest

from captioning.hear.levels import measure

RATE = 16000


def tone(seconds: float = 3.0) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def test_level_is_rms_below_full_scale():
    found = measure(np.stack([0.1 * tone()] * 2), RATE)
    assert found["level_db"] == pytest.approx(-23.0, abs=0.1)
    assert found["sounding"] == 1.0
    assert found["side_db"] == 0.0
    assert found["course_db"] == pytest.approx(0.0, abs=0.1)


def test_silence_has_no_level():
    found = measure(np.zeros((2, 3 * RATE), np.float32), RATE)
    assert found["level_db"] is None
    assert found["side_db"] is None
    assert measure(np.zeros((2, 0), np.float32), RATE)["level_db"] is None


def test_side_and_travel():
    assert measure(np.stack([0.1 * tone(), 0.4 * tone()]), RATE)["side_db"] == pytest.approx(12.0, abs=0.1)
    right = np.linspace(0, 1, 3 * RATE, dtype=np.float32)
    assert measure(np.stack([tone() * (1 - right), tone() * right]), RATE)["travel"] == "left to right"
    assert measure(np.stack([tone() * right, tone() * (1 - right)]), RATE)["travel"] == "right to left"


def test_a_rising_sound_rises():
    rising = np.linspace(0.01, 1, 3 * RATE, dtype=np.float32)
    assert measure(np.stack([tone() * rising] * 2), RATE)["course_db"] > 10


@pytest.mark.parametrize(("hertz", "band"), [(100, "low"), (1000, "middle"), (5000, "high")])
def test_what_never_ceases_is_the_background(hertz, band):
    rng = np.random.default_rng(0)
    hum = 0.02 * np.sin(2 * np.pi * hertz * np.arange(4 * RATE) / RATE)
    talk = np.zeros(4 * RATE)
    talk[RATE : 2 * RATE] = 0.03 * rng.standard_normal(RATE)
    found = measure(np.stack([hum + talk] * 2).astype(np.float32), RATE)["steady"]
    assert found["band"] == band
    assert found["level_db"] == pytest.approx(20 * np.log10(0.02 / np.sqrt(2)), abs=0.5)


@pytest.mark.parametrize("loud", [0.001, 1.0])
def test_a_background_that_is_faint_or_ceases_is_none(loud):
    hum = loud * tone(4.0)
    if loud == 1.0:
        hum[: round(0.6 * RATE)] = 0.0
    assert measure(np.stack([hum, hum]), RATE)["steady"] is None
