"""What a person points at → the segments to curate: files, folders (recursively), globs and fsspec URIs.

The order is stable (sorted by URI) and each source is listed once. A source longer than `segment_s` becomes several
segments, so that memory stays bounded and a long file does not sit on one worker. Its length is measured on its last
packets, because headers lie.
"""

import glob
import math
import os
from pathlib import Path

from data_prep.clip import Segment, stable_id
from data_prep.container import last_timestamp

MEDIA_SUFFIXES = frozenset(
    [
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "mts", "m2ts", "mpg", "mpeg"),
        *("flv", "wmv", "3gp", "3g2", "ogv", "mxf", "vob", "asf", "f4v"),
    ]
)
# No video has fewer bytes per second. Smaller files are not opened to measure them, and a length beyond it is a lie.
_LEAST_BYTES_PER_S = 1_000
SEGMENT_S = 600.0


def list_sources(inputs: list[str], segment_s: float = SEGMENT_S) -> list[Segment]:
    """The segments behind `inputs`, sorted by URI and start.

    Args:
        inputs: files, folders, globs (`**` goes through folders), or fsspec URIs of either (`s3://bucket/folder`).
        segment_s: the longest segment, seconds.

    Raises:
        ValueError: a path that does not exist, a folder or glob without media, or a file that is no media by its
            name; says which, and the mend.
    """
    if not inputs:
        raise ValueError("no input: give at least one file, folder, glob or URI of videos")
    found: dict[str, int] = {}
    for text in inputs:
        found.update(_remote(text) if "://" in text and not text.startswith("file://") else _local(text))
    return [segment for uri in sorted(found) for segment in _segments(uri, found[uri], segment_s)]


def _segments(uri: str, size: int, segment_s: float) -> list[Segment]:
    length = min(last_timestamp(uri), size / _LEAST_BYTES_PER_S) if size > segment_s * _LEAST_BYTES_PER_S else 0.0
    count = max(1, math.ceil(length / segment_s - 1e-3))
    edges = [0.0, *(index * segment_s for index in range(1, count)), math.inf]
    return [
        Segment(stable_id(uri, size, edges[i], edges[i + 1]), uri, edges[i], edges[i + 1], size) for i in range(count)
    ]


def _is_media(name: str) -> bool:
    name = os.path.basename(name)
    return not name.startswith(".") and Path(name).suffix[1:].lower() in MEDIA_SUFFIXES


def _local(text: str) -> dict[str, int]:
    path = Path(text.removeprefix("file://")).expanduser()
    if path.is_dir():
        names = [name for name in _walk(path) if _is_media(name)]
        what = f"folder {text!r} holds no video; known are {_suffixes()}"
    elif path.exists():
        names = [str(path)] if _is_media(path.name) else []
        what = f"{text!r} is no video by its name; known are {_suffixes()}"
    elif glob.has_magic(text):
        names = [name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name) and _is_media(name)]
        what = f"glob {text!r} matches no video; quote it and check the folder"
    else:
        raise ValueError(f"input {text!r} does not exist; check the path")
    if not names:
        raise ValueError(what)
    return {os.path.abspath(name): os.path.getsize(name) for name in names}


def _walk(folder: Path) -> list[str]:
    """Every file below `folder`; links to folders are followed, each real folder once."""
    seen, names = set(), []
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        names += [os.path.join(parent, name) for name in files]
    return names


def _remote(text: str) -> dict[str, int]:
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
    names = {f"{protocol}://{name}": int(info.get("size") or 0) for name, info in infos.items() if _is_media(name)}
    if not names:
        raise ValueError(f"input {text!r} holds no video; check the address; known are {_suffixes()}")
    return names


def _suffixes() -> str:
    return ", ".join(sorted(MEDIA_SUFFIXES))
