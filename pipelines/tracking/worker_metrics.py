"""Ray metrics of the dataflow's workers, for Prometheus.

Each node exports them on its Prometheus port together with Ray's metrics, summed over the node's workers:

    ray_kinotone_segments_total{stage}            segments that passed a stage
    ray_kinotone_seconds_total{stage}             seconds spent in a stage ("read" and "commit" are stages too)
    ray_kinotone_clips_total{verdict, reason}     clips committed
    ray_kinotone_media_seconds_total{verdict}     seconds of media committed

`rate(ray_kinotone_segments_total[1m])` is a stage's throughput; `rate(ray_kinotone_seconds_total[1m])` is the number of
its workers that are busy.
"""

import math
from collections.abc import Iterable, Mapping

from data_prep.clip import Segment


class WorkerMetrics:
    """The counters of a worker process, which Ray exports to Prometheus."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._segments = Counter("kinotone_segments", "source segments through a stage", ("stage",))
        self._seconds = Counter("kinotone_seconds", "seconds that workers of a stage were at work", ("stage",))
        self._clips = Counter("kinotone_clips", "clips committed", ("verdict", "reason"))
        self._media = Counter("kinotone_media_seconds", "seconds of media committed", ("verdict",))

    def count_stage(self, stage: str, segments: int, seconds: float) -> None:
        """Count `segments` that passed a stage, and the `seconds` that they took together."""
        self._segments.inc(segments, {"stage": stage})
        if seconds > 0:
            self._seconds.inc(seconds, {"stage": stage})

    def count_committed(self, segments: Iterable[Segment], spent: Iterable[Mapping[str, float]]) -> None:
        """Count committed segments and their clips.

        Args:
            segments: the committed segments.
            spent: seconds spent on each segment by stage, "commit" included.
        """
        for segment, seconds in zip(segments, spent, strict=True):
            self.count_stage("commit", 1, seconds["commit"])
            for clip in segment.clips:
                self._clips.inc(1, {"verdict": clip.verdict, "reason": clip.reason})
                duration_s = clip.end_s - clip.start_s
                if math.isfinite(duration_s) and duration_s > 0:
                    self._media.inc(duration_s, {"verdict": clip.verdict})
