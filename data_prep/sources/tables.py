"""Read lists of sources: Parquet, JSONL or CSV files with one source per row. They are read in pieces, not at once.

Columns: `uri` (or `url`, or `path`; relative paths start at the list's folder). Optional: `start` and `end` in seconds,
to take a part of the source; `caption`, a description of it; `size` in bytes, so that a large source in an object store
is divided among workers (the size of a local file is looked up).
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dataset import storage

SUFFIXES = (".parquet", ".jsonl", ".csv")
_NAMES = ("uri", "url", "path")
_OTHERS = ("start", "end", "caption", "size")


@dataclass(frozen=True)
class Listed:
    """A source or a part of one: address, size in bytes (0 if unknown), span in seconds, and description."""

    uri: str
    size: int
    start_s: float = 0.0
    end_s: float = math.inf
    caption: str = ""


def read_list(path: str) -> Iterator[Listed]:
    """Yield the source in each row of a list.

    Args:
        path: a local path or an fsspec URI, with a suffix in `SUFFIXES`.

    Raises:
        ValueError: there is no column of addresses, or a row is wrong; names the row (from 1) and the fix.
    """
    reader = {".parquet": _parquet, ".jsonl": _jsonl, ".csv": _csv}[os.path.splitext(path)[1].lower()]
    folder = path.rpartition("/")[0]
    with storage.open_read(path) as file:
        for number, row in enumerate(reader(file, path), 1):
            try:
                yield _listed(row, folder)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path} row {number}: {error}") from None


def _listed(row: Mapping[str, Any], folder: str) -> Listed:
    """Convert a row to a source. A relative path starts at `folder`; the size of a local file is looked up.

    Raises:
        ValueError: the row has no address, or its times are wrong.
    """
    name = next((row[name] for name in _NAMES if row.get(name)), None)
    if not isinstance(name, str):
        raise ValueError(f"no address; give one of {', '.join(_NAMES)} as text")
    if "://" not in name:
        name = name if os.path.isabs(name) else storage.at(folder, name) if folder else os.path.abspath(name)
    name = name.removeprefix("file://")
    start, end = _seconds(row, "start", 0.0), _seconds(row, "end", math.inf)
    if not 0 <= start < end:
        raise ValueError(f"start {start:g} s, end {end:g} s; give 0 ≤ start < end")
    size = int(row.get("size") or 0)
    if not size and "://" not in name and os.path.exists(name):
        size = os.path.getsize(name)
    return Listed(name, size, start, end, str(row.get("caption") or ""))


def _seconds(row: Mapping[str, Any], name: str, otherwise: float) -> float:
    """Return column `name` of a row as a number, or `otherwise` if the row does not give it."""
    value = row.get(name)
    if value is None or value == "":
        return otherwise
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} {value!r} is not a number of seconds") from None


def _columns(names: list[str], path: str) -> list[str]:
    """Return those of the columns `names` that are read. Raise ValueError if none of them holds addresses."""
    if not set(names) & set(_NAMES):
        found = ", ".join(names[:8]) or "none"
        raise ValueError(
            f"{path} has no column {', '.join(_NAMES)} (it has {found}); give one of these names to its addresses"
        )
    return [name for name in names if name in (*_NAMES, *_OTHERS)]


def _parquet(file: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from None
    for batch in table.iter_batches(4096, columns=_columns(table.schema_arrow.names, path)):
        yield from batch.to_pylist()


def _jsonl(file: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} row {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f'{path} row {number}: not a JSON object; give one per line, {{"uri": …}}')
        if number == 1:
            _columns(list(row), path)
        yield row


def _csv(file: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
    rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    try:
        _columns(list(rows.fieldnames or []), path)
        yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} row {max(1, rows.line_num)}: not CSV in UTF-8 ({error})") from None
