"""The ledger: which segments of a set are committed. A segment's entry is the last file written for it.

`ledger/{segment_id}.json` means that the segment's shard and manifest file are complete. A resumed run does the
segments without an entry. Readers of a set follow the entries and never list the other folders.

The file's name is enough to know that a segment is done, so a resume lists one folder and opens no file. The contents
of the entries are also compacted into `ledger_parts/*.parquet` (`data_prep.dataset.compaction`).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from data_prep.dataset import layout, storage
from data_prep.dataset.compaction import SEGMENTS_PER_FILE, CompactedTable

_COUNTS = pa.map_(pa.string(), pa.int64())
_PART_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("segment_id", "uri", "content_key")),
        *((name, pa.float64()) for name in ("start_s", "end_s")),
        ("size", pa.int64()),
        ("shard", pa.string()),
        *((name, pa.int64()) for name in ("shard_size", "considered", "kept")),
        *((name, _COUNTS) for name in ("dropped", "failed")),
        *((name, pa.float64()) for name in ("considered_s", "kept_s")),
    ]
)


@dataclass(frozen=True)
class Entry:
    """One committed segment.

    Attributes:
        segment_id, uri, content_key, start_s, end_s, size: as in `data_prep.clip.Segment` (`end_s` None for inf).
        shard: path of the tar relative to the set, "" when no clip was kept.
        shard_size: bytes of the tar.
        considered, kept: number of clips.
        dropped, failed: number of clips by reason (for `failed`, by stage).
        kept_s: seconds of the kept clips.
        considered_s: seconds of all clips.
    """

    segment_id: str
    uri: str
    content_key: str
    start_s: float
    end_s: float | None
    size: int
    shard: str
    shard_size: int
    considered: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    considered_s: float = 0.0
    kept_s: float = 0.0

    def check(self) -> None:
        """Assert the conservation law: clips considered = kept + dropped + failed, and at least one clip."""
        total = self.kept + sum(self.dropped.values()) + sum(self.failed.values())
        where = f"segment {self.segment_id} ({self.uri})"
        assert self.considered == total, f"{where}: {self.considered} clips considered, {total} with a verdict"
        assert total > 0, f"{where}: no clip"

    def to_json(self) -> bytes:
        """The content of the entry's file."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1).encode()


class Ledger:
    """The ledger of the set at `root`."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._compacted = CompactedTable(root, layout.LEDGER_PARTS, _PART_SCHEMA)

    def done(self) -> set[str]:
        """Ids of the committed segments. Opens no entry."""
        folder = storage.at(self.root, layout.LEDGER)
        if storage.is_remote(folder):  # a request lists a thousand names, so list by first hexadecimal digit at once
            with ThreadPoolExecutor(16) as threads:
                names = [n for found in threads.map(storage.names, [folder] * 16, "0123456789abcdef") for n in found]
        else:
            names = storage.names(folder)
        return {name[:-5] for name in names if name.endswith(".json")}

    def commit(self, entry: Entry) -> None:
        """Write a segment's entry. Its shard and manifest file must be written before.

        Raises:
            FileExistsError: the segment was committed before with a different entry.
        """
        entry.check()
        storage.put_once(self._path(entry.segment_id), entry.to_json())

    def entry(self, segment_id: str) -> Entry:
        """Read the entry of a committed segment.

        Raises:
            ValueError: the segment is not committed.
        """
        try:
            return Entry(**json.loads(storage.read(self._path(segment_id))))
        except FileNotFoundError:
            raise ValueError(f"segment {segment_id} is not committed in {self.root}") from None

    def entries(self) -> Iterator[Entry]:
        """Yield the entry of every committed segment, ordered by id."""
        table = self._table()
        for batch in table.to_batches(max_chunksize=SEGMENTS_PER_FILE):
            for row in batch.to_pylist():
                yield Entry(**{**row, "dropped": dict(row["dropped"]), "failed": dict(row["failed"])})

    def compact(self, entries: Iterable[Entry]) -> None:
        """Write entries that were just committed to a compacted file."""
        self._compacted.add(_as_table(entries))

    def tidy(self) -> None:
        """Make the compacted files hold each committed entry once.

        Call it from the driver, while no segment is being committed.
        """
        left = self.done()
        self._compacted.tidy(left)
        rest = sorted(left)
        for start in range(0, len(rest), SEGMENTS_PER_FILE):
            self.compact(self._read_entries(rest[start : start + SEGMENTS_PER_FILE]))

    def _table(self) -> pa.Table:
        """The entries of all committed segments, ordered by id."""
        left = self.done()
        tables = list(self._compacted.take(left))
        return pa.concat_tables([*tables, _as_table(self._read_entries(sorted(left)))]).sort_by("segment_id")

    def _read_entries(self, segment_ids: list[str]) -> Iterator[Entry]:
        for data in storage.read_many([self._path(segment_id) for segment_id in segment_ids]):
            yield Entry(**json.loads(data))

    def _path(self, segment_id: str) -> str:
        return storage.at(self.root, layout.ledger_entry(segment_id))


def _as_table(entries: Iterable[Entry]) -> pa.Table:
    rows = [asdict(entry) for entry in entries]
    for row in rows:
        row["dropped"], row["failed"] = sorted(row["dropped"].items()), sorted(row["failed"].items())
    return pa.Table.from_pylist(rows, schema=_PART_SCHEMA)


def totals(entries: Iterable[Entry]) -> dict:
    """Sum the entries of a set, and check the conservation law of each.

    Returns:
        `segments`, `considered`, `kept` (numbers), `considered_s`, `kept_s` (seconds), and `dropped` and `failed` as
        number of clips by reason.
    """
    dropped, failed = Counter[str](), Counter[str]()
    segments = considered = kept = 0
    considered_s = kept_s = 0.0
    for entry in entries:
        entry.check()
        dropped.update(entry.dropped)
        failed.update(entry.failed)
        segments, considered, kept = segments + 1, considered + entry.considered, kept + entry.kept
        considered_s, kept_s = considered_s + entry.considered_s, kept_s + entry.kept_s
    return {
        "segments": segments,
        "considered": considered,
        "kept": kept,
        "dropped": dict(sorted(dropped.items())),
        "failed": dict(sorted(failed.items())),
        "considered_s": round(considered_s, 3),
        "kept_s": round(kept_s, 3),
    }
