"""Does a tree behave like the commit before it? Run both by the command line and compare what they write.

    python -m benchmarks.same_behaviour --before COMMIT
    python -m benchmarks.same_behaviour --before COMMIT --after TREE --work FOLDER --only curate train-dit

Each stage is one `kinotone` command. The tree of COMMIT runs it on its own outputs of the stages before; the tree after
runs the same command on the same inputs, so that a stage that differs does not make later ones differ. All commands
write to the same path, so that recorded paths are equal.

Equal means: the same files with the same bytes, the same row for every clip considered, and, for a training run, every
number of every step to the bit. `LEFT_OUT` names what depends on the clock or on chance; the table ends with it.

`--work` keeps the outputs of COMMIT, so that the next call runs only the tree after. Outputs and logs are then in
FOLDER/COMMIT and FOLDER/after. Exit code 0: all equal. 1: something differs or a command failed.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
MEDIA = ROOT.parent / "shared" / "media"
PACKAGES = ("model", "data_prep", "captioning", "pipelines", "jobs")

_RUN = "--recipe tiny --train.steps 20 --train.log-every 1"
# Stage → command. {stage} is what the tree before wrote in that stage, {media} the folder of real clips.
STAGES = {
    "synth": "synth --recipe tiny --synth.clips 12 --synth.seed 7",
    "curate": "curate --recipe tiny --input {synth}/clips",
    "caption": "caption --recipe tiny --input {curate}",
    "encode-untrained": "encode --recipe tiny --input {caption}",
    "train-video-vae": f"train video-vae {_RUN} --input {{curate}}",
    "train-audio-vae": f"train audio-vae {_RUN} --input {{curate}}",
    "train-vocoder": f"train vocoder {_RUN} --input {{curate}}",
    "train-upscaler": f"train upscaler {_RUN} --input {{curate}} --init-from {{train-video-vae}}",
    "train-text-projection": f"train text-projection {_RUN} --input {{encode-untrained}}",
    "encode": "encode --recipe tiny --input {caption} --encode.video-vae {train-video-vae}/weights"
    " --encode.audio-vae {train-audio-vae}/weights --encode.text-conditioner {train-text-projection}/weights",
    "train-dit": f"train dit {_RUN} --input {{encode}} --init-from {{train-text-projection}}",
    "train-video-vae-adversary": "train video-vae --recipe tiny --train.steps 8 --train.log-every 1 --input {curate}"
    " --train.video-vae.still-fraction 0.2 --train.video-vae.adversary.weight 0.5"
    " --train.video-vae.adversary.start-step 2 --train.video-vae.adversary.channels 8",
    "train-vocoder-adversary": "train vocoder --recipe tiny --train.steps 8 --train.log-every 1 --input {curate}"
    " --init-from {train-audio-vae} --train.vocoder.decoded-fraction 0.5 --train.vocoder.adversary.weight 1"
    " --train.vocoder.adversary.start-step 2 --train.vocoder.adversary.channels 4",
    "curate-media": "curate --recipe tiny --input {media}/clips {media}/broken",
    "caption-media": "caption --recipe tiny --input {curate-media}"
    " --caption.transcribe.whisper package:whisper-tiny-en",
}
# What of a file differs from run to run of one tree. Pattern of names → (fields of JSON, reason); no field: the file.
LEFT_OUT: dict[str, tuple[set[str], str]] = {
    "mlflow_run.json": (set(), "a random id"),
    "ray/*": (set(), "Ray's own notes"),
    "checkpoints/*": (set(), "DeepSpeed pickles names of modules; `weights` has what was trained"),
    "summary.json": ({"stage_seconds", "wall_seconds", "wall_s", "steps_per_s"}, "times"),
    "metrics.jsonl": (
        {"samples_per_s", "tokens_per_s", "tflop_per_s", "steps_per_s"}
        | {"loader_wait", "checkpoint_s", "checkpoint_write_s"},
        "times",
    ),
}
# These are compared by their rows, sorted: they are written in the order in which workers finish.
UNORDERED = ("ledger_parts/*.parquet", "manifest_parts/*.parquet")
# The line of the report that says how long the run took.
TIMES_IN_REPORT = rb'<p class="soft">[^\n<]* s in all\.</p>'
# Runs at the start of every Python process of a command, Ray's workers too. Take nothing from the tree that the
# environment has installed, and stop where a package is another tree's.
_HOOK = """
import importlib.util, os, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
for name in {packages!r}:
    found = importlib.util.find_spec(name)
    if not found or list(found.submodule_search_locations or []) != [os.path.join({tree!r}, name)]:
        os.write(2, (name + " is not that of {tree}\\n").encode())
        os._exit(70)
