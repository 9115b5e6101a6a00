"""Compare the cost of curating with plain decoding of the same media on the same cores.

`python -m benchmarks.curate [--media FOLDER] [--minutes 30] [--workers 2]`

The files of the folder are linked under new names, as often as needed to reach the given minutes. Each worker process
runs one source after the other through all of `curate`: reading, sound, voice activity, event tags, scene cuts, cutting
and commit. The clock starts when every worker has processed one source, so imports and the loading of networks are
excluded. Ray is not used. Then as many `ffmpeg -i X -f null -` processes decode the same files.

It prints wall times, processor times and their ratios; the ratio for sources that were dropped by their sound alone;
the seconds of each stage; and clips per second and core.
"""

import argparse
import functools
import multiprocessing
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.clip import Segment
from data_prep.curation import curator, kept_clip_scores, span_picture, span_sound, spans
from data_prep.curation.curator import Curator
from data_prep.media.container import last_timestamp
from data_prep.scores import sound
from data_prep.settings import CurateSettings
from data_prep.sources.listing import list_sources
from pipelines.dataflow.commit import commit_segments

CLIPS = Path(__file__).parents[1].parent / "shared" / "media" / "clips"
NEMO_CLIPS_PER_S = 0.14  # per core: NeMo Curator's nightly floor for CPU transcoding
# The timed functions by the names that are printed; the rest of a source's time is "other".
STAGES: dict[str, tuple[Any, str]] = {
    "content key": (spans, "content_key"),
    "packets of the picture": (curator, "read_packet_index"),
    "sound, decoded": (span_sound, "read_sound"),
    "sound, to 16 kHz": (span_sound, "for_networks"),
    "levels": (sound, "level_scores"),
    "spectra": (sound, "spectral_scores"),
    "voice activity": (span_sound, "voice_probability"),
    "event tags": (sound, "tag_scores"),
    "scene cuts": (span_picture, "scene_cuts"),
    "first picture": (span_picture.SpanPicture, "record"),
    "cutting": (curator, "cut"),
    "loudness": (kept_clip_scores, "loudness"),
    "hash of the sound": (kept_clip_scores, "sound_hash"),
    "hashes of pictures": (span_picture, "picture_hashes"),
}


@dataclass
class Cost:
    """The cost of one source: processor seconds in all and per stage, its clips, and whether its sound dropped it."""

    cpu_s: float
    clips: int
    heard_only: bool
    stages: dict[str, float] = field(default_factory=dict)


_spent: defaultdict[str, float] = defaultdict(float)
_curator: Curator


def _timed(name: str, call: Callable) -> Callable:
    @functools.wraps(call)
    def timed(*args, **kwargs):
        outside, start = sum(_spent.values()), time.process_time()
        try:
            return call(*args, **kwargs)
        finally:  # subtract the time of timed functions that this one called
            _spent[name] += time.process_time() - start - (sum(_spent.values()) - outside)

    return timed


def _start(first: Segment, root: str, ready: Any) -> None:
    global _curator
    _curator = Curator(CurateSettings())
    commit_segments(root, _curator([first]), [{}])  # the first call loads the networks
    for name, (place, function) in STAGES.items():
        if hasattr(place, function):
            setattr(place, function, _timed(name, getattr(place, function)))
    ready.wait()


def _curate(segment: Segment, root: str) -> Cost:
    _spent.clear()
    start = time.process_time()
    done = _curator([segment])
    before = time.process_time()
    commit_segments(root, done, [{}])
    _spent["commit"] += time.process_time() - before
    cpu_s = time.process_time() - start
    stages = dict(_spent) | {"other": cpu_s - sum(_spent.values())}
    clips = done[0].clips
    return Cost(cpu_s, len(clips), len(clips) == 1 and clips[0].verdict == "dropped", stages)


def _decode(uri: str) -> float:
    """Decode a file with ffmpeg; return its processor seconds."""
    child = subprocess.Popen(["ffmpeg", "-nostdin", "-v", "quiet", "-i", uri, "-f", "null", "-"])
    _, _, used = os.wait4(child.pid, 0)
    child.returncode = 0
    return used.ru_utime + used.ru_stime


