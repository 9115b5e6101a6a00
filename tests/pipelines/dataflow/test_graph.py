"""The graph with small callables: every segment gets its verdicts, whatever its stages do."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from data_prep.clip import Clip, Segment, stable_id
from data_prep.dataset.index import read_manifest
from data_prep.dataset.ledger import Ledger, totals
from data_prep.dataset.shards import read_segment
from pipelines.dataflow.graph import Stage, apply, run_graph, size_pools

# Workers of a Ray session that is already running cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Cutter:
    """Two clips per segment, the second one dropped; sources named "broken" cannot be read."""

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        for segment in segments:
            if "broken" in segment.uri:
                raise OSError(f"cannot read {segment.uri}")
            first = Clip(stable_id(segment.uri, 0), 0.0, 1.0, media=segment.uri.encode() * 1000)
            second = Clip(stable_id(segment.uri, 1), 1.0, 3.0).dropped("silence")
            segment.clips = [first, second]
        return segments


class Namer:
    """Captions clips; raises for one of them."""

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        for segment in segments:
            for clip in segment.clips:
                if clip.kept:
                    clip.caption = {"text": f"half-done {segment.uri}"}
                    if "odd" in segment.uri:
                        raise ZeroDivisionError("odd")
                    clip.caption = {"text": f"this is {segment.uri}"}
        return segments


def _missing_weights() -> Cutter:
    raise ValueError("curate.tagger: weights '/nowhere' are missing; give a path")


def _broken_code() -> Cutter:
    raise KeyError("a bug")


# Large batches start few worker processes, each of which costs seconds.
CUT = Stage("curate", Cutter, batch=11)
NAME = Stage("caption", Namer, batch=22)


def _sources(*names: str) -> list[Segment]:
    return [Segment(stable_id(name), name, size=len(name), content_key=stable_id("key", name)) for name in names]


@pytest.mark.parametrize("cpus", [1.0, 2.0, 4.0, 64.0])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_pools_leave_room_for_reading_and_committing(cpus: float, stages: int) -> None:
    pools = size_pools([Stage(str(n), Cutter) for n in range(stages)], cpus, 0, 1000)
    assert sum(pool.workers * pool.cpus for pool in pools) <= cpus - 0.25 + 1e-9
    assert min(pool.workers for pool in pools) >= max(1, int(cpus) // stages)


def test_pools_use_every_gpu_and_no_more_workers_than_work() -> None:
    stages = [Stage("curate", Cutter), Stage("caption", Namer, gpu=True), Stage("encode", Namer, batch=8, gpu=True)]
    curate, caption, encode = size_pools(stages, 32, 4, 16)
    assert (caption.workers, caption.gpus, encode.workers, encode.gpus) == (4, 0.5, 2, 0.5)
    assert curate.gpus == 0
    assert curate.workers == 16


def test_an_error_costs_its_own_segment_only() -> None:
    segments = apply("curate", Cutter(), _sources("a", "broken", "c"))
    assert [[clip.verdict for clip in s.clips] for s in segments] == [
        ["kept", "dropped"],
        ["failed"],
        ["kept", "dropped"],
    ]
    assert segments[1].clips[0].reason == "curate"
    assert "cannot read broken" in segments[1].clips[0].error
    captioned = apply("caption", Namer(), apply("curate", Cutter(), _sources("a", "odd")))
    assert captioned[0].clips[0].caption == {"text": "this is a"}
    odd, silent = captioned[1].clips
    assert (odd.verdict, odd.reason, odd.media) == ("failed", "caption", b"")
    assert odd.caption == {}
    assert silent.reason == "silence"


def test_every_segment_is_committed_with_its_verdicts(ray_session: None, tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(20)] + ["broken", "odd"]
    done = list(run_graph(_sources(*names), [CUT, NAME], tmp_path))
    assert {summary.entry.segment_id for summary in done} == {stable_id(name) for name in names}
    assert all({"curate", "caption", "commit"} <= set(summary.seconds) for summary in done)
    assert totals(Ledger(tmp_path).entries()) == {
        "segments": 22, "considered": 43, "kept": 20, "dropped": {"silence": 21}, "failed": {"caption": 1, "curate": 1},
        "considered_s": 63.0, "kept_s": 20.0,
    }  # fmt: skip
    kept = read_segment(tmp_path, stable_id("clip3")).clips[0]
    assert kept.media == b"clip3" * 1000
    assert kept.caption == {"text": "this is clip3"}


def test_a_later_stage_reads_the_clips_of_a_committed_set(ray_session: None, tmp_path: Path) -> None:
    curated, captioned, at_once = tmp_path / "curated", tmp_path / "captioned", tmp_path / "at_once"
    sources = _sources("a", "b", "odd")
    list(run_graph(sources, [CUT], curated))
    list(run_graph(sources, [NAME], captioned, read_from=curated))
    list(run_graph(sources, [CUT, NAME], at_once))
    assert read_manifest(captioned).equals(read_manifest(at_once))
    for part in ("shards", "manifest", "ledger"):
        for file in (at_once / part).iterdir():
            assert file.read_bytes() == (captioned / part / file.name).read_bytes()
    assert pq.read_metadata(captioned / "manifest" / f"{stable_id('a')}.parquet").num_rows == 2


def test_a_mistake_met_in_a_worker_reaches_the_user_as_one_line(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^curate.tagger: weights '/nowhere' are missing; give a path$"):
        list(run_graph(_sources("a"), [Stage("curate", _missing_weights)], tmp_path))
    with pytest.raises(Exception, match="KeyError: 'a bug'"):
        list(run_graph(_sources("a"), [Stage("curate", _broken_code)], tmp_path))


class Deadly(Cutter):
    """Sources named "killer" kill their worker, as the out-of-memory killer does; attempts are counted."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        with self.log.open("a") as log:
            log.writelines(f"{segment.uri}\n" for segment in segments)
        if any("killer" in segment.uri for segment in segments):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(segments)


def test_a_segment_that_kills_its_worker_twice_is_quarantined(ray_session: None, tmp_path: Path) -> None:
    log, names = tmp_path / "tries", ["a", "b", "killer", "c"]
    stage = Stage("curate", partial(Deadly, log), batch=4)
    done = list(run_graph(_sources(*names), [stage], tmp_path / "out"))
    assert {summary.entry.uri: summary.entry.failed for summary in done} == {
        "a": {}, "b": {}, "c": {}, "killer": {"quarantine": 1},
    }  # fmt: skip
    (clip,) = read_segment(tmp_path / "out", stable_id("killer")).clips
    assert clip.error == "its worker died 2 times in curate"
    tries = log.read_text().split()
    assert tries.count("killer") == 2
    # Tried once with its batch and once alone; what was committed before the second death is not repeated.
    assert max(tries.count(name) for name in "abc") <= 2
