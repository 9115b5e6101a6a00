"""From scores to a verdict: the rules, in order. Nothing else decides what is kept.

A clip is dropped only by a rule that says what is wrong with it; there is no score that a clip must reach to be
interesting. Rules that demand several good scores at once delete ambience: a waterfall has no onsets, no voice, a
steady level and a flat spectrum, and is still what one hears at a waterfall.

A rule whose scores are not measured yet is skipped, so the same function serves as the gate after each stage, as the
last word, and as `--rejudge` on stored scores.
"""

from dataclasses import dataclass

from data_prep.settings import PolicySettings


@dataclass(frozen=True)
class Judgement:
    """`reason` is empty for kept clips; `sound_class` is final once all scores are there."""

    verdict: str
    reason: str
    sound_class: str


def judge(scores: dict[str, float], policy: PolicySettings) -> Judgement:
    """The first rule that applies drops the clip; a clip that passes all of them is kept.

    Args:
        scores: any of those that `data_prep.scores.sound` measures, and `has_audio` (0 or 1).
    """
    for rule in (_no_audio, _silence, _tone, _gaussian_noise, _steady_noise, _noise, _rumble, _clipped):
        found = rule(scores, policy)
        if found is not None:
            return found
    return Judgement("kept", "", sound_class(scores, policy))


def as_one_clip(scores: dict[str, float], length: float) -> dict[str, float]:
    """Scores of a sound `length` clips long, as if all that is heard in it fell into one of them."""
    if length <= 1:
        return scores
    shares = {name: min(1.0, length * scores[name]) for name in ("salient_ratio", "voice_ratio") if name in scores}
    if "silence_ratio" in scores:
        shares["silence_ratio"] = max(0.0, 1 - length * (1 - scores["silence_ratio"]))
    # Nor does a sound that is all noise hide an event from its tags.
    if "tag_event_max" in scores:
        shares["tag_event"] = scores["tag_event_max"]
    return scores | shares


def sound_class(scores: dict[str, float], policy: PolicySettings) -> str:
    """ "speech", "music", "mixed" (both, and neither far ahead) or "environment" of an informative clip.

    The voice detector and the tagger are believed together: each alone takes some sound for speech, and one of them
    loses a voice that is far away or in noise.
    """
    speech = (scores.get("voice_ratio", 0.0) + scores.get("tag_speech", 0.0)) / 2
    # To the tagger a hum is a synthesizer.
    music = max(scores.get("tag_music", 0.0), scores.get("tag_singing", 0.0)) * (1 - scores.get("tone_ratio", 0.0))
    spoken = speech >= policy.speech_min
    musical = music >= policy.music_min
    if spoken and musical and abs(speech - music) < 0.2:
        return "mixed"
    if spoken and (not musical or speech >= music):
        return "speech"
    return "music" if musical else "environment"


def _has(scores: dict[str, float], *names: str) -> bool:
    return all(name in scores for name in names)


def _no_audio(scores, policy: PolicySettings) -> Judgement | None:
    if scores.get("has_audio", 1.0) < 0.5:
        return Judgement("dropped", "no_audio", "no_audio")
    return None


def _silence(scores, policy: PolicySettings) -> Judgement | None:
    """Nothing, or next to nothing, is above the level at which one hears something."""
    if not _has(scores, "active_s", "silence_ratio"):
        return None
    if scores["active_s"] < policy.active_min_s or scores["silence_ratio"] > policy.silence_max:
        return Judgement("dropped", "silence", "silence")
    return None


def _steady(scores, policy: PolicySettings) -> bool:
    """Always the same, and nothing rises out of it."""
    return (
        scores["stationarity"] >= policy.stationary_min
        and scores["salient_ratio"] < policy.salient_min
        and scores["prominent_s"] < policy.prominent_min_s
    )


def _tone(scores, policy: PolicySettings) -> Judgement | None:
    """A test tone or a mains hum: lines that never cease, and nothing else. Taggers call it a telephone or music."""
    if not _has(scores, "stationarity", "tone_ratio", "salient_ratio", "prominent_s"):
        return None
    if _steady(scores, policy) and scores["tone_ratio"] >= policy.tone_min:
        return Judgement("dropped", "tone", "noise")
    return None


def _gaussian_noise(scores, policy: PolicySettings) -> Judgement | None:
    """As even in time and in spectrum as only noise is: no network needs to hear it."""
    if not _has(scores, "stationarity", "salient_ratio", "prominent_s", "wander", "uneven_db"):
        return None
    even = scores["wander"] < policy.wander_min and scores["uneven_db"] < policy.uneven_min_db
    if _steady(scores, policy) and scores["salient_ratio"] == 0 and even:
        return Judgement("dropped", "steady_noise", "noise")
    return None


def _steady_noise(scores, policy: PolicySettings) -> Judgement | None:
    """Hiss, fan, noise floor: always the same, and not known as the sound of anything, or too even to be one."""
    names = ("stationarity", "salient_ratio", "prominent_s", "wander", "uneven_db")
    if not _has(scores, *names, "tag_event", "tag_noise", "tag_music", "tag_speech") or not _steady(scores, policy):
        return None
    # The tagger costs less than the voice detector, and where it hears no trace of speech in what is steady, neither
    # does that one. Where it hears one, the rule waits for the voices.
    traced = scores.get("tag_speech_max", 1.0) >= policy.speech_trace_min
    if traced and scores.get("voice_ratio", 1.0) >= policy.voice_min:
        return None
    # In noise the tagger still hears talk that the voice detector has lost.
    if scores["tag_music"] >= policy.music_min or scores["tag_speech"] >= policy.speech_min:
        return None
    known = scores["tag_event"] >= policy.event_min and scores["tag_event"] >= scores["tag_noise"]
    if known and scores["wander"] >= policy.wander_min and scores["uneven_db"] >= policy.uneven_min_db:
        return None
    return Judgement("dropped", "steady_noise", "noise")


def _noise(scores, policy: PolicySettings) -> Judgement | None:
    """Static, wind on the microphone: not steady, but noise is all that is recognised."""
    if not _has(scores, "voice_ratio", "tag_event", "tag_noise", "tag_music", "tag_speech"):
        return None
    heard = max(scores["tag_event"], scores["tag_music"], scores["tag_speech"], scores["voice_ratio"])
    if scores["tag_noise"] >= policy.noise_tag_min and heard < 0.5 * policy.event_min:
        return Judgement("dropped", "noise", "noise")
    return None


def _rumble(scores, policy: PolicySettings) -> Judgement | None:
    if not _has(scores, "bandwidth_hz", "voice_ratio"):  # so that a tone is called a tone first
        return None
    if scores["bandwidth_hz"] < policy.bandwidth_min_hz:
        return Judgement("dropped", "narrow_band", "noise")
    return None


def _clipped(scores, policy: PolicySettings) -> Judgement | None:
    if scores.get("clipped_ratio", 0.0) > policy.clipped_max:
        return Judgement("dropped", "clipped", "noise")
    return None
