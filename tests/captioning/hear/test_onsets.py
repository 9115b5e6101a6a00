"""Compare the measured onsets and ends of sounds with the times at which they were made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.hear.onsets import RATE, band_energies, onsets, refine_tags
from captioning.write.compose import nameable_sounds
from captioning.write.vocabulary import IMPACT
from data_prep.clip import Tag
from data_prep.scores.audio_tags import load_tagger

SECONDS = 5.0
TAGGER = load_tagger("package:yamnet")


def burst(kind: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    at = np.arange(round(seconds * RATE)) / RATE
    if kind == "tone":
        return 0.3 * np.sin(2 * np.pi * 440 * at) + 0.1 * np.sin(2 * np.pi * 1320 * at)
    if kind == "chirp":
        return 0.2 * np.sin(2 * np.pi * (3000 * at + 1500 * at**2))
    if kind == "knock":
        return 0.5 * np.exp(-at / 0.04) * rng.standard_normal(len(at))
    return 0.1 * rng.standard_normal(len(at))


def scene(kind: str, begins_s: list[float], lasts_s: float, noise_db: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sound = 10 ** (noise_db / 20) * rng.standard_normal(round(SECONDS * RATE))
    for begin_s in begins_s:
        first = round(begin_s * RATE)
        part = burst(kind, lasts_s, rng)[: len(sound) - first]
        sound[first : first + len(part)] += part
    return sound.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["tone", "chirp", "knock", "hiss"]),
    begin_s=st.floats(0.1, 3.0),
    late_s=st.floats(0.0, 0.85),
    noise_db=st.sampled_from([-90.0, -60.0, -50.0]),
)
def test_a_sound_begins_and_ends_where_it_was_made(kind, begin_s, late_s, noise_db):
    sound = scene(kind, [begin_s], 1.0, noise_db)
    first = max(0.0, begin_s - late_s)  # the tagger's window holds the beginning somewhere
    (tag,) = refine_tags([Tag("x", first, min(SECONDS, begin_s + 1.0 + 0.9), 0.9)], sound, TAGGER, 0.5)
    assert abs(tag.start_s - begin_s) <= 0.04
    if kind != "knock":
        assert abs(tag.end_s - (begin_s + 1.0)) <= 0.06
    assert tag.score == 0.9


def test_what_sounds_from_the_first_sample_begins_at_zero():
    (tag,) = refine_tags([Tag("x", 0.0, SECONDS, 0.5)], scene("hiss", [0.0], SECONDS, -90.0), TAGGER, 0.5)
    assert (tag.start_s, tag.end_s) == (0.0, SECONDS)


def test_where_nothing_rises_the_times_of_the_tagger_stand():
    steady = scene("hiss", [], 0.0, -30.0)
    given_ = Tag("x", 1.44, 3.36, 0.5)
    (tag,) = refine_tags([given_], steady, TAGGER, 0.5)
    assert (tag.start_s, tag.end_s) == (1.44, pytest.approx(3.36, abs=0.02))


def test_every_knock_is_found():
    at = [0.5, 1.1, 1.7, 2.9]
    found = onsets(band_energies(scene("knock", at, 0.3, -60.0)))
    times = (found * 160 + 256) / RATE
    assert np.allclose(times[1:], at, atol=0.03), "the first is the noise, from the first sample"


@pytest.mark.parametrize("samples", [0, 1, 100, 600])
def test_a_sound_shorter_than_a_window_is_no_error(samples):
    seconds = samples / RATE
    (tag,) = refine_tags([Tag("x", 0.0, seconds, 0.5)], np.ones(samples, np.float32), TAGGER, 0.5)
    assert 0 <= tag.start_s <= tag.end_s <= seconds + 0.01


class Hears:
    """A tagger of few classes that gives every window the same score."""

    def __init__(self, score: float, *names: str):
        self.score, self.names = score, names or ("Clock",)

    def scores(self, windows: np.ndarray) -> np.ndarray:
        return np.full((len(windows), len(self.names)), self.score)


@pytest.mark.parametrize(("label", "score", "begins"), [("Clock", 0.3, 0.6), ("Clock", 0.01, 2.1), ("Bark", 0.3, 2.1)])
def test_a_repeated_sound_begins_where_the_tagger_hears_it_when_asked_again(label, score, begins):
    sound = scene("knock", list(np.arange(0.6, 4.0, 0.5)), 0.3, -60.0)
    (tag,) = refine_tags([Tag(label, 1.92, 4.8, 0.7)], sound, Hears(score), 0.5)  # pyright: ignore[reportArgumentType]
    assert abs(tag.start_s - begins) < 0.05


def test_a_pause_ends_what_is_repeated():
    sound = scene("knock", [0.2, 2.0, 2.5], 0.3, -60.0)
    (tag,) = refine_tags([Tag("Clock", 1.92, 2.88, 0.7)], sound, Hears(0.9), 0.5)  # pyright: ignore[reportArgumentType]
    assert abs(tag.start_s - 2.0) < 0.05


def test_many_half_heard_knocks_are_impacts():
    at = [0.6, 1.1, 1.7]
    half = ("Hammer", "Door", "Wood block")
    sound = scene("knock", at, 0.3, -60.0)
    (tag,) = refine_tags([Tag("Hammer", 0.0, 0.96, 0.3)], sound, Hears(0.3, *half), 0.5)  # pyright: ignore[reportArgumentType]
    assert (tag.label, tag.score) == (IMPACT, pytest.approx(1 - 0.7**3, abs=1e-3))
    assert 0 <= tag.start_s <= at[0] + 0.05, "the noise begins at the first sample"
    (late,) = refine_tags([], sound[: round(1.9 * RATE)], Hears(0.3, *half), 0.5)  # pyright: ignore[reportArgumentType]
    assert late.end_s <= 1.9
    assert refine_tags([], sound, Hears(0.1, *half), 0.5) == ()  # pyright: ignore[reportArgumentType]
    assert refine_tags([], sound, Hears(0.9, "Bark"), 0.5) == ()  # pyright: ignore[reportArgumentType]
    assert refine_tags([], scene("knock", [], 0.3, -60.0), Hears(0.9, *half), 0.5) == ()  # pyright: ignore[reportArgumentType]


def test_impacts_are_told_where_nothing_surer_is_heard():
    impacts, hammer = Tag(IMPACT, 0.5, 2.0, 0.8), Tag("Hammer", 0.5, 2.0, 0.9)
    assert list(nameable_sounds((impacts,))) == ["impacts"]
    assert list(nameable_sounds((impacts, hammer))) == ["hammering"]
    assert sorted(nameable_sounds((impacts, Tag("Bark", 0.5, 2.0, 0.9)))) == ["a dog barking", "impacts"]
