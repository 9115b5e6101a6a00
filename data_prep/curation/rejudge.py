"""Judge committed segments again: apply new thresholds to their stored scores, as `curate` would now.

A clip that stays kept keeps its media, and a clip that is now dropped loses it; neither needs the source. A clip that
was dropped and would now be kept has no media in the set, and may lack scores, because an early gate dropped it. Its
segment is curated from the source again, with all its clips. If the source is missing or has changed, these clips
become `failed("rejudge")`, and the other clips of the segment are judged as usual.

The result is a new set. A set that is changed in place would contain old and new verdicts until the last segment is
done, or for ever if the run is killed. The old set also remains for comparison.
"""

from collections.abc import Callable
from dataclasses import replace

from data_prep.clip import Clip, Segment
from data_prep.curation import near_duplicates
from data_prep.curation.policy import judge
from data_prep.curation.spans import content_key
from data_prep.settings import CurateSettings

Curate = Callable[[list[Segment]], list[Segment]]

# Settings of the policy that change how a score is measured. The others are compared with stored scores.
MEASURED_WITH = ("silence_db",)


def rejudged_settings(before: CurateSettings, given: CurateSettings) -> CurateSettings:
    """Return the settings of a set with new thresholds.

    Args:
        before: the settings that the set was made with.
        given: settings with the new thresholds; each other setting is its default or as in `before`.

    Raises:
        ValueError: a given setting changes what is cut or measured; the message names it.
    """
    changed = [
        f"policy.{name}" for name in MEASURED_WITH if getattr(before.policy, name) != getattr(given.policy, name)
    ]
    usual = CurateSettings()
    for name in set(CurateSettings.model_fields) - {"policy"}:
        if getattr(given, name) not in (getattr(usual, name), getattr(before, name)):
            changed.append(name)
    if changed:
        raise ValueError(
            f"--rejudge moves thresholds alone, and curate.{sorted(changed)[0]} changes what is measured: "
            "leave it as it was, or curate the sources anew"
        )
    return before.model_copy(update={"policy": given.policy})


class Rejudger:
    """A stage of a dataflow that judges committed segments again.

    Args:
        settings: the settings of the set with the new thresholds.
        curator: makes the callable that curates segments from their sources. That loads networks, so it is called only
            when the first source has to be curated again.
    """

    def __init__(self, settings: CurateSettings, curator: Callable[[], Curate]) -> None:
        self.settings, self._make = settings, curator
        self._curator: Curate | None = None

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """Return the segments with their new verdicts."""
        return [self.rejudge(segment) for segment in segments]

    def rejudge(self, segment: Segment) -> Segment:
        """Return a segment with its new verdicts; its kept clips have their media."""
        clips = [self._judged(clip) for clip in segment.clips]
        if any(clip is None for clip in clips):
            again, problem = self._again(segment)
            if again is not None:
                return again
            clips = [clip or old.failed("rejudge", problem) for clip, old in zip(clips, segment.clips, strict=True)]
        return replace(segment, clips=[clip for clip in clips if clip is not None])

    def _judged(self, clip: Clip) -> Clip | None:
        """Return the clip with its new verdict; None if it would be kept but has no media.

        A clip that failed, is too short or is a duplicate keeps its verdict: no threshold changes it.
        """
        if clip.verdict == "failed" or clip.reason in ("too_short", near_duplicates.REASON):
            return clip
        judgement = judge(clip.scores, self.settings.policy)
        clip = replace(clip, sound_class=judgement.sound_class)
        if judgement.verdict == "dropped":
            return clip.dropped(judgement.reason)
        return clip if clip.media else None

    def _again(self, segment: Segment) -> tuple[Segment | None, str]:
        """Curate a segment from its source again.

        Returns:
            (The segment, "") or, if the source is missing or has changed, (None, the problem).
        """
        try:
            if content_key(segment.uri) != segment.content_key:
                return None, "the source is not what it was; curate it again"
        except OSError as error:
            return None, f"its packets are in no shard and the source cannot be read ({error}); curate it again"
        if self._curator is None:
            self._curator = self._make()
        (again,) = self._curator([replace(segment, clips=[], content_key="")])
        duplicates = {clip.clip_id: "" for clip in segment.clips if clip.reason == near_duplicates.REASON}
        return near_duplicates.without(again, duplicates), ""
