"""The rules that turn a clip's scores into a verdict and a sound class, in order of precedence.

A clip is dropped only by a rule that says what is wrong with it. There is no score that a clip must reach to be kept:
rules that demand several good scores at once drop the sounds of places. A waterfall has no onsets, no voice, a steady
level and a flat spectrum, and is still informative sound.

A rule is skipped until the scores that it reads are measured. So `judge` is used after each gate, for the final
verdict, and by `--rejudge` on stored scores.
"""

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.settings import PolicySettings

Scores = dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """The verdict and class that the rules give a clip.

    Attributes:
        verdict: "kept" or "dropped".
        reason: the reason of the rule that drops the clip; empty for a kept clip.
        sound_class: the clip's class. Of a kept clip it may change until all scores are measured.
    """

    verdict: str
    reason: str
    sound_class: str

    @property
    def dropped(self) -> bool:
        """Return whether the verdict is "dropped"."""
        return self.verdict == "dropped"


@dataclass(frozen=True)
class Rule:
    """One reason to drop a clip.

    Attributes:
        reason: the reason of a clip that this rule drops.
        sound_class: the class of a clip that this rule drops.
        needs: names of the scores that must be measured; until then the rule is skipped.
        drops: function of (scores, thresholds) that returns whether to drop the clip.
    """

    reason: str
    sound_class: str
    needs: tuple[str, ...]
    drops: Callable[[Scores, PolicySettings], bool]

    def applies(self, scores: Scores, policy: PolicySettings) -> bool:
        """Return whether the rule drops a clip with these scores; False while a score that it needs is not measured."""
        return all(name in scores for name in self.needs) and self.drops(scores, policy)


def judge(scores: Scores, policy: PolicySettings) -> Judgement:
    """Return the judgement of a clip: dropped by the first rule of `RULES` that applies, else kept.

    Args:
        scores: all or some of the scores that the gates measure (`data_prep.curation.gates`), by name.
        policy: the thresholds.
    """
    for rule in RULES:
        if rule.applies(scores, policy):
            return Judgement("dropped", rule.reason, rule.sound_class)
    return Judgement("kept", "", sound_class(scores, policy))


def as_one_clip(scores: Scores, length: float) -> Scores:
    """Return the scores that one clip of a long sound would have if it had all voice and events of the long sound.

    Shares of time are multiplied by `length`, so that a short event in a long sound is not overlooked.

    Args:
        scores: scores of the complete sound.
        length: length of the sound, in units of the longest clip; up to 1 the scores are returned unchanged.
    """
    if length <= 1:
        return scores
    shares = {name: min(1.0, length * scores[name]) for name in ("salient_ratio", "voice_ratio") if name in scores}
    if "silence_ratio" in scores:
        shares["silence_ratio"] = max(0.0, 1 - length * (1 - scores["silence_ratio"]))
    # In the mean over a long sound a short event is lost; in the maximum it is not.
    if "tag_event_max" in scores:
        shares["tag_event"] = scores["tag_event_max"]
    return scores | shares


def sound_class(scores: Scores, policy: PolicySettings) -> str:
    """Return the class of a kept clip: "speech", "music", "mixed" (both, with similar scores) or "environment".

    The score of speech is the mean of voice detector and tagger. Each alone mistakes some sounds for speech, and each
    alone misses some voices that are far away or in noise.
    """
    speech = (scores.get("voice_ratio", 0.0) + scores.get("tag_speech", 0.0)) / 2
    # The tagger mistakes a hum for a synthesizer.
    music = max(scores.get("tag_music", 0.0), scores.get("tag_singing", 0.0)) * (1 - scores.get("tone_ratio", 0.0))
    spoken = speech >= policy.speech_min
    musical = music >= policy.music_min
    if spoken and musical and abs(speech - music) < 0.2:
        return "mixed"
    if spoken and (not musical or speech >= music):
        return "speech"
    return "music" if musical else "environment"


def _is_silent(scores: Scores, policy: PolicySettings) -> bool:
    """Return whether the sound is below the level of silence all or nearly all the time."""
    return scores["active_s"] < policy.active_min_s or scores["silence_ratio"] > policy.silence_max


def _is_steady(scores: Scores, policy: PolicySettings) -> bool:
    """Return whether the sound hardly changes in time, and no event is clearly louder than the rest."""
    return (
        scores["stationarity"] >= policy.stationary_min
        and scores["salient_ratio"] < policy.salient_min
        and scores["prominent_s"] < policy.prominent_min_s
    )


