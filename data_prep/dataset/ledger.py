"""The ledger: which segments of a set are committed. A segment's entry is the last file written for it.

If `ledger/{segment_id}.json` exists, the segment's shard and manifest file are complete. A resumed run processes the
segments without an entry. Readers of a set use only segments with an entry, and never list the other folders.

The file's name shows that a segment is done, so a resumed run lists one folder and opens no file. The contents of the
entries are also compacted into `ledger_parts/*.parquet` (`data_prep.dataset.compaction`).
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
    """The ledger entry of one committed segment: where it comes from, and what was kept of it.

    Attributes:
        segment_id, uri, content_key, start_s, end_s, size: as in `data_prep.clip.Segment`, but `end_s` is None for inf.
        shard: path of the tar relative to the set; "" when no clip was kept.
        shard_size: size of the tar, bytes; 0 without a tar.
        considered, kept: number of all clips, and of the kept ones.
        dropped, failed: number of dropped and of failed clips by reason; for `failed`, the reason is the stage.
        considered_s, kept_s: total length of all clips and of the kept ones, seconds.
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
        """Assert that no clip is lost: clips considered = kept + dropped + failed, and at least one clip."""
        total = self.kept + sum(self.dropped.values()) + sum(self.failed.values())
        where = f"segment {self.segment_id} ({self.uri})"
        assert self.considered == total, f"{where}: {self.considered} clips considered, {total} with a verdict"
        assert total > 0, f"{where}: no clip"

    def to_json(self) -> bytes:
        """Return the content of the entry's file: JSON in UTF-8."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1).encode()


class Ledger:
    """The ledger of the set at `root`: which segments are committed, and the entry of each."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._compacted = CompactedTable(root, layout.LEDGER_PARTS, _PART_SCHEMA)

    def done(self) -> set[str]:
        """Return the ids of the committed segments. It lists the entries' names and reads no entry."""
        folder = storage.at(self.root, layout.LEDGER)
        if storage.is_remote(folder):  # one request lists 1,000 names: list each first digit in parallel
            with ThreadPoolExecutor(16) as threads:
                names = [n for found in threads.map(storage.names, [folder] * 16, "0123456789abcdef") for n in found]
        else:
            names = storage.names(folder)
        return {name[:-5] for name in names if name.endswith(".json")}

    def commit(self, entry: Entry) -> None:
        """Write a segment's entry, which commits the segment. Its shard and manifest file must already be written.

        Raises:
            FileExistsError: the segment is already committed with a different entry.
        """
        entry.check()
        storage.put_once(self._path(entry.segment_id), entry.to_json())

    def entry(self, segment_id: str) -> Entry:
        """Return the entry of a committed segment.

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
        """Copy entries that were just committed to a new compacted file."""
        self._compacted.add(_as_table(entries))

    def tidy(self) -> None:
        """Rewrite the compacted files so that they contain each committed entry exactly once, and no other.

        Call it from the driver, while no segment is being committed.
        """
        left = self.done()
        self._compacted.tidy(left)
        rest = sorted(left)
        for start in range(0, len(rest), SEGMENTS_PER_FILE):
            self.compact(self._read_entries(rest[start : start + SEGMENTS_PER_FILE]))

    def _table(self) -> pa.Table:
        """Return the entries of all committed segments as a table (`_PART_SCHEMA`), ordered by segment id."""
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
    """Sum the entries of a set. Assert for each that no clip is lost (`Entry.check`).

    Returns:
        `segments` (their number); `considered` and `kept` (numbers of clips), `considered_s` and `kept_s` (seconds);
        `dropped` and `failed` (numbers of clips by reason).
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
