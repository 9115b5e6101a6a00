"""The gates' order: what each measures is enough for its rules, and nothing is measured after a gate drops a clip."""

import numpy as np
import pytest

from data_prep.clip import Clip
from data_prep.curation.gates import pass_gates, sound_gates
from data_prep.curation.policy import RULES
from data_prep.curation.span_sound import ClipSound, SpanSound
from data_prep.media.decode import Sound
from data_prep.scores.audio_tags import load_tagger
from data_prep.scores.sound import RATE
from data_prep.settings import PolicySettings

POLICY = PolicySettings()
GATES = sound_gates(POLICY, load_tagger("package:yamnet"))


def _clip(samples: np.ndarray | None) -> ClipSound:
    decoded = None if samples is None else Sound(samples.astype(np.float32), 2, RATE, 0.0, 0.0, 3.0)
    return SpanSound(decoded, 0.0, 3.0).of(Clip("c", 0.0, 3.0))


def test_every_rule_is_decided_by_a_gate_that_has_its_scores():
    clip = _clip(np.random.default_rng(0).normal(0, 0.1, (2, 3 * RATE)))
    decided = set()
    for gate in GATES:
        clip.scores |= gate.measure(clip).scores
        decided |= {rule for rule in gate.rules if set(rule.needs) <= clip.scores.keys()}
    assert decided == set(RULES)


@pytest.mark.parametrize(
    ("samples", "reason", "passed"),
    [
        (None, "no_audio", ["stream"]),
        (np.zeros((2, 3 * RATE)), "silence", ["stream", "levels"]),
        (np.random.default_rng(0).normal(0, 0.1, (2, 3 * RATE)), "steady_noise", ["stream", "levels", "spectra"]),
    ],
)
def test_a_clip_is_measured_until_the_first_gate_that_drops_it(samples, reason, passed):
    clip = _clip(samples)
    assert pass_gates(clip, GATES, POLICY).reason == reason
    assert [gate.name for gate in GATES if gate.name in clip.passed] == passed
    clip = _clip(samples)
    assert pass_gates(clip, GATES, POLICY, measure_all=True).reason == reason
    assert len(clip.passed) == (1 if samples is None else len(GATES))
