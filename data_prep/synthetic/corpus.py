"""Generate the corpus on disk.

    <output>/clips/000000.mp4 …   the clips
    <output>/truth/000000.json …  the labels of each clip, written before the clip
    <output>/labels.parquet       all labels as one table (`labels.SCHEMA`), written last
    <output>/settings.yaml, summary.json

Clip k is a function of the settings and k alone. A clip is written under another name and renamed when it is complete.
So after any interruption the same call continues, and makes no complete clip again.
"""

import hashlib
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from data_prep.dataset import layout
from data_prep.media.write_mp4 import write_mp4
from data_prep.settings import SynthSettings
from data_prep.synthetic import labels
from data_prep.synthetic.shot import Format, Kind, Shot
from data_prep.synthetic.subjects.ball import ball
from data_prep.synthetic.subjects.bars import bars
from data_prep.synthetic.subjects.face import face
from data_prep.synthetic.subjects.music import music
from data_prep.synthetic.subjects.nature import bird, clock
from data_prep.synthetic.subjects.quiet import quiet

Progress = Callable[[str, int, int], None]

_INFORMATIVE: dict[str, Kind] = {
    "ball": ball,
    "bars": bars,
    "speech": face,
    "music": music,
    "bird": bird,
    "clock": clock,
}
_QUIET = {name: quiet(name) for name in ("silence", "near_silent", "hiss", "hum", "tone", "no_audio")}
_VERSION = 3  # raise it when a change of the code makes other clips from the same settings
_FADE_S = 0.002  # fade at each end of a shot's sound, so that a cut does not click