def _sources(media: Path, minutes: float, folder: Path) -> tuple[list[Segment], float]:
    files = sorted(segment.uri for segment in list_sources([str(media)]))
    length_s = {uri: last_timestamp(uri) for uri in files}
    total_s = sum(length_s.values())
    if total_s <= 0:
        raise SystemExit(f"benchmarks.curate: nothing in {media} can be read")
    times = max(1, -(-int(minutes * 60) // int(max(1, total_s))))
    for count in range(times):
        for uri in files:
            (folder / f"{count:03d}_{Path(uri).name}").symlink_to(uri)
    return list_sources([str(folder)]), times * total_s


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, default=CLIPS)
    parser.add_argument("--minutes", type=float, default=30.0, help="of media, at least")
    parser.add_argument("--workers", type=int, default=2, help="processes, for curating and for decoding alike")
    given = parser.parse_args()
    if shutil.which("ffmpeg") is None:
        raise SystemExit("benchmarks.curate: the ffmpeg program is missing; install it (apt-get install ffmpeg)")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="kinotone-bench-") as scratch:
        folder = Path(scratch) / "media"
        folder.mkdir()
        segments, media_s = _sources(given.media, given.minutes, folder)
        spawn = multiprocessing.get_context("spawn")
        with spawn.Manager() as manager:
            ready = manager.Barrier(given.workers + 1)
            with ProcessPoolExecutor(given.workers, spawn, _start, (segments[0], f"{scratch}/first", ready)) as pool:
                # One task per worker makes the pool start all workers before the clock starts.
                waits = [pool.submit(time.sleep, 0.2) for _ in range(given.workers)]
                ready.wait()
                [wait.result() for wait in waits]
                start = time.perf_counter()
                work = [pool.submit(_curate, segment, f"{scratch}/set") for segment in segments]
                costs = [one.result() for one in work]
                curate_s = time.perf_counter() - start
        with ThreadPoolExecutor(given.workers) as pool:
            start = time.perf_counter()
            decoded = list(pool.map(_decode, [segment.uri for segment in segments]))
            decode_s = time.perf_counter() - start
    _print(given.workers, media_s, costs, curate_s, decoded, decode_s)


def _print(
    workers: int, media_s: float, costs: list[Cost], curate_s: float, decoded: list[float], decode_s: float
) -> None:
    cpu_s, plain_s = sum(cost.cpu_s for cost in costs), sum(decoded)
    clips = sum(cost.clips for cost in costs)
    heard = [(cost.cpu_s, plain) for cost, plain in zip(costs, decoded, strict=True) if cost.heard_only]
    print(
        f"{len(costs)} sources, {media_s / 60:.1f} minutes, {clips} clips; {workers} processes, {os.cpu_count()} cores"
    )
    print(f"{'':24}{'wall s':>10}{'processor s':>14}")
    print(f"{'curate':24}{curate_s:10.1f}{cpu_s:14.1f}")
    print(f"{'ffmpeg -f null':24}{decode_s:10.1f}{plain_s:14.1f}")
    print(f"{'ratio':24}{curate_s / decode_s:10.3f}{cpu_s / plain_s:14.3f}")
    if heard:
        ours, ffmpeg = (sum(values) for values in zip(*heard, strict=True))
        print(f"{'dropped by sound alone':24}{'':10}{ours:14.2f}  of ffmpeg's {ffmpeg:.2f}: ratio {ours / ffmpeg:.3f}")
    stages: defaultdict[str, float] = defaultdict(float)
    for cost in costs:
        for name, spent in cost.stages.items():
            stages[name] += spent
    print("\nprocessor seconds per stage, share, and seconds of media per processor second")
    for name, spent in sorted(stages.items(), key=lambda item: -item[1]):
        print(f"{name:24}{spent:10.2f}{spent / cpu_s:8.1%}{media_s / max(spent, 1e-9):10.0f} ×")
    rate = clips / (curate_s * min(workers, os.cpu_count() or workers))
    print(f"\n{rate:.2f} clips/s per core: {rate / NEMO_CLIPS_PER_S:.0f} × NeMo Curator's floor for CPU transcoding")
    print(f"{media_s / curate_s:.0f} × real time; peak memory of a worker {_peak_mb():.0f} MB")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


if __name__ == "__main__":
    main()
