"""Write and read a segment of a set: one WebDataset tar, one manifest file, one ledger entry, written in this order.

For each kept clip the tar contains `{clip_id}.json`; `{clip_id}.mp4` (or `.mkv`), `{clip_id}.safetensors` or both; and
after captioning `{clip_id}.caption.json`. Members are sorted by name and have fixed headers, so equal clips give
equal bytes. The manifest has one row per clip considered, with the byte ranges of its members in the tar, so a reader
fetches one clip without reading the other clips.
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

from data_prep.clip import VERDICT_COLUMNS, Clip, Segment, Tag
from data_prep.dataset import layout, storage
from data_prep.dataset.ledger import Entry, Ledger

MANIFEST_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("segment_id", "clip_id", "uri", "content_key")),
        *VERDICT_COLUMNS,
        ("caption", pa.string()),  # JSON; "{}" before captioning
        ("info", pa.string()),  # JSON of `Clip.info`
        ("shard", pa.string()),  # path relative to the set; "" for a clip that is in no tar
        ("media_suffix", pa.string()),
        *((name, pa.int64()) for name in ("media_offset", "media_size", "sample_offset", "sample_size")),  # bytes
    ]
)


@dataclass(frozen=True)
class Committed:
    """A committed segment: its ledger entry and its rows of the manifest."""

    entry: Entry
    manifest: pa.Table


def commit_segment(root: str | Path, segment: Segment) -> Committed:
    """Write a judged segment to the set at `root`: its tar, its manifest file, and its ledger entry last.

    Writing the same segment again writes the same bytes. Every clip must have a verdict, and every kept clip its media
    or its sample (asserted).
    """
    clips = sorted(segment.clips, key=lambda clip: (clip.start_s, clip.end_s, clip.clip_id))
    _assert_complete(segment, clips)
    shard = layout.shard(segment.segment_id) if any(clip.kept for clip in clips) else ""
    ranges: dict[str, tuple[int, int]] = {}
    shard_size = 0
    if shard:
        with storage.atomic_write(storage.at(root, shard)) as out:
            ranges = write_tar(out, [member for clip in clips if clip.kept for member in members(clip)])
            shard_size = out.tell()
    rows = [_row(segment, clip, shard, ranges) for clip in clips]
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    with storage.atomic_write(storage.at(root, layout.manifest(segment.segment_id))) as out:
        # These few rows need neither dictionaries nor statistics, which are a third of the bytes and of the time.
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
        # Count members of the tar, so that `Entry.check` compares what was written, and not only the input.
        kept=sum(1 for name in ranges if name.endswith(".json") and not name.endswith(".caption.json")),
        dropped=dict(Counter(clip.reason for clip in clips if clip.verdict == "dropped")),
        failed=dict(Counter(clip.reason for clip in clips if clip.verdict == "failed")),
        considered_s=round(sum(seconds), 6),
        kept_s=round(sum(length for clip, length in zip(clips, seconds, strict=True) if clip.kept), 6),
    )
    Ledger(root).commit(entry)
    return Committed(entry, table)


def read_committed(root: str | Path, segment_id: str) -> Committed:
    """Return the ledger entry and manifest rows of a committed segment, as `commit_segment` does.

    Raises:
        ValueError: the segment is not committed.
    """
    entry = Ledger(root).entry(segment_id)
    (table,) = read_segment_manifests(root, [segment_id])
    return Committed(entry, table.cast(MANIFEST_SCHEMA))


def read_segment(root: str | Path, segment_id: str, *, media: bool = True) -> Segment:
    """Return a committed segment with all its clips, ordered by time.

    Args:
        root: the set.
        segment_id: the segment.
        media: whether to read the media and sample bytes of kept clips; else they are empty.

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
    """Yield the manifest rows of committed segments, one table per segment, in the given order.

    Raises:
        ValueError: a segment's manifest file is missing.
    """
    paths = [storage.at(root, layout.manifest(segment_id)) for segment_id in segment_ids]
    try:
        for data in storage.read_many(paths):
            yield pq.ParquetFile(io.BytesIO(data)).read()
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename or error} is missing; the set is incomplete: make it again, or give another"
        ) from None


def read_member(root: str | Path, shard: str, offset: int, size: int) -> bytes:
    """Return the bytes of one tar member; b"" for size 0, which means that there is no such member.

    Raises:
        ValueError: the shard is missing, or ends before `offset + size`.
    """
    return storage.read_range(root, shard, offset, size) if size else b""


def members(clip: Clip) -> list[tuple[str, bytes]]:
    """Return the tar members of a kept clip, as (name, bytes)."""
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
    """Write a tar with its members sorted by name. Equal members give equal bytes.

    Headers are POSIX ustar, with mode 0644, and 0 for owner and time.

    Args:
        out: the file to write to.
        named: (name, bytes) of each member.

    Returns:
        name → (offset of the member's data in the tar, its size), both in bytes.
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


def _assert_complete(segment: Segment, clips: list[Clip]) -> None:
    """Assert that a segment can be committed: different clip ids, and verdicts with what they need."""
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
    """Return the manifest row of a clip; `ranges` gives (offset, size) of each member of the tar at `shard`."""
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
