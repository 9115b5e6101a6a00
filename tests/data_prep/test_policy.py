"""The rules on scores alone, so that each can be read here."""

import pytest

from data_prep.policy import PolicySettings, judge

SPEECH = {
    "has_audio": 1.0, "active_s": 4.0, "silence_ratio": 0.1, "stationarity": 0.02, "tone_ratio": 0.0, "wander": 12.0,
    "bandwidth_hz": 8000.0, "clipped_ratio": 0.0, "voice_ratio": 0.7, "tag_speech": 0.9, "tag_music": 0.0,
    "tag_singing": 0.0, "tag_noise": 0.0, "tag_event": 0.02,
}  # fmt: skip
SCENE = SPEECH | {"voice_ratio": 0.0, "tag_speech": 0.0, "tag_event": 0.5}
STEADY = SCENE | {"stationarity": 0.8, "wander": 1.4}


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
        (STEADY | {"tone_ratio": 0.9, "tag_event": 0.99}, "dropped", "tone", "noise"),  # "Telephone", says the tagger
        (STEADY | {"tone_ratio": 0.9, "tag_music": 0.9}, "dropped", "tone", "noise"),
        (SPEECH | {"stationarity": 0.7, "tone_ratio": 0.6}, "kept", "", "speech"),  # someone speaks over a hum
        (SCENE | {"tag_event": 0.02, "tag_noise": 0.8}, "dropped", "noise", "noise"),
        (SCENE | {"bandwidth_hz": 300.0}, "dropped", "narrow_band", "noise"),
        (SPEECH | {"clipped_ratio": 0.4}, "dropped", "clipped", "noise"),
    ],
)
def test_rules(scores, verdict, reason, sound_class):
    found = judge(scores, PolicySettings())
    assert (found.verdict, found.reason, found.sound_class) == (verdict, reason, sound_class)


def test_rules_wait_for_their_scores():
    only_levels = {name: STEADY[name] for name in ("has_audio", "active_s", "silence_ratio", "stationarity")}
    assert judge(only_levels, PolicySettings()).verdict == "kept"
    assert judge({}, PolicySettings()).verdict == "kept"


def test_thresholds_are_settings():
    assert judge(SCENE, PolicySettings(bandwidth_min_hz=9000.0)).reason == "narrow_band"
