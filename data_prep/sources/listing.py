"""List the segments to curate behind files, folders (recursively), globs, tars, lists and fsspec URIs.

Listing opens no source. It reads names and sizes, and yields segments one by one in a stable order, so that a hundred
million sources need no more memory than the largest folder. A source of more than `PART_BYTES` becomes several
segments of equal length: the work on a segment, and the memory for its kept clips, are limited by its bytes.

Such a segment says only that it is part 2 of 5, for example. The worker that opens the source computes the seconds
where the part begins and ends. It uses the time of the last packet, because durations in headers are unreliable.
"""

import glob
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.clip import Segment, stable_id
from data_prep.dataset import storage, tar_members
from data_prep.sources.tables import SUFFIXES, Listed, read_list

MEDIA_SUFFIXES = frozenset(
    [
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "mts", "m2ts", "mpg", "mpeg"),
        *("flv", "wmv", "3gp", "3g2", "ogv", "mxf", "vob", "asf", "f4v"),
    ]
)
PART_BYTES = 256 << 20  # largest segment, bytes


def list_sources(inputs: list[str]) -> list[Segment]:
    """Return what `each_source` yields as a list. A million segments take half a gigabyte of memory."""
    return list(each_source(inputs))


def each_source(inputs: list[str]) -> Iterator[Segment]:
    """Yield the segments behind `inputs`. Opens only tars and lists.

    Args:
        inputs: files, folders, globs (`**` matches folders), tars (as WebDataset writes them), lists
            (`data_prep.sources.tables`), or fsspec URIs of any of these (`s3://bucket/folder`). A source that several
            inputs name is yielded once; if there is one input, a source that it lists twice is yielded twice.

    Raises:
        ValueError: a path does not exist, a folder or glob holds no media, a file's name is not that of media, or a row
            of a list is wrong; names it and the fix. Raised at the latest when the iteration reaches that input.
    """
    if not inputs:
        raise ValueError("no input: give at least one file, folder, glob or URI of videos")
    listed = [_remote(text) if storage.is_remote(text) else _local(text) for text in inputs]
    seen: set[str] = set()
    for found in (found for one in listed for found in one):
        if len(inputs) > 1:
            name = stable_id(found.uri, found.start_s, found.end_s)
            if name in seen:
                continue
            seen.add(name)
        yield from _segments(found)


def _segments(found: Listed) -> Iterator[Segment]:
    """Yield a source as segments of at most `PART_BYTES`; as one if it has an end time or its size is unknown."""
    parts = max(1, math.ceil(found.size / PART_BYTES)) if math.isinf(found.end_s) else 1
    for part in range(parts):
        yield Segment(
            stable_id(found.uri, found.size, found.start_s, found.end_s, part, parts),
            found.uri,
            found.start_s,
            found.end_s,
            size=found.size,
            part=part,
            parts=parts,
            caption=found.caption,
        )


def _is_media(name: str) -> bool:
    """Return whether a file's name has a media suffix and does not start with a dot."""
    name = os.path.basename(name)
    return not name.startswith(".") and Path(name).suffix[1:].lower() in MEDIA_SUFFIXES


def _local(text: str) -> Iterator[Listed]:
    """Return an iterator over the media behind a path (of a file or folder) or a glob. Lists in folders are skipped.

    Raises:
        ValueError: the path does not exist; or, from the iterator, there is no media.
    """
    path = Path(text.removeprefix("file://")).expanduser()
    if path.is_dir():
        names, what = _walk(os.path.abspath(path)), f"folder {text!r} holds no video; known are {_suffixes()}"
        names = (name for name in names if not _is_list(name))  # a table in a folder may hold anything
    elif path.exists():
        names, what = iter([os.path.abspath(path)]), f"{text!r} is not a video by its name; known are {_suffixes()}"
    elif glob.has_magic(text):
        found = sorted(os.path.abspath(name) for name in glob.iglob(str(path), recursive=True) if os.path.isfile(name))
        names, what = iter(found), f"glob {text!r} matches no video; quote it and check the folder"
    else:
        raise ValueError(f"input {text!r} does not exist; check the path")
    return _nonempty((found for name in names for found in _in_file(name, lambda name: os.path.getsize(name))), what)


def _in_file(name: str, size: Callable[[str], int]) -> Iterator[Listed]:
    """Yield the file itself if it is media, the media in a tar, or the rows of a list. `size(name)` is in bytes."""
    if _is_media(name):
        yield Listed(name, size(name))
    elif _is_list(name):
        yield from read_list(name)
    elif name.lower().endswith(".tar"):
        with storage.open_read(name) as opened:
            for member, uri, count in tar_members.members(name, opened):
                if _is_media(member):
                    yield Listed(uri, count)


def _is_list(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _nonempty(found: Iterator[Listed], what: str) -> Iterator[Listed]:
    """Yield every item of `found`. Raise ValueError with the message `what` if there is none."""
    empty = True
    for one in found:
        empty = False
        yield one
    if empty:
        raise ValueError(what)


def _walk(folder: str, seen: set[str] | None = None) -> Iterator[str]:
    """Yield the path of every file below `folder`, sorted within each folder.

    Follow symbolic links, but enter each real folder once: `seen` has the real paths of the folders entered so far.
    """
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


def _remote(text: str) -> Iterator[Listed]:
    """Return an iterator over the media behind an fsspec URI of a file, folder, glob, tar, list or member of a tar.

    The names in one folder are kept in memory, so give a folder of many millions of files as a list instead.

    Raises:
        ValueError: the URI cannot be listed; or, from the iterator, there is no media.
    """
    what = f"input {text!r} holds no video; check the address; known are {_suffixes()}"
    if text.startswith(tar_members.PREFIX):
        return iter([Listed(text, tar_members.parse(text)[2])])
    protocol = text.split("://", 1)[0]
    try:
        system = storage.file_system(protocol)
        path = system._strip_protocol(text)
        if glob.has_magic(path):
            folders = iter([system.glob(path, detail=True)])
        elif system.isfile(path):
            folders = iter([{path: system.info(path)}])
        elif system.exists(path):
            folders = (files for _, _, files in system.walk(path, detail=True))
            folders = ({f["name"]: f for f in files.values() if not _is_list(f["name"])} for files in folders)
        else:
            raise FileNotFoundError("nothing is there")
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"input {text!r} cannot be listed ({error}); check the address and the credentials") from error

    def found() -> Iterator[Listed]:
        for infos in folders:
            sizes = {f"{protocol}://{name.lstrip('/')}": int(infos[name].get("size") or 0) for name in sorted(infos)}
            for name in sizes:
                yield from _in_file(name, sizes.__getitem__)

    return _nonempty(found(), what)


def _suffixes() -> str:
    """Return the accepted suffixes as text for an error message."""
    return f"{', '.join(sorted(MEDIA_SUFFIXES))}, tars of these, and lists ({', '.join(SUFFIXES)})"
