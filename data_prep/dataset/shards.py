"""A segment on disk: one WebDataset tar, one manifest part, one ledger entry, written in this order.

The tar holds, for each kept clip, `{clip_id}.mp4` (or `.mkv`) and/or `{clip_id}.safetensors`, `{clip_id}.json` and,
once captioned, `{clip_id}.caption.json`; sorted by name, with fixed headers, so that its bytes are a function of the
clips alone. The manifest part has one row per clip considered, with the byte ranges of its members in the tar: a
reader fetches one clip without reading its neighbours.
"""

import io
import json
import math
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.clip import Clip, Segment, Tag
from data_prep.dataset import storage
from data_prep.dataset.ledger import Entry, Ledger

MANIFEST_SCHEMA = pa.schema(
    [
        ("segment_id", pa.string()),
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("content_key", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("error", pa.string()),
        ("sound_class", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        (
            "tags",
            pa.list_(
                pa.struct(
                    [
                        ("label", pa.string()),
                        ("start_s", pa.float64()),
                        ("end_s", pa.float64()),
                        ("score", pa.float64()),
                    ]
                )
            ),
        ),
        ("caption", pa.string()),  # JSON; "{}" before captioning
        ("info", pa.string()),  # JSON
        ("shard", pa.string()),  # path inside the set; "" when the clip is in no tar
        ("media_suffix", pa.string()),
        ("media_offset", pa.int64()),
        ("media_size", pa.int64()),
        ("sample_offset", pa.int64()),
        ("sample_size", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Committed:
    """A segment as it was committed: its ledger entry, and its rows of the manifest."""

    entry: Entry
    manifest: pa.Table


def commit_segment(root: str | Path, segment: Segment) -> Committed:
    """Commit a judged segment: tar, manifest part, and its ledger entry last.

    Writing the same segment again writes the same bytes. Every clip must have its verdict, every kept clip its media
    or sample (asserted).
    """
    clips = sorted(segment.clips, key=lambda clip: (clip.start_s, clip.end_s, clip.clip_id))
    _check(segment, clips)
    shard = f"shards/{segment.segment_id}.tar" if any(clip.kept for clip in clips) else ""
    ranges: dict[str, tuple[int, int]] = {}
    shard_size = 0
    if shard:
        with storage.whole(storage.at(root, shard)) as out:
            ranges = write_tar(out, [member for clip in clips if clip.kept for member in members(clip)])
            shard_size = out.tell()
    rows = [_row(segment, clip, shard, ranges) for clip in clips]
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    with storage.whole(storage.at(root, "manifest", f"{segment.segment_id}.parquet")) as out:
        # Of a few rows: what speeds up the reading of many is a third of the bytes and of the time to write them.
        pq.write_table(table, out, compression="snappy", use_dictionary=False, write_statistics=False)
    seconds = [clip.end_s - clip.start_s if math.isfinite(clip.end_s) else 0.0 for clip in clips]
    entry = Entry(
        segment_id=segment.segment_id,
        uri=segment.uri,
        content_key=segment.content_key,
        start_s=segment.start_s,
        end_s=segment.end_s if math.isfinite(segment.end_s) else None,
        size=segment.size,
        shard=shard,
        shard_size=shard_size,
        considered=len(rows),
        # Counted from what stands in the tar, so that the conservation law says something about the output.
        kept=sum(1 for name in ranges if name.endswith(".json") and not name.endswith(".caption.json")),
        dropped=dict(Counter(clip.reason for clip in clips if clip.verdict == "dropped")),
        failed=dict(Counter(clip.reason for clip in clips if clip.verdict == "failed")),
        considered_s=round(sum(seconds), 6),
        kept_s=round(sum(length for clip, length in zip(clips, seconds, strict=True) if clip.kept), 6),
    )
    Ledger(root).commit(entry)
    return Committed(entry, table)


def read_committed(root: str | Path, segment_id: str) -> Committed:
    """What `commit_segment` gave.

    Raises:
        ValueError: the segment is not committed.
    """
    entry = Ledger(root).entry(segment_id)
    (table,) = read_segment_manifests(root, [segment_id])
    return Committed(entry, table.cast(MANIFEST_SCHEMA))


def read_segment(root: str | Path, segment_id: str, *, media: bool = True) -> Segment:
    """A committed segment with all its clips, in the order of time; kept clips bring their media and sample bytes.

    Args:
        media: False leaves `media` and `sample` empty.

    Raises:
        ValueError: the segment is not committed, or a file of it is missing.
    """
    entry = Ledger(root).entry(segment_id)
    (table,) = read_segment_manifests(root, [segment_id])
    clips = []
    for row in table.to_pylist():
        clip = Clip(
            **{name: row[name] for name in ("clip_id", "start_s", "end_s", "verdict", "reason", "error")},
            sound_class=row["sound_class"],
            scores=dict(row["scores"]),
            tags=[Tag(**tag) for tag in row["tags"]],
            media_suffix=row["media_suffix"],
            caption=json.loads(row["caption"]),
            info=json.loads(row["info"]),
        )
        if media and row["shard"]:
            clip.media = read_member(root, row["shard"], row["media_offset"], row["media_size"])
            clip.sample = read_member(root, row["shard"], row["sample_offset"], row["sample_size"])
        clips.append(clip)
    return Segment(
        segment_id=segment_id,
        uri=entry.uri,
        start_s=entry.start_s,
        end_s=math.inf if entry.end_s is None else entry.end_s,
        size=entry.size,
        content_key=entry.content_key,
        clips=clips,
    )


def read_segment_manifests(root: str | Path, segment_ids: list[str]) -> Iterator[pa.Table]:
    """The manifest parts of committed segments, in the order asked for.

    Raises:
        ValueError: a part is missing.
    """
    paths = [storage.at(root, "manifest", f"{segment_id}.parquet") for segment_id in segment_ids]
    try:
        for data in storage.read_many(paths):
            yield pq.ParquetFile(io.BytesIO(data)).read()
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename or error} is missing; the set is incomplete: make it again, or give another"
        ) from None


def read_member(root: str | Path, shard: str, offset: int, size: int) -> bytes:
    """The bytes of one tar member; b"" for size 0 (the member is absent).

    Raises:
        ValueError: the shard is missing or shorter than that.
    """
    return storage.read_range(root, shard, offset, size) if size else b""


def members(clip: Clip) -> list[tuple[str, bytes]]:
    """A kept clip's tar members as (name, bytes)."""
    about = {
        "clip_id": clip.clip_id,
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "sound_class": clip.sound_class,
        "scores": clip.scores,
        "tags": [asdict(tag) for tag in clip.tags],
        "info": clip.info,
    }
    found = [("json", _json(about))]
    if clip.media:
        found.append((clip.media_suffix, clip.media))
    if clip.caption:
        found.append(("caption.json", _json(clip.caption)))
    if clip.sample:
        found.append(("safetensors", clip.sample))
    return [(f"{clip.clip_id}.{suffix}", data) for suffix, data in found]


def write_tar(out: BinaryIO, named: list[tuple[str, bytes]]) -> dict[str, tuple[int, int]]:
    """Write a tar, sorted by name; gives name → (offset of the member's data, its size), in bytes.

    POSIX ustar headers with mode 0644 and every owner and time 0.
    """
    ranges: dict[str, tuple[int, int]] = {}
    position = 0
    for name, data in sorted(named):
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        block = header.tobuf(tarfile.USTAR_FORMAT)
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        out.write(block)
        out.write(data)
        out.write(padding)
        ranges[name] = (position + len(block), len(data))
        position += len(block) + len(data) + len(padding)
    end = position + 2 * tarfile.BLOCKSIZE
    out.write(bytes(end + -end % tarfile.RECORDSIZE - position))
    return ranges


def _check(segment: Segment, clips: list[Clip]) -> None:
    where = f"segment {segment.segment_id} ({segment.uri})"
    assert clips, f"{where} has no clip: a source always ends in at least one verdict"
    assert len({clip.clip_id for clip in clips}) == len(clips), f"{where} has two clips of one id"
    for clip in clips:
        if clip.verdict == "kept":
            assert clip.media or clip.sample, f"{where}: kept clip {clip.clip_id} has neither media nor sample"
        else:
            assert clip.verdict in ("dropped", "failed"), f"{where}: verdict {clip.verdict!r}"
            assert clip.reason, f"{where}: clip {clip.clip_id} is {clip.verdict} without a reason"


def _row(segment: Segment, clip: Clip, shard: str, ranges: dict[str, tuple[int, int]]) -> dict:
    media = ranges.get(f"{clip.clip_id}.{clip.media_suffix}", (0, 0))
    sample = ranges.get(f"{clip.clip_id}.safetensors", (0, 0))
    return {
        "segment_id": segment.segment_id,
        "clip_id": clip.clip_id,
        "uri": segment.uri,
        "content_key": segment.content_key,
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "verdict": clip.verdict,
        "reason": clip.reason,
        "error": clip.error,
        "sound_class": clip.sound_class,
        "scores": sorted(clip.scores.items()),
        "tags": [asdict(tag) for tag in clip.tags],
        "caption": _json(clip.caption).decode(),
        "info": _json(clip.info).decode(),
        "shard": shard if clip.kept else "",
        "media_suffix": clip.media_suffix,
        "media_offset": media[0],
        "media_size": media[1],
        "sample_offset": sample[0],
        "sample_size": sample[1],
    }


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
