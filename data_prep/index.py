"""The set as two tables: the manifest (a row per clip considered) and the index (a row per encoded sample).

Both are read from the manifests of committed segments only, gathered (`data_prep.parts`) or one by one; a manifest
without a ledger entry is a leftover of a killed run.
"""

import io
import json
from collections.abc import Container, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import storage
from data_prep.ledger import Ledger
from data_prep.parts import PART_ROWS, Parts
from data_prep.shards import MANIFEST_SCHEMA, read_manifest_parts

MANIFEST_PARTS = "manifest_parts"
INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("shard", pa.string()),  # path inside the set
        ("offset", pa.int64()),  # of the .safetensors member's data, bytes
        ("size", pa.int64()),  # bytes
        ("bucket", pa.string()),  # "f49_h128_w192_a51": frames, height, width, audio latents
        ("video_tokens", pa.int64()),
        ("audio_tokens", pa.int64()),
        ("text_tokens", pa.int64()),
    ]
)


def manifest_parts(root: str | Path) -> Parts:
    """The manifest gathered into large files, which the driver of a run keeps."""
    return Parts(root, MANIFEST_PARTS, MANIFEST_SCHEMA)


def each_manifest(root: str | Path) -> Iterator[pa.Table]:
    """Every clip considered in the set's committed segments, thousands at a time and in no order.

    Raises:
        ValueError: a segment's part is missing.
    """
    left = Ledger(root).done()
    yield from manifest_parts(root).take(left)
    rest = sorted(left)
    for start in range(0, len(rest), PART_ROWS):
        yield pa.concat_tables(read_manifest_parts(root, rest[start : start + PART_ROWS])).cast(MANIFEST_SCHEMA)


def tidy_manifest(root: str | Path) -> None:
    """Make the gathered manifest hold each committed segment once; for the driver, while nothing is being committed."""
    left, parts = Ledger(root).done(), manifest_parts(root)
    parts.tidy(left)
    rest = sorted(left)
    for start in range(0, len(rest), PART_ROWS):
        parts.add(pa.concat_tables(read_manifest_parts(root, rest[start : start + PART_ROWS])).cast(MANIFEST_SCHEMA))


def read_manifest(root: str | Path) -> pa.Table:
    """Every clip considered in the set's committed segments (`MANIFEST_SCHEMA`), ordered by segment id, then time.

    Raises:
        ValueError: `root` holds no committed segment, or a part is missing.
    """
    tables = list(each_manifest(root))
    if not tables:
        raise ValueError(f"{root} holds no committed segment; give the output folder of a finished run")
    names = ("segment_id", "start_s", "end_s", "clip_id")
    return pa.concat_tables(tables).sort_by([(name, "ascending") for name in names]).combine_chunks()


def build_index(root: str | Path, without: Container[str] = ()) -> str:
    """Write `<root>/index.parquet`: one row per encoded sample, ordered by clip id. Gives its path.

    Bucket and token counts are read from the clip's info (`bucket`, `video_tokens`, `audio_tokens`, `text_tokens`),
    where `encode` put them. A set without samples gets an index without rows.

    Args:
        without: clips that are left out: near duplicates.
    """
    rows = []
    for row in _samples(root):
        if row["clip_id"] in without:
            continue
        info = json.loads(row["info"])
        rows.append(
            {
                "clip_id": row["clip_id"],
                "shard": row["shard"],
                "offset": row["sample_offset"],
                "size": row["sample_size"],
                "bucket": info["bucket"],
                **{name: info[name] for name in ("video_tokens", "audio_tokens", "text_tokens")},
            }
        )
    rows.sort(key=lambda row: row["clip_id"])
    path = storage.at(root, "index.parquet")
    with storage.whole(path) as out:
        pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), out, compression="zstd")
    return path


def _samples(root: str | Path) -> Iterator[dict]:
    for table in each_manifest(root):
        found = table.select(["clip_id", "shard", "sample_offset", "sample_size", "info"])
        yield from found.filter(pc.field("sample_size") > 0).to_pylist()


def read_index(root: str | Path) -> pa.Table:
    """The index of an encoded set (`INDEX_SCHEMA`).

    Raises:
        ValueError: the set has no index.
    """
    path = storage.at(root, "index.parquet")
    try:
        data = storage.read(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: give the output folder of `kinotone encode` or `kinotone prepare`"
        ) from None
    return pq.ParquetFile(io.BytesIO(data)).read()
