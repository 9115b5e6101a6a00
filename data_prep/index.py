"""The set as two tables: the manifest (a row per clip considered) and the index (a row per encoded sample).

Both are read from the manifest parts of committed segments only; a part without a ledger entry is a leftover of a
killed run.
"""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import storage
from data_prep.ledger import Ledger
from data_prep.shards import MANIFEST_SCHEMA, read_manifest_parts

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


def read_manifest(root: str | Path) -> pa.Table:
    """Every clip considered in the set's committed segments (`MANIFEST_SCHEMA`), ordered by segment id, then time.

    Raises:
        ValueError: `root` holds no committed segment, or a part is missing.
    """
    done = sorted(Ledger(root).done())
    if not done:
        raise ValueError(f"{root} holds no committed segment; give the output folder of a finished run")
    return pa.concat_tables(read_manifest_parts(root, done)).cast(MANIFEST_SCHEMA)


def build_index(root: str | Path) -> str:
    """Write `<root>/index.parquet`: one row per encoded sample, ordered by clip id. Gives its path.

    Bucket and token counts are read from the clip's info (`bucket`, `video_tokens`, `audio_tokens`, `text_tokens`),
    where `encode` put them. A set without samples gets an index without rows.
    """
    rows = []
    for row in read_manifest(root).select(["clip_id", "shard", "sample_offset", "sample_size", "info"]).to_pylist():
        if not row["sample_size"]:
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
