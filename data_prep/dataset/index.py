"""Read a set as two tables: the manifest (a row per clip considered) and the index (a row per encoded sample).

Both contain only committed segments: a manifest file without a ledger entry is a leftover of a killed run. Manifest
rows are read from the compacted files (`data_prep.dataset.compaction`); rows that are missing there are read from the
manifest file of their segment.
"""

import fcntl
import hashlib
import io
import json
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.dataset import layout, storage
from data_prep.dataset.compaction import SEGMENTS_PER_FILE, CompactedTable
from data_prep.dataset.ledger import Ledger
from data_prep.dataset.shards import MANIFEST_SCHEMA, read_segment_manifests
from data_prep.packaged_weights import CACHE

_NAMES = ["shard", "bucket"]  # columns with few distinct values, read as Arrow dictionaries to save memory
# Up to this size (half a million rows) each process reads its own copy of the index into memory.
_HELD_BYTES = 8 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # its content changes at each boot
_CACHED_S = 30 * 24 * 3600  # a cached index that was not used for so long is deleted, seconds
INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("shard", pa.string()),  # path relative to the set
        ("offset", pa.int64()),  # where the data of the .safetensors member begins in the shard, bytes
        ("size", pa.int64()),  # of that data, bytes
        ("bucket", pa.string()),  # "f49_h128_w192_a51": frames, height, width, audio latents
        ("video_tokens", pa.int64()),
        ("audio_tokens", pa.int64()),
        ("text_tokens", pa.int64()),
    ]
)


def compacted_manifest(root: str | Path) -> CompactedTable:
    """Return the compacted manifest of the set at `root`. Only the driver of a run writes to it."""
    return CompactedTable(root, layout.MANIFEST_PARTS, MANIFEST_SCHEMA)


def each_manifest(root: str | Path) -> Iterator[pa.Table]:
    """Yield the manifest rows of every committed segment, as tables of thousands of segments, in no particular order.

    Raises:
        ValueError: a segment's manifest file is missing.
    """
    left = Ledger(root).done()
    yield from compacted_manifest(root).take(left)
    rest = sorted(left)
    for start in range(0, len(rest), SEGMENTS_PER_FILE):
        manifests = read_segment_manifests(root, rest[start : start + SEGMENTS_PER_FILE])
        yield pa.concat_tables(manifests).cast(MANIFEST_SCHEMA)


def tidy_manifest(root: str | Path) -> None:
    """Rewrite the compacted manifest so that it contains each committed segment exactly once, and no other.

    Call it from the driver, while no segment is being committed.
    """
    left, compacted = Ledger(root).done(), compacted_manifest(root)
    compacted.tidy(left)
    rest = sorted(left)
    for start in range(0, len(rest), SEGMENTS_PER_FILE):
        manifests = read_segment_manifests(root, rest[start : start + SEGMENTS_PER_FILE])
        compacted.add(pa.concat_tables(manifests).cast(MANIFEST_SCHEMA))


def read_manifest(root: str | Path) -> pa.Table:
    """Return the manifest rows (`MANIFEST_SCHEMA`) of every committed segment, ordered by segment id, then time.

    Raises:
        ValueError: the set has no committed segment, or a segment's manifest file is missing.
    """
    tables = list(each_manifest(root))
    if not tables:
        raise ValueError(f"{root} holds no committed segment; give the output folder of a finished run")
    names = ("segment_id", "start_s", "end_s", "clip_id")
    return pa.concat_tables(tables).sort_by([(name, "ascending") for name in names]).combine_chunks()


def round_robin(rows: Iterable[dict], limit: int) -> list[dict]:
    """Return up to `limit` rows of a manifest, so that all sound classes occur: one row of each class in turn."""
    by_class: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        by_class[row["sound_class"]].append(row)
    turns = zip_longest(*(by_class[name] for name in sorted(by_class)))
    return [row for turn in turns for row in turn if row is not None][:limit]