"""


class Failed(Exception):
    """A command failed; the message is the last line that it printed."""


def run(stage: str, tree: Path, kept: Path, places: dict[str, str], work: Path) -> None:
    """Run the command of a stage in `tree` and move its output to `kept`/stage, its log beside it.

    Raises:
        Failed: the command's exit code is not 0.
    """
    for old in (work / "run", work / "hook", kept / stage):
        shutil.rmtree(old, ignore_errors=True)
    for new in (work / "run", work / "hook", kept):
        new.mkdir(parents=True, exist_ok=True)
    (work / "hook" / "sitecustomize.py").write_text(_HOOK.format(packages=PACKAGES, tree=str(tree)))
    path = os.pathsep.join([str(work / "hook"), str(tree)])
    command = [sys.executable, "-m", "jobs.cli", *words(stage, places, work)]
    log = kept / f"{stage}.log"
    with log.open("wb") as said:
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tree, env=env, stdout=said, stderr=subprocess.STDOUT)
    if done.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise Failed(f"exit code {done.returncode}: {last.strip()} (see {log})")
    shutil.rmtree(work / "run" / stage / "checkpoints", ignore_errors=True)  # large, and not compared
    (work / "run" / stage).rename(kept / stage)


def words(stage: str, places: dict[str, str], work: Path) -> list[str]:
    """The command line of a stage."""
    return [*(word.format(**places) for word in STAGES[stage].split()), "--output", str(work / "run" / stage)]


def needed(stage: str) -> list[str]:
    """The stages that a stage reads, and those that these read, in order."""
    own = [name for name in re.findall(r"{([\w-]+)}", STAGES[stage]) if name in STAGES]
    return sorted({*own, *(name for one in own for name in needed(one))}, key=list(STAGES).index)


@contextmanager
def checkout(commit: str) -> Iterator[Callable[[], Path]]:
    """The tree of a commit in a temporary folder, unpacked on the first call."""
    with tempfile.TemporaryDirectory(prefix="kinotone-before-") as folder:

        @cache
        def tree() -> Path:
            with tarfile.open(fileobj=BytesIO(_git("archive", commit))) as tar:
                tar.extractall(folder, filter="data")
            return Path(folder).resolve()

        yield tree


def _git(*args: str) -> bytes:
    return subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True).stdout


def contents(folder: Path) -> tuple[dict[str, str], Counter[str]]:
    """What a stage wrote: name → value, in the order in which differences are told; and how much of what it is."""
    numbers, rows, files = dict[str, str](), dict[str, str](), dict[str, str]()
    count = Counter[str]()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        fields = next((fields for pattern, (fields, _) in LEFT_OUT.items() if fnmatch(name, pattern)), None)
        if fields is not None and not fields:
            continue
        count["files"] += 1
        if name == "metrics.jsonl":
            for record in map(json.loads, path.read_text().splitlines()):
                values = _values(f"step {record['step']}", record, fields)
                count.update(steps=1, numbers=len(values))
                numbers |= values
        elif name == "summary.json":
            files |= _values(name, json.loads(path.read_text()), fields)
        elif any(fnmatch(name, pattern) for pattern in UNORDERED):
            files[f"rows of {name}"] = _hash("\n".join(sorted(map(repr, _table(path)))).encode())
        else:
            files[name] = _hash(re.sub(TIMES_IN_REPORT, b"", path.read_bytes()))
        if fnmatch(name, "manifest/*.parquet"):
            for row in _table(path):
                count["verdicts"] += 1
                rows |= _values(f"clip {row['clip_id']} of {Path(row['uri']).name}", row, fields)
    return {**numbers, **rows, **files}, count


def _values(name: str, record: dict, left_out: set[str] | None) -> dict[str, str]:
    """Each field as text, in which a float stands to the bit."""
    return {f"{name}, {key}": repr(value) for key, value in record.items() if key not in (left_out or ())}


def _table(path: Path) -> list[dict]:
    return pq.ParquetFile(path).read().to_pylist()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def difference(before: dict[str, str], after: dict[str, str]) -> str:
    """The first difference and how many there are; "" where there is none."""
    names = list(dict.fromkeys([*before, *after]))
    wrong = [name for name in names if before.get(name) != after.get(name)]
    if not wrong:
        return ""
    texts = [values.get(wrong[0], "not there") for values in (before, after)]
    # Of long texts, show the place where they part.
    apart = next((n for n, pair in enumerate(zip(*texts, strict=False)) if len(set(pair)) > 1), 0)
    start = max(0, apart - 30) if max(map(len, texts)) > 70 else 0
    was, now = (f"{'…' * bool(start)}{text[start : start + 60]}{'…' * (len(text) > start + 60)}" for text in texts)
    return f"{len(wrong)} DIFFER, the first: {wrong[0]}: {was} → {now}"


def compare(stage: str, before: Path, after: Path) -> tuple[str, str]:
    """What of a stage was compared, and the first difference."""
    (was, count), (now, _) = contents(before / stage), contents(after / stage)
    compared = ", ".join(f"{count[what]} {what}" for what in ("steps", "numbers", "verdicts", "files") if count[what])
    return compared, difference(was, now)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="commit to compare with")
    parser.add_argument("--after", type=Path, default=ROOT, help="folder of the tree after; default: this one")
    parser.add_argument("--media", type=Path, default=MEDIA, help="folder with clips/ and broken/")
    parser.add_argument("--work", type=Path, help="folder that keeps the outputs; default: a temporary one")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=str([*STAGES]))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kinotone-same-") as scratch:
        try:
            return same(given, Path(given.work or scratch).resolve())
        except Failed as error:
            print(f"{given.before} cannot be compared with: {error}")
            return 1


def same(given: argparse.Namespace, work: Path) -> int:
    """Run and compare the stages that are asked for; prints the table and gives the exit code."""
    commit = _git("rev-parse", "--short=12", f"{given.before}^{{commit}}").decode().strip()
    before, after, media = work / commit, work / "after", given.media.resolve()
    places = {"media": str(media)} | {stage: str(before / stage) for stage in STAGES}
    skipped = [s for s in given.only if "{media}" in STAGES[s] and not (media / "clips").is_dir()]
    chosen = [stage for stage in STAGES if stage in given.only and stage not in skipped]
    spent = Counter[str]()
    table = [(stage, "", f"skipped: {media}/clips is not there") for stage in skipped]

    def timed(name: str, stage: str, tree: Path, kept: Path) -> None:
        began = time.monotonic()
        run(stage, tree, kept, places, work)
        spent[name] += round(time.monotonic() - began)
        print(f"{name} {stage}: {time.monotonic() - began:.0f} s", flush=True)

    with checkout(commit) as tree:
        for stage in [stage for stage in STAGES if stage in chosen or any(stage in needed(one) for one in chosen)]:
            marker, command = before / f"{stage}.json", json.dumps(words(stage, places, work))
            if not (marker.exists() and marker.read_text() == command):
                timed(commit, stage, tree(), before)
                marker.write_text(command)
    for stage in chosen:
        try:
            timed("after", stage, given.after.resolve(), after)
            compared, differs = compare(stage, before, after)
        except Failed as error:
            compared, differs = "", f"FAILED, {error}"
        table.append((stage, compared, differs or "equal"))

    width = max(len(compared) for _, compared, _ in table)
    print(f"\n{commit} and {given.after.resolve()}")
    print("\n".join(f"{stage:<27}{compared:<{width + 2}}{result}" for stage, compared, result in table))
    print("\nleft out:")
    for name, (fields, reason) in LEFT_OUT.items():
        print(f"  {name}: {reason}" + (f" ({', '.join(sorted(fields))})" if fields else ""))
    print("  report.html: the line with the times\n  order of rows:", ", ".join(UNORDERED))
    print("\n" + "; ".join(f"{name} took {seconds} s" for name, seconds in spent.items()))
    return int(any(result != "equal" and stage not in skipped for stage, _, result in table))


if __name__ == "__main__":
    sys.exit(main())
