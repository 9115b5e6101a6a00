"""A list of sources as a file: Parquet, JSONL or CSV, a source a row, read a few thousand rows at a time.

Columns: `uri` (or `url`, or `path`; relative ones begin at the list's folder), and if wanted `start` and `end` in
seconds (a part of the source), `caption` (what is known of it) and `size` in bytes (so that a large source on an object
store is shared among workers; of a local file it is looked up).
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
    """A source, or a part of one: where, seconds, what is known of it, bytes (0 where they are not known)."""

    uri: str
    size: int
    start_s: float = 0.0
    end_s: float = math.inf
    caption: str = ""


def read_list(path: str) -> Iterator[Listed]:
    """The rows of a list.

    Raises:
        ValueError: it has no column of addresses, or a row is wrong (counted from 1); says which, and the mend.
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
    value = row.get(name)
    if value is None or value == "":
        return otherwise
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} {value!r} is no number of seconds") from None


def _columns(names: list[str], path: str) -> list[str]:
    if not set(names) & set(_NAMES):
        found = ", ".join(names[:8]) or "none"
        raise ValueError(
            f"{path} has no column {', '.join(_NAMES)} (it has {found}); name the one with the addresses so"
        )
    return [name for name in names if name in (*_NAMES, *_OTHERS)]


def _parquet(file: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    for batch in table.iter_batches(4096, columns=_columns(table.schema_arrow.names, path)):
        yield from batch.to_pylist()


def _jsonl(file: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} row {number}: no JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f'{path} row {number}: no JSON object; give one a line, {{"uri": …}}')
        if number == 1:
            _columns(list(row), path)
        yield row


def _csv(file: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
    rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    try:
        _columns(list(rows.fieldnames or []), path)
        yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} row {max(1, rows.line_num)}: no CSV in UTF-8 ({error})") from None
