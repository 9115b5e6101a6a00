"""The memory of the graph is bounded, and its metrics reach Prometheus."""

import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from ray import cloudpickle

from data_prep.clip import Clip, Segment
from pipelines.dataflow.graph import Stage, run_graph

# Workers of a Ray session that is already running cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

MIB = 1 << 20


class Maker:
    """Makes large clips without delay."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        for segment in segments:
            segment.clips = [Clip(segment.segment_id, 0.0, 2.0, media=bytes(self.size))]
        return segments


class Taker:
    """Takes a while for each clip, then drops its media."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        for segment in segments:
            time.sleep(self.seconds)
            segment.clips = [clip.dropped("silence") for clip in segment.clips]
        return segments


def _segments(count: int) -> list[Segment]:
    return [Segment(f"{number:03}", f"{number}", content_key=f"{number}") for number in range(count)]


def _spilled() -> int:
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.spilled_bytes_total


@pytest.mark.usefixtures("ray_session")
def test_a_slow_stage_holds_up_the_fast_one_before_the_object_store_spills(tmp_path: Path) -> None:
    import ray

    store = ray.cluster_resources()["object_store_memory"]
    size, before = 12 * MIB, _spilled()
    count = int(1.5 * store / size)  # together they do not fit
    stages = [Stage("curate", partial(Maker, size)), Stage("caption", partial(Taker, 0.1))]
    done = list(run_graph(_segments(count), stages, tmp_path / "out"))
    assert len(done) == count
    assert _spilled() == before


@pytest.mark.usefixtures("ray_session")
def test_throughput_of_each_stage_is_among_rays_metrics(tmp_path: Path) -> None:
    import ray

    stages = [Stage("curate", partial(Maker, 10), batch=4), Stage("caption", partial(Taker, 0.05), batch=4)]
    before = _metrics(ray.nodes()[0])
    list(run_graph(_segments(4), stages, tmp_path / "out"))
    expected = {
        'kinotone_segments_total{stage="curate"}': 4,
        'kinotone_segments_total{stage="caption"}': 4,
        'kinotone_segments_total{stage="commit"}': 4,
        'kinotone_clips_total{reason="silence",verdict="dropped"}': 4,
        'kinotone_media_seconds_total{verdict="dropped"}': 8,
    }
    found: dict[str, float] = {}
    grown: dict[str, float] = {}
    deadline = time.monotonic() + 60  # workers report every few seconds
    while time.monotonic() < deadline:
        found = _metrics(ray.nodes()[0])
        grown = {name: found.get(name, 0.0) - before.get(name, 0.0) for name in expected}
        if grown == expected:
            break
        time.sleep(1)
    assert grown == expected
    assert found['kinotone_seconds_total{stage="caption"}'] >= 0.2


def _metrics(node: dict) -> dict[str, float]:
    """Kinotone's metrics on a node's Prometheus port, by name and labels, summed over workers."""
    with urllib.request.urlopen(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}", timeout=20
    ) as reply:
        lines = reply.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line.startswith("ray_kinotone_"):
            name, _, rest = line.removeprefix("ray_").partition("{")
            labels, value = rest.rsplit("} ", 1)
            own = sorted(label for label in labels.split(",") if label.split("=")[0] in ("stage", "verdict", "reason"))
            key = f"{name}{{{','.join(own)}}}"
            found[key] = found.get(key, 0.0) + float(value)
    return found
