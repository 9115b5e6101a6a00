"""Many small files of a set read as a few large ones.

A segment is committed as small files of its own, since workers share nothing. Read one by one, a million of them take
an hour on a disk and days on an object store; so the driver also gathers what they say into Parquet files of
`SEGMENTS_PER_FILE` segments each, as they are committed. The small files stay the truth: rows of a part count only for
the segments that are asked for, which come from the ledger, and a segment that is in no part (the driver was killed) is
read from its own file. A segment that was done again is right in the latest part.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dataset import storage

SEGMENTS_PER_FILE = 10_000


class CompactedTable:
    """The parts in one folder of the set at `root`; their first column is the segment's id."""

    def __init__(self, root: str | Path, folder: str, schema: pa.Schema) -> None:
        self.folder, self.schema = storage.at(root, folder), schema

    def add(self, table: pa.Table) -> None:
        """Write a part."""
        self._write(max((int(name.split(".")[0]) for name in self._names()), default=0) + 1, table)

    def take(self, left: set[str]) -> Iterator[pa.Table]:
        """The rows of the segments in `left`, part by part; the segments are taken out of it."""
        for name in self._names():
            table = self._read(name)
            taken = _taken(left, table)
            if any(taken):
                yield table.filter(pa.array(taken, pa.bool_()))

    def tidy(self, left: set[str]) -> None:
        """Remove the rows of other segments than those in `left`, and all but the latest of each of these; the segments
        that have rows are taken out of it. For the driver alone, while nothing is being committed."""
        for name in self._names():
            table = self._read(name)
            taken = _taken(left, table)
            if not all(taken):
                self._write(int(name.split(".")[0]), table.filter(pa.array(taken, pa.bool_())))

    def _names(self) -> list[str]:
        """The latest first."""
        return sorted((name for name in storage.names(self.folder) if name.endswith(".parquet")), reverse=True)

    def _read(self, name: str) -> pa.Table:
        return pq.ParquetFile(io.BytesIO(storage.read(storage.at(self.folder, name)))).read().cast(self.schema)

    def _write(self, number: int, table: pa.Table) -> None:
        with storage.whole(storage.at(self.folder, f"{number:08}.parquet")) as out:
            pq.write_table(table, out, compression="zstd")


def _taken(left: set[str], table: pa.Table) -> list[bool]:
    """Which rows of a part are of a segment in `left`; these segments are taken out of it."""
    ids = table["segment_id"].to_pylist()
    taken = [one in left for one in ids]
    left.difference_update(ids)
    return taken
