"""The commit protocol of an output set: settings first, each segment atomically, summary last.

    1. claim(root, settings)        settings.yaml                   a later run with other settings is refused
    2. commit_segments(root, …)     for each segment, in any order and from any worker:
                                      shards/ID.tar                 media of the kept clips
                                      manifest/ID.parquet           one row per clip
                                      ledger/ID.json                last: the segment is committed when this exists
    3. finish(root)                 duplicates.parquet, index.parquet
                                    summary.json                    last: the set is finished when this exists

A run that is killed leaves at most files without a ledger entry. The next run repeats the segments without an entry and
writes the same bytes. `commit_segment` in `data_prep.dataset.shards` writes the three files of a segment and checks the
conservation law: clips considered = kept + dropped + failed.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_prep.clip import Segment
from data_prep.curation import near_duplicates
from data_prep.dataset import layout, storage
from data_prep.dataset.index import build_index, each_manifest, tidy_manifest
from data_prep.dataset.ledger import Entry, Ledger, totals
from data_prep.dataset.shards import Committed, commit_segment
from data_prep.settings import differences


@dataclass(frozen=True)
class SegmentSummary:
    """What a worker tells the driver about one committed segment.

    Attributes:
        committed: the ledger entry and the manifest rows.
        seconds: the time spent on the segment in each stage, by the stage's name; "commit" is a stage too.
    """

    committed: Committed
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """The ledger entry of the segment: its id and source, and its counts of clips."""
        return self.committed.entry


def commit_segments(root: str | Path, segments: list[Segment], seconds: list[dict[str, float]]) -> list[SegmentSummary]:
    """Commit segments to the set at `root`. Committing a segment again writes the same bytes.

    Args:
        root: the output set.
        segments: segments whose clips have their verdicts.
        seconds: for each segment, the seconds spent in each stage, by the stage's name.

    Returns:
        One summary per segment, in the same order; its `seconds` include "commit".
    """
    summaries = []
    for segment, spent in zip(segments, seconds, strict=True):
        start = time.perf_counter()
        committed = commit_segment(root, segment)
        spent = {**spent, "commit": time.perf_counter() - start}
        summaries.append(SegmentSummary(committed, spent))
    return summaries


def claim(root: str | Path, settings: Mapping[str, Any], inputs: list[str]) -> None:
    """Write `settings.yaml` into `root`; if it has segments, check first that they were made with these settings.

    Inputs may grow from run to run; they are recorded but not compared. Settings must stay equal, because the segments
    of one set must be judged alike. They may change while no segment is committed, so that the user can fix a mistake.

    Args:
        root: the output set.
        settings: the settings of each stage, and what else the output depends on.
        inputs: the names of the sources, or the folder of the set that is read.

    Raises:
        ValueError: the set was made with other settings (the message names them), or `root` is a file.
    """
    if not storage.is_remote(root) and storage.local(root).is_file():
        raise ValueError(f"output {root} is a file; give a folder")
    path = storage.at(root, layout.SETTINGS)
    known_inputs: list[str] = []
    begun = bool(Ledger(root).done())
    if begun and storage.exists(path):
        known = yaml.safe_load(storage.read(path))
        changes = differences(known["settings"], json.loads(json.dumps(settings)))
        if changes:
            shown = "; ".join(map(str, changes[:3])) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
            raise ValueError(f"output {root} was made with other settings ({shown}): use them, or another output")
        known_inputs = known["inputs"]
        if set(inputs) <= set(known_inputs):
            return
    elif begun:
        raise ValueError(f"output {root} holds segments but no settings.yaml; use another output")
    merged = known_inputs + [name for name in inputs if name not in known_inputs]
    text = yaml.safe_dump({"inputs": merged, "settings": json.loads(json.dumps(settings))}, sort_keys=False)
    storage.put(path, text.encode())


def finish(root: str | Path, verb: str, seconds: Mapping[str, float], wall_s: float) -> dict[str, Any]:
    """Write `duplicates.parquet`, `index.parquet` and, last, `summary.json` from the ledger.

    Call it from the driver when every segment is committed and no worker writes any more.

    Args:
        root: the output set.
        verb: the verb that made it.
        seconds: the seconds that this run spent in each stage, summed over workers.
        wall_s: seconds from the start of this run to its end.

    Returns:
        The content of `summary.json`.
    """
    ledger = Ledger(root)
    ledger.tidy()
    tidy_manifest(root)
    for folder in layout.COMMIT_FOLDERS:
        storage.sweep(storage.at(root, folder))
    counts = totals(ledger.entries())
    duplicates = near_duplicates.write(root, each_manifest(root))
    build_index(root, duplicates)
    summary = {
        "verb": verb,
        "dataset_id": dataset_id(root),
        **counts,
        "near_duplicates": len(duplicates),
        "hours_considered": round(counts["considered_s"] / 3600, 4),
        "hours_kept": round(counts["kept_s"] / 3600, 4),
        "stage_seconds": {name: round(spent, 3) for name, spent in seconds.items()},
        "wall_seconds": round(wall_s, 1),
    }
    storage.put(storage.at(root, layout.SUMMARY), json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n")
    return summary


def read_summary(root: str | Path) -> dict[str, Any] | None:
    """Read `summary.json` of a set. Return None when there is none, or when segments were committed after it."""
    try:
        summary = json.loads(storage.read(storage.at(root, layout.SUMMARY)))
    except FileNotFoundError:
        return None
    return summary if summary["segments"] == len(Ledger(root).done()) else None


def dataset_id(root: str | Path) -> str:
    """Return an id of the set's content: a hash of its settings and ledger entries, 20 hexadecimal digits."""
    digest = hashlib.sha256()
    path = storage.at(root, layout.SETTINGS)
    if storage.exists(path):
        digest.update(json.dumps(yaml.safe_load(storage.read(path))["settings"], sort_keys=True).encode())
    for entry in Ledger(root).entries():
        digest.update(json.dumps([entry.segment_id, entry.content_key, entry.shard_size, entry.kept]).encode())
    return digest.hexdigest()[:20]
