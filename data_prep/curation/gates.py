"""The gates: measurements of a clip's sound, cheapest first. The first gate that drops a clip ends its measurement.

A gate is one measurement, together with the rules that can be applied after it; the rules and their thresholds are in
`data_prep.curation.policy`. Time on one core per second of sound: levels 0.1 ms, spectra 0.8 ms, event tags and voice
activity 0.6 ms each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data_prep.clip import Tag
from data_prep.curation import policy as rules
from data_prep.curation.policy import Judgement, Rule, Scores, as_one_clip, judge
from data_prep.curation.sandbox import beat
from data_prep.curation.span_sound import ClipSound
from data_prep.scores import sound
from data_prep.scores.audio_tags import Tagger
from data_prep.settings import PolicySettings


class Measurement(NamedTuple):
    """The result of one gate: scores by name, and the sound events that it found."""

    scores: Scores
    tags: Sequence[Tag] = ()


@dataclass(frozen=True)
class Gate:
    """One measurement of a clip's sound, and the rules that can be applied after it.

    Attributes:
        name: name of the gate.
        measure: the function that measures a clip's sound.
        rules: the rules whose scores are complete after this gate and the gates before it.
        network: whether `measure` runs a neural network.
    """

    name: str
    measure: Callable[[ClipSound], Measurement]
    rules: tuple[Rule, ...]
    network: bool = False

    def drops(self, scores: Scores, policy: PolicySettings) -> bool:
        """Return whether a rule of this gate drops a clip with these scores."""
        return any(rule.applies(scores, policy) for rule in self.rules)


def sound_gates(policy: PolicySettings, tagger: Tagger) -> tuple[Gate, ...]:
    """Return the gates in the order in which they measure a clip: stream, levels, spectra, tags, voice.

    Args:
        policy: gives the level below which a frame is silent.
        tagger: the network of the gate "tags".
    """

    def stream(clip: ClipSound) -> Measurement:
        return Measurement({"has_audio": float(clip.has_audio)})

    def levels(clip: ClipSound) -> Measurement:
        return Measurement(sound.level_scores(clip.stereo, policy.silence_db))

    def spectra(clip: ClipSound) -> Measurement:
        return Measurement(sound.spectral_scores(clip.stereo))

    def tags(clip: ClipSound) -> Measurement:
        return Measurement(*sound.tag_scores(clip.mono, tagger))

    def voice(clip: ClipSound) -> Measurement:
        return Measurement(sound.voice_scores(clip.voiced))

    return (
        Gate("stream", stream, (rules.NO_AUDIO,)),
        Gate("levels", levels, (rules.SILENCE, rules.CLIPPED)),
        Gate("spectra", spectra, (rules.TONE, rules.GAUSSIAN_NOISE)),
        Gate("tags", tags, (rules.STEADY_NOISE,), network=True),
        Gate("voice", voice, (rules.STEADY_NOISE, rules.OTHER_NOISE, rules.NARROW_BAND), network=True),
    )


def pass_gates(
    clip: ClipSound, gates: Sequence[Gate], policy: PolicySettings, *, measure_all: bool = False, length: float = 1.0
) -> Judgement:
    """Measure a clip's sound gate by gate, up to the first gate that drops it, and return its judgement.

    The results are stored in `clip`. A gate that has already measured the clip does not measure it again.

    Args:
        clip: the sound to measure; its `scores`, `tags` and `passed` are extended.
        gates: the gates to pass, in order.
        policy: the thresholds.
        measure_all: measure at every gate, also after one has dropped the clip.
        length: length of the sound over `clip_max_s`. Above 1, it is judged as if all its events were in one clip.
    """
    measure_all = measure_all and clip.has_audio
    for gate in gates:
        if gate.name not in clip.passed:
            beat()
            scores, tags = gate.measure(clip)
            clip.scores |= scores
            clip.tags += tags
            clip.passed.add(gate.name)
        if gate.drops(as_one_clip(clip.scores, length), policy) and not measure_all:
            break
    return judge(as_one_clip(clip.scores, length), policy)
