"""The protocol of an output set: settings first, segments whole, summary last.

A segment is committed by `data_prep.dataset.shards.commit_segment`: tar, manifest part, ledger entry, in this order,
with the conservation law checked. This module adds what belongs to the whole set: `settings.yaml`, written before the
first segment and compared by every later run, and `summary.json` with `index.parquet` and `duplicates.parquet`,
written from the ledger when every segment is there.
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
class Summary:
    """What the driver learns of a committed segment: entry, manifest rows, and seconds spent in each stage."""

    committed: Committed
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        return self.committed.entry


def commit_segments(root: str | Path, segments: list[Segment], seconds: list[dict[str, float]]) -> list[Summary]:
    """Commit segments to the set at `root`. Doing it again writes the same bytes."""
    summaries = []
    for segment, spent in zip(segments, seconds, strict=True):
        start = time.perf_counter()
        committed = commit_segment(root, segment)
        spent = {**spent, "commit": time.perf_counter() - start}
        summaries.append(Summary(committed, spent))
    return summaries


def claim(root: str | Path, settings: Mapping[str, Any], inputs: list[str]) -> None:
    """Make `root` the output of these settings: write `settings.yaml`, or compare with the one that stands.

    Inputs may grow from run to run (they are recorded, not compared); settings may not change, since the segments of
    one set must be judged alike. While no segment is committed they may (a mistake is being mended).

    Raises:
        ValueError: the set was made with other settings, or `root` is a file; says which setting.
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
    """Write `duplicates.parquet`, `index.parquet` and, last, `summary.json` from the ledger; gives the summary.

    Args:
        seconds: spent in each stage by this run, summed over workers.
        wall_s: what this run took, start to end.
    """
    ledger = Ledger(root)
    ledger.tidy()
    tidy_manifest(root)
    for folder in layout.COMMIT_FOLDERS:
        storage.sweep(storage.at(root, folder))
    counts = totals(ledger.entries())
    doubles = near_duplicates.write(root, each_manifest(root))
    build_index(root, doubles)
    summary = {
        "verb": verb,
        "dataset_id": dataset_id(root),
        **counts,
        "near_duplicates": len(doubles),
        "hours_considered": round(counts["considered_s"] / 3600, 4),
        "hours_kept": round(counts["kept_s"] / 3600, 4),
        "stage_seconds": {name: round(spent, 3) for name, spent in seconds.items()},
        "wall_seconds": round(wall_s, 1),
    }
    storage.put(storage.at(root, layout.SUMMARY), json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n")
    return summary


def read_summary(root: str | Path) -> dict[str, Any] | None:
    """The summary of a finished set, or None while a segment was committed after it or none was written."""
    try:
        summary = json.loads(storage.read(storage.at(root, layout.SUMMARY)))
    except FileNotFoundError:
        return None
    return summary if summary["segments"] == len(Ledger(root).done()) else None


def dataset_id(root: str | Path) -> str:
    """A name for exactly these segments under these settings: a 20-digit hash of the ledger and the settings."""
    digest = hashlib.sha256()
    path = storage.at(root, layout.SETTINGS)
    if storage.exists(path):
        digest.update(json.dumps(yaml.safe_load(storage.read(path))["settings"], sort_keys=True).encode())
    for entry in Ledger(root).entries():
        digest.update(json.dumps([entry.segment_id, entry.content_key, entry.shard_size, entry.kept]).encode())
    return digest.hexdigest()[:20]
