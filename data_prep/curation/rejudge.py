"""New thresholds on stored scores: a committed segment → the segment that `curate` would now make of it.

A clip keeps its packets when it stays, and lets them go when it is dropped; neither reads its source. A clip that was
dropped and would now be kept has no packets in the set, and one that stopped at an early gate has not all its scores:
such a segment is curated from its source again, as a whole, so that its cuts and scores are those of any other. Where
the source is gone or is no longer what it was, those clips become `failed("rejudge")`, which says so, and the others
are judged as usual.

The result is a set of its own. Judged in place, a set would hold old and new verdicts until the last segment is done,
and a killed run would leave it so; as a set of its own it is committed like any, and the old verdicts stay to compare.
"""

from collections.abc import Callable
from dataclasses import replace

from data_prep.clip import Clip, Segment
from data_prep.curation import near_duplicates
from data_prep.curation.curator import content_key
from data_prep.curation.policy import judge
from data_prep.settings import CurateSettings

Curate = Callable[[list[Segment]], list[Segment]]

# With these a score was measured; the others are compared with it.
MEASURED_WITH = ("silence_db",)


def rejudged_settings(before: CurateSettings, given: CurateSettings) -> CurateSettings:
    """How a set was made, with the thresholds that are given now.

    Raises:
        ValueError: something was changed that changes what is cut or measured; says which.
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
    """Judges committed segments anew. Networks are loaded when the first source has to be curated again."""

    def __init__(
        self, settings: CurateSettings, curator: Callable[[], Callable[[list[Segment]], list[Segment]]]
    ) -> None:
        """`curator` makes what curates a segment from its source."""
        self.settings, self._make = settings, curator
        self._curator: Callable[[list[Segment]], list[Segment]] | None = None

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """The segments with their new verdicts."""
        return [self.rejudge(segment) for segment in segments]

    def rejudge(self, segment: Segment) -> Segment:
        """One segment, with the media of its kept clips."""
        clips = [self._judged(clip) for clip in segment.clips]
        if any(clip is None for clip in clips):
            again, problem = self._again(segment)
            if again is not None:
                return again
            clips = [clip or old.failed("rejudge", problem) for clip, old in zip(clips, segment.clips, strict=True)]
        return replace(segment, clips=[clip for clip in clips if clip is not None])

    def _judged(self, clip: Clip) -> Clip | None:
        """The clip with its new verdict; None where that needs the source."""
        if clip.verdict == "failed" or clip.reason in ("too_short", near_duplicates.REASON):
            return clip
        judgement = judge(clip.scores, self.settings.policy)
        clip = replace(clip, sound_class=judgement.sound_class)
        if judgement.verdict == "dropped":
            return clip.dropped(judgement.reason)
        return clip if clip.media else None

    def _again(self, segment: Segment) -> tuple[Segment | None, str]:
        """The segment curated from its source; or None, and why that cannot be."""
        try:
            if content_key(segment.uri) != segment.content_key:
                return None, "the source is not what it was; curate it again"
        except OSError as error:
            return None, f"its packets are in no shard and the source cannot be read ({error}); curate it again"
        if self._curator is None:
            self._curator = self._make()
        (again,) = self._curator([replace(segment, clips=[], content_key="")])
        doubles = {clip.clip_id: "" for clip in segment.clips if clip.reason == near_duplicates.REASON}
        return near_duplicates.without(again, doubles), ""
