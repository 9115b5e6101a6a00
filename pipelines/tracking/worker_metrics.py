"""What a worker has done, as Ray metrics: on every node's Prometheus port beside Ray's own, summed over workers there.

`ray_kinotone_segments_total{stage}`, `ray_kinotone_seconds_total{stage}` (at work; "read" and "commit" are stages too),
and of what is committed `ray_kinotone_clips_total{verdict, reason}` and `ray_kinotone_media_seconds_total{verdict}`.
So `rate(ray_kinotone_segments_total[1m])` is a stage's throughput, and
`rate(ray_kinotone_seconds_total[1m])` how many of its workers are busy.
"""

import math
from collections.abc import Iterable, Mapping

from data_prep.clip import Segment


class Meters:
    """The counters of this process."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._segments = Counter("kinotone_segments", "source segments through a stage", ("stage",))
        self._seconds = Counter("kinotone_seconds", "seconds that workers of a stage were at work", ("stage",))
        self._clips = Counter("kinotone_clips", "clips committed", ("verdict", "reason"))
        self._media = Counter("kinotone_media_seconds", "seconds of media committed", ("verdict",))

    def through(self, stage: str, segments: int, seconds: float) -> None:
        """Segments went through a stage in so much time."""
        self._segments.inc(segments, {"stage": stage})
        if seconds > 0:
            self._seconds.inc(seconds, {"stage": stage})

    def committed(self, segments: Iterable[Segment], spent: Iterable[Mapping[str, float]]) -> None:
        """These segments are committed; "commit" in what was spent on each is the time that took."""
        for segment, seconds in zip(segments, spent, strict=True):
            self.through("commit", 1, seconds["commit"])
            for clip in segment.clips:
                self._clips.inc(1, {"verdict": clip.verdict, "reason": clip.reason})
                length = clip.end_s - clip.start_s
                if math.isfinite(length) and length > 0:
                    self._media.inc(length, {"verdict": clip.verdict})