def _is_tone(scores: Scores, policy: PolicySettings) -> bool:
    """Return whether the sound is a test tone or a mains hum: most energy is in constant spectral lines.

    The tagger is not asked, because it calls such sounds a telephone or music.
    """
    return _is_steady(scores, policy) and scores["tone_ratio"] >= policy.tone_min


def _is_gaussian_noise(scores: Scores, policy: PolicySettings) -> bool:
    """Return whether the sound is as even in time and in spectrum as only noise is. Needs no score of a network."""
    even = scores["wander"] < policy.wander_min and scores["uneven_db"] < policy.uneven_min_db
    return _is_steady(scores, policy) and scores["salient_ratio"] == 0 and even


def _is_steady_noise(scores: Scores, policy: PolicySettings) -> bool:
    """Return whether the sound is hiss, a fan or a noise floor.

    Such sound is steady, without voice or music, and the tagger recognises no event, or it is as even as noise.
    """
    if not _is_steady(scores, policy):
        return False
    # The tagger runs before the voice detector. Where the tagger finds no trace of speech in a steady sound, the
    # detector finds none either, so the rule decides without it. Else the rule drops nothing before the detector runs.
    traced = scores.get("tag_speech_max", 1.0) >= policy.speech_trace_min
    if traced and scores.get("voice_ratio", 1.0) >= policy.voice_min:
        return False
    # In noise the tagger finds some speech that the voice detector misses.
    if scores["tag_music"] >= policy.music_min or scores["tag_speech"] >= policy.speech_min:
        return False
    known = scores["tag_event"] >= policy.event_min and scores["tag_event"] >= scores["tag_noise"]
    return not (known and scores["wander"] >= policy.wander_min and scores["uneven_db"] >= policy.uneven_min_db)


def _is_other_noise(scores: Scores, policy: PolicySettings) -> bool:
    """Return whether the tagger recognises noise and nothing else: static, or wind on the microphone."""
    informative = max(scores["tag_event"], scores["tag_music"], scores["tag_speech"], scores["voice_ratio"])
    return scores["tag_noise"] >= policy.noise_tag_min and informative < 0.5 * policy.event_min


_STEADY = ("stationarity", "salient_ratio", "prominent_s")
_TAGS = ("tag_event", "tag_noise", "tag_music", "tag_speech")

NO_AUDIO = Rule("no_audio", "no_audio", ("has_audio",), lambda scores, _: scores["has_audio"] < 0.5)
SILENCE = Rule("silence", "silence", ("active_s", "silence_ratio"), _is_silent)
TONE = Rule("tone", "noise", (*_STEADY, "tone_ratio"), _is_tone)
GAUSSIAN_NOISE = Rule("steady_noise", "noise", (*_STEADY, "wander", "uneven_db"), _is_gaussian_noise)
STEADY_NOISE = Rule("steady_noise", "noise", (*_STEADY, "wander", "uneven_db", *_TAGS), _is_steady_noise)
OTHER_NOISE = Rule("noise", "noise", ("voice_ratio", *_TAGS), _is_other_noise)
# This rule lists the voice score only to be skipped until the gate "voice", after the rules for tones and noise.
NARROW_BAND = Rule(
    "narrow_band",
    "noise",
    ("bandwidth_hz", "voice_ratio"),
    lambda scores, policy: scores["bandwidth_hz"] < policy.bandwidth_min_hz,
)
CLIPPED = Rule(
    "clipped", "noise", ("clipped_ratio",), lambda scores, policy: scores["clipped_ratio"] > policy.clipped_max
)

# In order of precedence: where several rules apply, the first one gives the reason.
RULES = (NO_AUDIO, SILENCE, TONE, GAUSSIAN_NOISE, STEADY_NOISE, OTHER_NOISE, NARROW_BAND, CLIPPED)

# Threshold → the score that is compared with it, in the order of `PolicySettings`. `silence_db` is missing: the score
# is measured with it.
THRESHOLDS = {
    "active_min_s": "active_s",
    "silence_max": "silence_ratio",
    "stationary_min": "stationarity",
    "salient_min": "salient_ratio",
    "prominent_min_s": "prominent_s",
    "speech_trace_min": "tag_speech_max",
    "voice_min": "voice_ratio",
    "tone_min": "tone_ratio",
    "event_min": "tag_event",
    "wander_min": "wander",
    "uneven_min_db": "uneven_db",
    "noise_tag_min": "tag_noise",
    "bandwidth_min_hz": "bandwidth_hz",
    "clipped_max": "clipped_ratio",
    "speech_min": "tag_speech",
    "music_min": "tag_music",
}
