"""From scores to a verdict: the rules, in order. Nothing else decides what is kept.

A clip is dropped only by a rule that says what is wrong with it; there is no score that a clip must reach to be
interesting. Rules that demand several good scores at once delete ambience: a waterfall has no onsets, no voice, a
steady level and a flat spectrum, and is still what one hears at a waterfall.

A rule whose scores are not measured yet is skipped, so the same function serves as the gate after each stage, as the
last word, and as `--rejudge` on stored scores.
"""

from dataclasses import dataclass

from pydantic import Field

from data_prep.settings import Settings


class PolicySettings(Settings):
    """Thresholds of the rules."""

    silence_db: float = Field(default=-55.0, description="a 50 ms frame below this level is silent, dBFS")
    active_min_s: float = Field(default=0.2, ge=0, description="less sound than this in a clip is silence, seconds")
    silence_max: float = Field(default=0.97, ge=0, le=1, description="a larger share of silent frames is silence")
    stationary_min: float = Field(default=0.55, ge=0, le=1, description="share of energy that is always there: noise")
    tone_min: float = Field(default=0.5, ge=0, le=1, description="share of the energy in unceasing lines: hum, tone")
    voice_min: float = Field(default=0.1, ge=0, le=1, description="share of speech that saves a steady clip")
    event_min: float = Field(default=0.3, ge=0, le=1, description="event score that saves a steady clip: waterfall")
    wander_min: float = Field(default=1.15, ge=0, description="steadier than this × Gaussian noise is noise")
    noise_tag_min: float = Field(default=0.5, ge=0, le=1, description="noise score that drops what is no event")
    bandwidth_min_hz: float = Field(default=1000.0, ge=0, description="sound with nothing above this is a rumble, Hz")
    clipped_max: float = Field(default=0.1, ge=0, le=1, description="largest share of samples at full scale")
    speech_min: float = Field(default=0.25, ge=0, le=1, description="share of time with speech for the class speech")
    music_min: float = Field(default=0.4, ge=0, le=1, description="music score for the class music")


@dataclass(frozen=True)
class Judgement:
    """`reason` is empty for kept clips; `sound_class` is final once all scores are there."""

    verdict: str
    reason: str
    sound_class: str


def judge(scores: dict[str, float], policy: PolicySettings) -> Judgement:
    """The first rule that applies drops the clip; a clip that passes all of them is kept.

    Args:
        scores: any of those that `data_prep.sound` measures, and `has_audio` (0 or 1).
    """
    for rule in (_no_audio, _silence, _tone, _steady_noise, _noise, _rumble, _clipped):
        found = rule(scores, policy)
        if found is not None:
            return found
    return Judgement("kept", "", sound_class(scores, policy))


def sound_class(scores: dict[str, float], policy: PolicySettings) -> str:
    """ "speech", "music", "mixed" (both, and neither far ahead) or "environment" of an informative clip."""
    voice, speech = scores.get("voice_ratio", 0.0), scores.get("tag_speech", 0.0)
    music = max(scores.get("tag_music", 0.0), scores.get("tag_singing", 0.0))
    spoken = voice >= policy.speech_min and speech >= 0.5 * policy.speech_min
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


def _spoken(scores, policy: PolicySettings) -> bool:
    return scores["voice_ratio"] >= policy.voice_min


def _tone(scores, policy: PolicySettings) -> Judgement | None:
    """A test tone or a mains hum: lines that never cease, and no one speaks. Taggers call it a telephone or music."""
    if not _has(scores, "stationarity", "tone_ratio", "voice_ratio"):
        return None
    if scores["stationarity"] >= policy.stationary_min and scores["tone_ratio"] >= policy.tone_min:
        return None if _spoken(scores, policy) else Judgement("dropped", "tone", "noise")
    return None


def _steady_noise(scores, policy: PolicySettings) -> Judgement | None:
    """Hiss, fan, noise floor: always the same, and not known as the sound of anything, or as even as only noise is."""
    if not _has(scores, "stationarity", "voice_ratio", "tag_event", "tag_noise", "tag_music", "wander"):
        return None
    if scores["stationarity"] < policy.stationary_min or _spoken(scores, policy):
        return None
    if scores["tag_music"] >= policy.music_min:
        return None
    known = scores["tag_event"] >= policy.event_min and scores["tag_event"] >= scores["tag_noise"]
    if known and scores["wander"] >= policy.wander_min:
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
