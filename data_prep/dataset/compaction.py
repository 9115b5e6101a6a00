"""Compaction: copy the contents of many small files of a set into few large ones, to read them fast.

Workers do not write to common files, so each segment is committed as separate small files. Reading a million of them
one by one takes an hour from a disk and days from an object store. So the driver also copies their contents into
Parquet files of `SEGMENTS_PER_FILE` segments each, while segments are committed.

The small files remain authoritative. A reader asks for the segments that the ledger names: rows of other segments are
ignored, and a segment that is in no large file (because the driver was killed) is read from its small file. If a
segment is in several large files, the latest one is right.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dataset import storage

SEGMENTS_PER_FILE = 10_000


class CompactedTable:
    """A table of a set that is stored in a few large files in one folder. A later file has a higher number.

    Args:
        root: the set.
        folder: name of the folder in the set.
        schema: columns of the table; one is `segment_id`.
    """

    def __init__(self, root: str | Path, folder: str, schema: pa.Schema) -> None:
        self.folder, self.schema = storage.at(root, folder), schema

    def add(self, table: pa.Table) -> None:
        """Write the rows of a table to a new file with the next number."""
        self._write(max((int(name.split(".")[0]) for name in self._names()), default=0) + 1, table)

    def take(self, left: set[str]) -> Iterator[pa.Table]:
        """Yield the rows of the segments whose ids are in `left`, file by file, latest first.

        Ids that were found are removed from `left`, so at the end it contains the segments that are in no file.
        """
        for name in self._names():
            table = self._read(name)
            taken = _taken(left, table)
            if any(taken):
                yield table.filter(pa.array(taken, pa.bool_()))

    def tidy(self, left: set[str]) -> None:
        """Delete all rows except the latest ones of each segment whose id is in `left`.

        Ids that were found are removed from `left`, so at the end it contains the segments that are in no file.
        Call it from the driver, while no segment is being committed.
        """
        for name in self._names():
            table = self._read(name)
            taken = _taken(left, table)
            if not all(taken):
                self._write(int(name.split(".")[0]), table.filter(pa.array(taken, pa.bool_())))

    def _names(self) -> list[str]:
        """Return the names of the files, latest first."""
        return sorted((name for name in storage.names(self.folder) if name.endswith(".parquet")), reverse=True)

    def _read(self, name: str) -> pa.Table:
        return pq.ParquetFile(io.BytesIO(storage.read(storage.at(self.folder, name)))).read().cast(self.schema)

    def _write(self, number: int, table: pa.Table) -> None:
        with storage.atomic_write(storage.at(self.folder, f"{number:08}.parquet")) as out:
            pq.write_table(table, out, compression="zstd")


def _taken(left: set[str], table: pa.Table) -> list[bool]:
    """Return for each row of a table whether its segment's id is in `left`; then remove the table's ids from `left`."""
    ids = table["segment_id"].to_pylist()
    taken = [one in left for one in ids]
    left.difference_update(ids)
    return taken
