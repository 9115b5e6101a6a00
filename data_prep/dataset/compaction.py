"""Compaction: the contents of many small files of a set, copied into few large ones.

Workers share nothing, so each segment is committed as separate small files. Reading a million of them one by one takes
an hour from a disk and days from an object store. So the driver also copies their contents into Parquet files of
`SEGMENTS_PER_FILE` segments each, while segments are committed.

The small files remain the source of truth. A reader asks for the segments that the ledger names: rows of other segments
are ignored, and a segment that no large file holds (because the driver was killed) is read from its small file. Where
a segment was committed twice, the latest large file is right.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dataset import storage

SEGMENTS_PER_FILE = 10_000


class CompactedTable:
    """The large files in one folder of the set at `root`. The first column of each is the segment's id."""

    def __init__(self, root: str | Path, folder: str, schema: pa.Schema) -> None:
        self.folder, self.schema = storage.at(root, folder), schema

    def add(self, table: pa.Table) -> None:
        """Write the rows of a table to a new file."""
        self._write(max((int(name.split(".")[0]) for name in self._names()), default=0) + 1, table)

    def take(self, left: set[str]) -> Iterator[pa.Table]:
        """Yield the rows of the segments in `left`, file by file. Remove from `left` the segments that were found."""
        for name in self._names():
            table = self._read(name)
            taken = _taken(left, table)
            if any(taken):
                yield table.filter(pa.array(taken, pa.bool_()))

    def tidy(self, left: set[str]) -> None:
        """Keep only the latest rows of each segment in `left`. Remove from `left` the segments that were found.

        Call it from the driver, while no segment is being committed.
        """
        for name in self._names():
            table = self._read(name)
            taken = _taken(left, table)
            if not all(taken):
                self._write(int(name.split(".")[0]), table.filter(pa.array(taken, pa.bool_())))

    def _names(self) -> list[str]:
        """Names of the files, latest first."""
        return sorted((name for name in storage.names(self.folder) if name.endswith(".parquet")), reverse=True)

    def _read(self, name: str) -> pa.Table:
        return pq.ParquetFile(io.BytesIO(storage.read(storage.at(self.folder, name)))).read().cast(self.schema)

    def _write(self, number: int, table: pa.Table) -> None:
        with storage.atomic_write(storage.at(self.folder, f"{number:08}.parquet")) as out:
            pq.write_table(table, out, compression="zstd")


def _taken(left: set[str], table: pa.Table) -> list[bool]:
    """For each row, whether its segment is in `left`. Removes the segments of the table from `left`."""
    ids = table["segment_id"].to_pylist()
    taken = [one in left for one in ids]
    left.difference_update(ids)
    return taken
