"""What a person points at → the segments to curate: files, folders (recursively), globs and fsspec URIs.

Listing opens no file: it knows names and sizes, and gives one segment after another in a stable order, so that a
hundred million sources need no more memory than one folder of them. A source of more than `PART_BYTES` is several
segments, equal lengths of it, since bytes bound both the work and what a worker holds of the clips it keeps. Where the
parts begin and end in seconds is found by the worker that opens the source: it divides its part into spans that are
decoded at once, by the time of the last packet, because headers lie.
"""

import glob
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_prep import storage
from data_prep.clip import Segment, stable_id
from data_prep.container import last_timestamp

MEDIA_SUFFIXES = frozenset(
    [
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "mts", "m2ts", "mpg", "mpeg"),
        *("flv", "wmv", "3gp", "3g2", "ogv", "mxf", "vob", "asf", "f4v"),
    ]
)
PART_BYTES = 256 << 20
# No video has fewer bytes per second. Smaller files are not opened to measure them, and a length beyond it is a lie.
_LEAST_BYTES_PER_S = 1_000


def list_sources(inputs: list[str]) -> list[Segment]:
    """`each_source` as a list, for as many as fit in memory (half a gigabyte a million)."""
    return list(each_source(inputs))


def each_source(inputs: list[str]) -> Iterator[Segment]:
    """The segments behind `inputs`, one after another; each source once. Nothing is opened.

    Args:
        inputs: files, folders, globs (`**` goes through folders), or fsspec URIs of either (`s3://bucket/folder`).

    Raises:
        ValueError: a path that does not exist, a folder or glob without media, or a file that is no media by its
            name; says which, and the mend. At the latest when the input's turn comes.
    """
    if not inputs:
        raise ValueError("no input: give at least one file, folder, glob or URI of videos")
    listed = [_remote(text) if storage.is_remote(text) else _local(text) for text in inputs]
    seen: set[str] = set()
    for uri, size in (found for one in listed for found in one):
        if len(inputs) > 1:  # within one input a source is met once
            if uri in seen:
                continue
            seen.add(uri)
        yield from _segments(uri, size)


def _segments(uri: str, size: int) -> Iterator[Segment]:
    parts = max(1, math.ceil(size / PART_BYTES))
    for part in range(parts):
        yield Segment(stable_id(uri, size, part, parts), uri, size=size, part=part, parts=parts)


def spans(segment: Segment, segment_s: float) -> list[Segment]:
    """A segment as spans of at most about `segment_s` seconds, with their times; opens the source if it may be longer.

    Raises:
        ValueError: a part of a source whose length cannot be measured; the first part then stands for all of it.
    """
    begin, end = segment.start_s, segment.end_s
    if math.isinf(end) and segment.size > segment_s * _LEAST_BYTES_PER_S:
        length = max(0.0, min(last_timestamp(segment.uri), segment.size / _LEAST_BYTES_PER_S) - begin)
    else:
        length = segment_s if math.isinf(end) else end - begin
    if not length and segment.part:
        raise ValueError(f"its length cannot be measured: part 1 of {segment.parts} has its verdict")
    first, last = (begin + length * part / segment.parts for part in (segment.part, segment.part + 1))
    count = max(1, math.ceil((last - first) / segment_s - 1e-3))
    edges = [first + (last - first) * index / count for index in range(count)]
    edges.append(end if segment.part == segment.parts - 1 or not length else last)
    return [
        replace(
            segment,
            segment_id=segment.segment_id if count == 1 else stable_id(segment.segment_id, index),
            start_s=edges[index],
            end_s=edges[index + 1],
            part=0,
            parts=1,
        )
        for index in range(count)
    ]


def _is_media(name: str) -> bool:
    name = os.path.basename(name)
    return not name.startswith(".") and Path(name).suffix[1:].lower() in MEDIA_SUFFIXES


def _local(text: str) -> Iterator[tuple[str, int]]:
    """(absolute path, bytes) of the media behind a path or glob."""
    path = Path(text.removeprefix("file://")).expanduser()
    if path.is_dir():
        names, what = _walk(os.path.abspath(path)), f"folder {text!r} holds no video; known are {_suffixes()}"
    elif path.exists():
        names, what = iter([os.path.abspath(path)]), f"{text!r} is no video by its name; known are {_suffixes()}"
    elif glob.has_magic(text):
        found = sorted(os.path.abspath(name) for name in glob.iglob(str(path), recursive=True) if os.path.isfile(name))
        names, what = iter(found), f"glob {text!r} matches no video; quote it and check the folder"
    else:
        raise ValueError(f"input {text!r} does not exist; check the path")
    return _some(((name, os.path.getsize(name)) for name in names if _is_media(name)), what)


def _some(found: Iterator[tuple[str, int]], what: str) -> Iterator[tuple[str, int]]:
    """What was found; raises ValueError(what) when that is nothing."""
    empty = True
    for one in found:
        empty = False
        yield one
    if empty:
        raise ValueError(what)


def _walk(folder: str, seen: set[str] | None = None) -> Iterator[str]:
    """Every file below `folder`, folder by folder, sorted; links to folders are followed, each real folder once."""
    seen = set() if seen is None else seen
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    with os.scandir(folder) as found:
        entries = sorted((entry.name, entry.is_dir()) for entry in found)
    for name, is_folder in entries:
        if is_folder:
            yield from _walk(os.path.join(folder, name), seen)
        else:
            yield os.path.join(folder, name)


def _remote(text: str) -> Iterator[tuple[str, int]]:
    import fsspec  # slow to import and only needed here

    protocol = text.split("://", 1)[0]
    try:
        system, path = fsspec.core.url_to_fs(text)
        if glob.has_magic(path):
            infos = system.glob(path, detail=True)
        elif system.isfile(path):
            infos = {path: system.info(path)}
        else:
            infos = system.find(path, detail=True)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"input {text!r} cannot be listed ({error}); check the address and the credentials") from error
    found = ((f"{protocol}://{name}", int(infos[name].get("size") or 0)) for name in sorted(infos) if _is_media(name))
    return _some(found, f"input {text!r} holds no video; check the address; known are {_suffixes()}")


def _suffixes() -> str:
    return ", ".join(sorted(MEDIA_SUFFIXES))
