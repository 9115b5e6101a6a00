"""The rules that turn a clip's scores into a verdict, in order of precedence. Nothing else decides what is kept.

A clip is dropped only by a rule that says what is wrong with it. There is no score that a clip must reach to be kept:
rules that demand several good scores at once delete ambience. A waterfall has no onsets, no voice, a steady level and
a flat spectrum, and is still what a listener hears at a waterfall.

A rule is skipped until its scores are measured. So `judge` serves as the test after each gate, as the final verdict,
and for `--rejudge` on stored scores.
"""

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.settings import PolicySettings

Scores = dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """What the rules say of a clip.

    Attributes:
        verdict: "kept" or "dropped".
        reason: the rule that drops the clip; empty for a kept clip.
        sound_class: the clip's class. It is final once every score is measured.
    """

    verdict: str
    reason: str
    sound_class: str

    @property
    def dropped(self) -> bool:
        """Whether the clip is dropped."""
        return self.verdict == "dropped"


@dataclass(frozen=True)
class Rule:
    """One reason to drop a clip.

    Attributes:
        reason: the reason that a dropped clip gets.
        sound_class: the class that a dropped clip gets.
        needs: the scores that the rule reads. The rule is skipped until all of them are measured.
        drops: whether the rule drops a clip with these scores.
    """

    reason: str
    sound_class: str
    needs: tuple[str, ...]
    drops: Callable[[Scores, PolicySettings], bool]

    def applies(self, scores: Scores, policy: PolicySettings) -> bool:
        """Whether the scores that the rule needs are measured and drop the clip."""
        return all(name in scores for name in self.needs) and self.drops(scores, policy)


def judge(scores: Scores, policy: PolicySettings) -> Judgement:
    """Drop a clip by the first rule of `RULES` that applies; keep it when none does.

    Args:
        scores: any of the scores that the gates measure (`data_prep.curation.gates`).
        policy: the thresholds.
    """
    for rule in RULES:
        if rule.applies(scores, policy):
            return Judgement("dropped", rule.reason, rule.sound_class)
    return Judgement("kept", "", sound_class(scores, policy))


def as_one_clip(scores: Scores, length: float) -> Scores:
    """Convert the scores of a long sound to those of one clip into which all its events might fall.

    Args:
        scores: of the whole sound.
        length: of the sound, in longest clips.
    """
    if length <= 1:
        return scores
    shares = {name: min(1.0, length * scores[name]) for name in ("salient_ratio", "voice_ratio") if name in scores}
    if "silence_ratio" in scores:
        shares["silence_ratio"] = max(0.0, 1 - length * (1 - scores["silence_ratio"]))
    # The mean over a long noise hides an event; its best moment does not.
    if "tag_event_max" in scores:
        shares["tag_event"] = scores["tag_event_max"]
    return scores | shares


def sound_class(scores: Scores, policy: PolicySettings) -> str:
    """Give the class of an informative clip: "speech", "music", "mixed" (both, neither far ahead) or "environment".

    The class rests on the mean of voice detector and tagger. Each alone takes some sounds for speech, and each alone
    misses some voices that are far away or in noise.
    """
    speech = (scores.get("voice_ratio", 0.0) + scores.get("tag_speech", 0.0)) / 2
    # The tagger takes a hum for a synthesizer.
    music = max(scores.get("tag_music", 0.0), scores.get("tag_singing", 0.0)) * (1 - scores.get("tone_ratio", 0.0))
    spoken = speech >= policy.speech_min
    musical = music >= policy.music_min
    if spoken and musical and abs(speech - music) < 0.2:
        return "mixed"
    if spoken and (not musical or speech >= music):
        return "speech"
    return "music" if musical else "environment"


def _is_silent(scores: Scores, policy: PolicySettings) -> bool:
    """Nothing, or next to nothing, is above the level at which a listener hears something."""
    return scores["active_s"] < policy.active_min_s or scores["silence_ratio"] > policy.silence_max


def _is_steady(scores: Scores, policy: PolicySettings) -> bool:
    """The sound stays the same, and nothing rises out of it."""
    return (
        scores["stationarity"] >= policy.stationary_min
        and scores["salient_ratio"] < policy.salient_min
        and scores["prominent_s"] < policy.prominent_min_s
    )


def _is_tone(scores: Scores, policy: PolicySettings) -> bool:
    """A test tone or a mains hum: lines that never stop, and nothing else. Taggers call it a telephone or music."""
    return _is_steady(scores, policy) and scores["tone_ratio"] >= policy.tone_min


def _is_gaussian_noise(scores: Scores, policy: PolicySettings) -> bool:
    """The sound is as even in time and in spectrum as only noise is, so no network needs to hear it."""
    even = scores["wander"] < policy.wander_min and scores["uneven_db"] < policy.uneven_min_db
    return _is_steady(scores, policy) and scores["salient_ratio"] == 0 and even


def _is_steady_noise(scores: Scores, policy: PolicySettings) -> bool:
    """Hiss, fan or noise floor: steady, and not recognised as any source, or too even to be one."""
    if not _is_steady(scores, policy):
        return False
    # The tagger costs less than the voice detector. Where the tagger finds no trace of speech in a steady sound, the
    # detector finds none either, so the rule decides without it. Where there is a trace, the rule waits for it.
    traced = scores.get("tag_speech_max", 1.0) >= policy.speech_trace_min
    if traced and scores.get("voice_ratio", 1.0) >= policy.voice_min:
        return False
    # In noise the tagger still finds speech that the voice detector misses.
    if scores["tag_music"] >= policy.music_min or scores["tag_speech"] >= policy.speech_min:
        return False
    known = scores["tag_event"] >= policy.event_min and scores["tag_event"] >= scores["tag_noise"]
    return not (known and scores["wander"] >= policy.wander_min and scores["uneven_db"] >= policy.uneven_min_db)


def _is_other_noise(scores: Scores, policy: PolicySettings) -> bool:
    """Static, or wind on the microphone: not steady, but the tagger recognises nothing except noise."""
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
# This rule needs the voice score only to come after the rule for tones.
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