def generate(settings: SynthSettings, output: Path, progress: Progress | None = None) -> Path:
    """Make the clips of the corpus that are missing in the folder, then the table of labels and the summary.

    Args:
        settings: what to make.
        output: folder of the corpus; created if it is missing.
        progress: called with ("synth", clips done, clips in total).

    Returns:
        `output`.

    Raises:
        ValueError: the folder holds a corpus of other settings or a larger one, or a package is missing.
    """
    output = Path(output)
    _prepare_folder(settings, output)
    kinds = kinds_of(settings)
    wanted = [k for k in range(settings.clips) if not _is_complete(settings, output, k)]
    done = settings.clips - len(wanted)
    if progress:
        progress("synth", done, settings.clips)
    for _ in _make_all(settings, output, [(k, kinds[k]) for k in wanted]):
        done += 1
        if progress:
            progress("synth", done, settings.clips)
    rows = [json.loads(_truth_file(output, k).read_text("utf8"))["truth"] for k in range(settings.clips)]
    half = output / ".labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=labels.SCHEMA), half)
    half.replace(output / "labels.parquet")
    summary = {
        "clips": settings.clips,
        "made": len(wanted),
        "seconds": round(sum(row["duration_s"] for row in rows), 3),
        **{
            name: dict(sorted(Counter(row[name] for row in rows).items()))
            for name in ("kind", "sound_class", "verdict")
        },
    }
    (output / layout.SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", "utf8")
    return output


def kinds_of(settings: SynthSettings) -> list[str]:
    """Choose the kind of each clip.

    For every n, the first n clips have each kind as often as its share in the mix says, within one or two clips.
    """
    mix = settings.mix.model_dump()
    names = [name for name, share in mix.items() if share > 0]
    shares = np.array([mix[name] for name in names]) / sum(mix[name] for name in names)
    due = np.random.default_rng([settings.seed, 0x6B696E64]).random(len(names))
    kinds = []
    for _ in range(settings.clips):
        due += shares
        chosen = int(np.argmax(due))
        due[chosen] -= 1
        kinds.append(names[chosen])
    return kinds


def make_clip(settings: SynthSettings, index: int, kind: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
    """Make clip `index` in memory.

    Returns:
        Its labels (a row of `labels.SCHEMA`), frames (F, H, W, 3) uint8, and audio (2, N) float32 or None.
    """
    form = Format(settings.width, settings.height, settings.fps, settings.sample_rate)
    rng = np.random.default_rng([settings.seed, index])
    shortest, longest = int(np.ceil(settings.seconds_min * form.fps)), int(settings.seconds_max * form.fps)
    longest = max(shortest, longest)
    if kind == "cuts":
        longest = shortest + (longest - shortest) // 3
        mix = settings.mix.model_dump()
        among = [name for name in _INFORMATIVE if mix[name] > 0] or list(_INFORMATIVE)
        count = 3 if rng.random() < 0.3 else 2
        parts = [among[k % len(among)] for k in rng.permutation(max(len(among), count))[:count]]
        makers = [_INFORMATIVE[part] for part in parts]
    else:
        makers = [(_INFORMATIVE | _QUIET)[kind]]
    shots = [make(rng, form, int(rng.integers(shortest, longest + 1))) for make in makers]
    frames = np.concatenate([shot.frames for shot in shots]) if len(shots) > 1 else shots[0].frames
    return labels.truth(_name(index), index, kind, shots, form), frames, _joined(shots, form)


def _joined(shots: list[Shot], form: Format) -> np.ndarray | None:
    """Join the sounds of the shots, each faded in and out, to (2, N) float32. Return None if a shot has no audio."""
    if any(shot.audio is None for shot in shots):
        return None
    whole = np.zeros((2, form.samples(sum(len(shot.frames) for shot in shots))), np.float32)
    ramp = np.linspace(0, 1, round(_FADE_S * form.sample_rate), dtype=np.float32)
    first = 0
    for shot in shots:
        assert shot.audio is not None
        start = form.sample_of(first)
        part = shot.audio[:, : whole.shape[1] - start].copy()
        part[:, : len(ramp)] *= ramp
        part[:, -len(ramp) :] *= ramp[::-1]
        whole[:, start : start + part.shape[1]] = part
        first += len(shot.frames)
    return whole


def _make_all(settings: SynthSettings, output: Path, wanted: list[tuple[int, str]]):
    """Make the clips (index, kind), in a pool of processes if there are several. Yield the index of each one done."""
    workers = min(settings.workers or len(os.sched_getaffinity(0)), len(wanted))
    if workers < 2:
        for index, kind in wanted:
            yield _make_one(settings, output, index, kind)
        return
    # Do not fork: the caller may run threads (Ray, torch), whose locks a fork would copy in their present state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_caller)
    waiting, running = iter(wanted), set()
    try:
        while True:
            while len(running) < 2 * workers and (clip := next(waiting, None)) is not None:
                running.add(pool.submit(_make_one, settings, output, *clip))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_the_caller() -> None:
    """Ignore Ctrl-C in a process of the pool: the caller receives it too, and ends the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _make_one(settings: SynthSettings, output: Path, index: int, kind: str) -> int:
    """Make one clip, write its labels and then its file. Return its index."""
    truth, frames, audio = make_clip(settings, index, kind)
    note = _truth_file(output, index)
    half = note.with_name(f".{note.name}")
    half.write_text(json.dumps({"made_by": _made_by(settings), "truth": truth}, ensure_ascii=False), "utf8")
    half.replace(note)
    write_mp4(output / _name(index), frames, settings.fps, audio, settings.sample_rate)
    return index


def _is_complete(settings: SynthSettings, output: Path, index: int) -> bool:
    """Return whether the clip and its labels exist and were made with these settings."""
    note = _truth_file(output, index)
    if not (note.exists() and (output / _name(index)).exists()):
        return False
    return json.loads(note.read_text("utf8"))["made_by"] == _made_by(settings)


def _made_by(settings: SynthSettings) -> str:
    """Return a short hash of everything that a clip depends on, except its index."""
    text = json.dumps([_VERSION, settings.model_dump(exclude={"clips", "workers"})], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prepare_folder(settings: SynthSettings, output: Path) -> None:
    """Create the folders, and write the settings.

    Raises:
        ValueError: the folder holds a corpus of other settings, or a larger one.
    """
    saved = output / layout.SETTINGS
    if saved.exists():
        before = SynthSettings(**yaml.safe_load(saved.read_text("utf8")))
        if _made_by(before) != _made_by(settings):
            raise ValueError(f"{output} holds a corpus of other settings ({saved.name}); choose another output folder")
        if before.clips > settings.clips:
            raise ValueError(
                f"{output} holds {before.clips} clips and {settings.clips} are asked for; choose another output "
                f"folder, or ask for at least {before.clips}"
            )
    for folder in ("clips", "truth"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    saved.write_text(yaml.safe_dump(settings.model_dump(), sort_keys=False), "utf8")


def _name(index: int) -> str:
    return f"clips/{index:06d}.mp4"


def _truth_file(output: Path, index: int) -> Path:
    return output / "truth" / f"{index:06d}.json"
