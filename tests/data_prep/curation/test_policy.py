"""The rules, on scores alone."""

import pytest

from data_prep.curation.policy import as_one_clip, judge
from data_prep.settings import PolicySettings

SPEECH = {
    "has_audio": 1.0, "active_s": 4.0, "silence_ratio": 0.1, "clipped_ratio": 0.0, "bandwidth_hz": 8000.0,
    "stationarity": 0.02, "salient_ratio": 0.8, "prominent_s": 3.0, "tone_ratio": 0.0, "wander": 12.0, "uneven_db": 3.0,
    "voice_ratio": 0.7, "tag_speech": 0.9, "tag_music": 0.0, "tag_singing": 0.0, "tag_noise": 0.0, "tag_event": 0.02,
}  # fmt: skip
SCENE = SPEECH | {"voice_ratio": 0.0, "tag_speech": 0.0, "tag_event": 0.5}
STEADY = SCENE | {"stationarity": 0.9, "salient_ratio": 0.02, "prominent_s": 0.0, "wander": 1.4}


@pytest.mark.parametrize(
    ("scores", "verdict", "reason", "sound_class"),
    [
        ({"has_audio": 0.0}, "dropped", "no_audio", "no_audio"),
        (SPEECH | {"active_s": 0.0, "silence_ratio": 1.0}, "dropped", "silence", "silence"),
        (SPEECH, "kept", "", "speech"),
        (SCENE, "kept", "", "environment"),
        (SCENE | {"tag_event": 0.05}, "kept", "", "environment"),  # quiet ambience that no class fits
        (SCENE | {"tag_music": 0.9}, "kept", "", "music"),
        (SPEECH | {"tag_music": 0.85}, "kept", "", "mixed"),
        (SPEECH | {"tag_music": 0.5}, "kept", "", "speech"),
        (STEADY | {"tag_event": 0.5, "tag_noise": 0.4}, "kept", "", "environment"),  # a waterfall
        (STEADY | {"tag_event": 0.13, "tag_noise": 0.33}, "dropped", "steady_noise", "noise"),  # a noise floor
        (STEADY | {"tag_event": 0.6, "tag_noise": 0.2, "wander": 1.0}, "dropped", "steady_noise", "noise"),
        (STEADY | {"tag_speech": 0.4, "tag_event": 0.0, "uneven_db": 0.5}, "kept", "", "environment"),  # talk in noise
        (STEADY | {"tone_ratio": 0.9, "tag_event": 0.99}, "dropped", "tone", "noise"),  # the tagger reports "Telephone"
        (STEADY | {"tone_ratio": 0.9, "tag_music": 0.9}, "dropped", "tone", "noise"),
        (SPEECH | {"stationarity": 0.7, "tone_ratio": 0.6}, "kept", "", "speech"),  # someone speaks over a hum
        (
            STEADY | {"salient_ratio": 0.3, "tag_event": 0.0, "tag_noise": 0.4},
            "kept",
            "",
            "environment",
        ),  # knocks in hiss
        (STEADY | {"prominent_s": 0.5, "tag_event": 0.2}, "kept", "", "environment"),  # one knock in hiss
        (STEADY | {"voice_ratio": 0.2, "tag_event": 0.0}, "kept", "", "environment"),
        (
            STEADY | {"tag_event": 0.9, "uneven_db": 0.2},
            "dropped",
            "steady_noise",
            "noise",
        ),  # the tagger reports "Waterfall" for white noise
        (SPEECH | {"tag_speech": 0.8, "voice_ratio": 0.0}, "kept", "", "speech"),  # far away: no voice is detected
        (SPEECH | {"tag_speech": 0.3, "voice_ratio": 0.18}, "kept", "", "environment"),  # a few words in a kitchen
        (SCENE | {"tag_music": 0.9, "tone_ratio": 0.8}, "kept", "", "environment"),  # the tagger takes a hum for music
        (SCENE | {"tag_event": 0.02, "tag_noise": 0.8}, "dropped", "noise", "noise"),
        (SCENE | {"bandwidth_hz": 300.0}, "dropped", "narrow_band", "noise"),
        (SPEECH | {"clipped_ratio": 0.4}, "dropped", "clipped", "noise"),
    ],
)
def test_rules(scores, verdict, reason, sound_class):
    found = judge(scores, PolicySettings())
    assert (found.verdict, found.reason, found.sound_class) == (verdict, reason, sound_class)


def test_the_rule_for_steady_noise_waits_for_the_voice_score_only_with_a_trace_of_speech():
    hiss = {name: value for name, value in STEADY.items() if name != "voice_ratio"} | {"tag_event": 0.0}
    assert judge(hiss | {"tag_speech_max": 0.02}, PolicySettings()).reason == "steady_noise"
    assert judge(hiss | {"tag_speech_max": 0.2}, PolicySettings()).verdict == "kept"  # not yet
    assert judge(hiss | {"tag_speech_max": 0.2, "voice_ratio": 0.0}, PolicySettings()).reason == "steady_noise"
    assert judge(hiss | {"tag_speech_max": 0.2, "voice_ratio": 0.3}, PolicySettings()).verdict == "kept"
    # A set from before the trace was stored has the voice score.
    assert judge(hiss | {"voice_ratio": 0.0}, PolicySettings()).reason == "steady_noise"


def test_noise_that_is_even_in_all_respects_is_dropped_without_a_network():
    names = ("has_audio", "active_s", "silence_ratio", "stationarity", "salient_ratio", "prominent_s", "tone_ratio")
    measured = {name: STEADY[name] for name in (*names, "bandwidth_hz")} | {"salient_ratio": 0.0, "wander": 1.0}
    assert judge(measured | {"uneven_db": 0.1}, PolicySettings()).reason == "steady_noise"
    assert judge(measured | {"uneven_db": 2.0}, PolicySettings()).verdict == "kept"
    assert judge(measured | {"uneven_db": 0.1, "wander": 1.5}, PolicySettings()).verdict == "kept"  # not yet
    assert judge(measured | {"tone_ratio": 0.9}, PolicySettings()).reason == "tone"


def test_a_long_sound_is_judged_as_if_all_fell_into_one_clip():
    talk = STEADY | {"voice_ratio": 0.01, "salient_ratio": 0.004, "tag_event_max": 0.2, "silence_ratio": 0.999}
    assert judge(as_one_clip(talk, 50.0), PolicySettings()).verdict == "kept"
    assert judge(as_one_clip(talk, 1.0), PolicySettings()).verdict == "dropped"
    quiet = {"has_audio": 1.0, "active_s": 0.05, "silence_ratio": 0.9999}
    assert judge(as_one_clip(quiet, 50.0), PolicySettings()).reason == "silence"


def test_rules_wait_for_their_scores():
    only_levels = {name: STEADY[name] for name in ("has_audio", "active_s", "silence_ratio", "stationarity")}
    assert judge(only_levels, PolicySettings()).verdict == "kept"
    assert judge({}, PolicySettings()).verdict == "kept"


def test_thresholds_are_settings():
    assert judge(SCENE, PolicySettings(bandwidth_min_hz=9000.0)).reason == "narrow_band"