def build_index(root: str | Path, without: Container[str] = ()) -> str:
    """Write the index of a set, `<root>/index.parquet`: one row per encoded sample, ordered by shard, then offset.

    Bucket and token counts are copied from the clip's `info` (`bucket`, `video_tokens`, `audio_tokens`,
    `text_tokens`), where `encode` wrote them. The index of a set without samples has no rows.

    Args:
        root: the set.
        without: ids of the clips to leave out (near duplicates).

    Returns:
        The path or URI of the index.
    """
    tables = [INDEX_SCHEMA.empty_table()]
    for manifest in each_manifest(root):
        found = manifest.filter(pc.field("sample_size") > 0)
        found = found.filter(pa.array([name not in without for name in found["clip_id"].to_pylist()], pa.bool_()))
        infos = [json.loads(info) for info in found["info"].to_pylist()]
        columns = {
            "clip_id": found["clip_id"],
            "shard": found["shard"],
            "offset": found["sample_offset"],
            "size": found["sample_size"],
        }
        for name in ("bucket", "video_tokens", "audio_tokens", "text_tokens"):
            columns[name] = pa.array([info[name] for info in infos], INDEX_SCHEMA.field(name).type)
        tables.append(pa.table(columns, schema=INDEX_SCHEMA))
    table = pa.concat_tables(tables).sort_by([("shard", "ascending"), ("offset", "ascending")])
    path = storage.at(root, layout.INDEX)
    with storage.atomic_write(path) as out:
        pq.write_table(table, out, compression="zstd")
    return path


def read_index(root: str | Path) -> pa.Table:
    """Return the index of an encoded set: `INDEX_SCHEMA`, with `shard` and `bucket` as Arrow dictionaries.

    A large index is converted once per machine to an Arrow file in the user's cache (`KINOTONE_CACHE`). The file is
    mapped into memory, so that all processes of a machine share one copy.

    Raises:
        ValueError: the set has no index.
    """
    path = storage.at(root, layout.INDEX)
    try:
        if storage.size(path) <= _HELD_BYTES:
            return pq.ParquetFile(io.BytesIO(storage.read(path)), read_dictionary=_NAMES).read()
        return pa.ipc.open_file(pa.memory_map(str(_cached(path)))).read_all()
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: give the output folder of `kinotone encode` or `kinotone prepare`"
        ) from None


def _cached(path: str) -> Path:
    """Return the path of an Arrow copy of the index at `path`, in the cache; make the copy if it does not exist.

    Of several processes that call it at once, one makes the copy, and the others wait for it.
    """
    # The file is not flushed to the disk, since that takes longer than everything else. So a crash of the machine may
    # leave it incomplete. The boot id in the key makes sure that it is not used after the next boot.
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    key = hashlib.sha256(f"{path} {storage.version(path)} {boot}".encode()).hexdigest()[:32]
    target = CACHE / "indexes" / f"{key}.arrow"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for old in target.parent.iterdir():  # a mapped index stays readable after its file is deleted
                if time.time() - old.stat().st_mtime > _CACHED_S:
                    old.unlink()
            source = io.BytesIO(storage.read(path)) if storage.is_remote(path) else pa.memory_map(path)
            half = target.with_suffix(".half")
            with half.open("wb") as out:
                _write_arrow(pq.ParquetFile(source, read_dictionary=_NAMES), out)
            half.replace(target)
        target.touch()
    return target


def _write_arrow(parquet: pq.ParquetFile, out: BinaryIO) -> None:
    """Write the index in `parquet` to `out` in Arrow's file format, in batches of rows to need little memory.

    Each row group of the Parquet file has its own dictionary, but an Arrow file has one per column. So the values of
    all dictionaries are collected first.
    """
    found: dict[str, list[pa.Array]] = {name: [] for name in _NAMES}
    for group in range(parquet.num_row_groups):
        for name, column in zip(_NAMES, parquet.read_row_group(group, _NAMES).columns, strict=True):
            found[name] += [chunk.dictionary for chunk in column.chunks]
    values = {name: pa.concat_arrays(arrays).unique() for name, arrays in found.items()}
    dictionary = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([field.with_type(dictionary) if field.name in _NAMES else field for field in INDEX_SCHEMA])
    with pa.ipc.new_file(out, schema) as file:
        for batch in parquet.iter_batches(batch_size=1 << 20):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            for name in _NAMES:
                known = pc.index_in(columns[name].dictionary, values[name])  # pyright: ignore[reportAttributeAccessIssue]
                codes = known.take(columns[name].indices)
                columns[name] = pa.DictionaryArray.from_arrays(codes, values[name])
            file.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))
