"""Damaged files: flipped bits, missing ends, wrong headers. Each ends in verdicts, in bounded time and memory."""

import random
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_prep.clip import Segment
from data_prep.curation.curator import Curator
from data_prep.curation.sandbox import STALL_S, TRIES, Sandbox
from data_prep.dataset.shards import commit_segment
from data_prep.settings import CurateSettings
from data_prep.sources.listing import list_sources
from tests.data_prep.media.marked_media import noise_sound, numbered_frame, write

BROKEN = Path(__file__).parents[3].parent / "shared" / "media" / "broken"
WHOLE = {
    "a.mp4": ("libx264", "aac"),
    "b.mkv": ("libx264", "libopus"),
    "c.webm": ("libvpx", "libopus"),
    "d.ts": ("libx264", "aac"),
    "e.avi": ("mpeg4", "ac3"),
    "f.mov": ("mpeg4", "aac"),
}
BOXES = ("mvhd", "tkhd", "mdhd", "hdlr", "elst", "stsd", "stts", "ctts", "stss", "stsc", "stsz", "stco", "avc1", "mp4a")
LIES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF0000, 0x0000FFFF)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    # One scene cut, and a sound that is kept, so that damage reaches every stage.
    frames = [numbered_frame(n) for n in (*range(40), *range(200, 235))]
    knocks = np.zeros((2, 3 * 48000), np.float32)
    for start in range(12000, 132000, 26400):
        knocks[:, start : start + 9600] = 0.3 * noise_sound(0.2, 48000, start) * np.exp(-np.arange(9600) / 1500)
    for name, codecs in WHOLE.items():
        write(folder / name, frames, knocks, codecs=codecs)
    return {name: (folder / name).read_bytes() for name in WHOLE}


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(partial(Curator, CurateSettings(clip_min_s=1.0)))
    yield made
    made.close()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Damage the bytes in one way that `rng` chooses."""
    damaged = bytearray(data)
    kind = rng.choice(["flips", "cut", "lie", "lie", "hole", "twice"])
    if kind == "flips":
        for _ in range(rng.choice([1, 10, 100, 1000])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del damaged[rng.randrange(len(damaged)) :]
    elif kind == "lie":
        places = [at + rng.randrange(4, 48) for box in BOXES if (at := data.find(box.encode())) >= 0]
        at = rng.choice(places or [rng.randrange(400)])
        damaged[at : at + 4] = rng.choice([*LIES, rng.getrandbits(32)]).to_bytes(4, "big")
    else:
        at, size = rng.randrange(len(damaged)), rng.randrange(1, 8000)
        damaged[at : at + size] = bytes(size) if kind == "hole" else damaged[at : at + size] * 2
    return bytes(damaged)


def _judge(sandbox: Sandbox, segments: list[Segment], output: Path) -> list[str]:
    """Curate and commit every segment within its time and memory; return the verdicts."""
    verdicts, peak = [], 0
    for segment in segments:
        began = time.monotonic()
        (done,) = sandbox([segment])
        took = time.monotonic() - began
        assert took < TRIES * STALL_S, f"{segment.uri} took {took:.0f} s"
        entry = commit_segment(output, done).entry
        assert entry.considered == len(done.clips) >= 1
        verdicts += [f"{clip.verdict} {clip.reason}".strip() for clip in done.clips]
        if sandbox._child is not None:
            status = Path(f"/proc/{sandbox._child._process.pid}/status").read_text()
            peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) << 10)
    own = psutil.Process().memory_info().rss
    assert peak <= 1.5 * 2**30, f"the child held {peak / 2**30:.2f} GiB"
    print(f"{len(segments)} sources, child at most {peak >> 20} MiB, this process {own >> 20} MiB")
    return verdicts


def _written(sources: dict[str, bytes], folder: Path, count: int, seed: int) -> list[Segment]:
    rng = random.Random(seed)
    for n in range(count):
        name = rng.choice(sorted(sources))
        data = sources[name]
        for _ in range(rng.choice([1, 1, 2])):
            data = mutated(data, rng) or b"\0"
        (folder / f"{n:03}_{name}").write_bytes(data)
    return list_sources([str(folder)])


def test_whole_files_of_every_container_are_kept(sandbox, sources, tmp_path):
    for name, data in sources.items():
        (tmp_path / name).write_bytes(data)
    for segment in sandbox(list_sources([str(tmp_path)])):
        assert "kept" in {clip.verdict for clip in segment.clips}, segment


def test_damaged_files_end_in_verdicts(sandbox, sources, tmp_path):
    (tmp_path / "in").mkdir()
    verdicts = _judge(sandbox, _written(sources, tmp_path / "in", 30, seed=1), tmp_path / "out")
    assert any(verdict.startswith("failed read") for verdict in verdicts)


@pytest.mark.slow
def test_many_damaged_files_end_in_verdicts(sandbox, sources, tmp_path):
    (tmp_path / "in").mkdir()
    verdicts = _judge(sandbox, _written(sources, tmp_path / "in", 300, seed=2), tmp_path / "out")
    print({name: verdicts.count(name) for name in sorted(set(verdicts))})


@pytest.mark.skipif(not BROKEN.is_dir(), reason="shared/media is not here")
def test_real_broken_files_end_in_verdicts(sandbox, tmp_path):
    segments = list_sources([str(BROKEN)])
    assert len(segments) == 14
    _judge(sandbox, segments, tmp_path)
