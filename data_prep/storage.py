"""Files of an output set, written whole or not at all. The one place that knows where a set lives.

A set's root is a local folder (`file://` is understood). A file is written beside its final name under a name that
starts with a dot, flushed to the disk and renamed, so that a reader, or a run that comes after a crash, sees either
the whole file or none. Files that start with a dot are leftovers of a killed run and are never read.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def local(root: str | Path) -> Path:
    """The folder behind a set's root.

    Raises:
        ValueError: the root is on an object store, where sets cannot be written yet.
    """
    text = str(root).removeprefix("file://")
    if "://" in text:
        raise ValueError(f"output {text!r}: a set is written to a local or mounted folder; give a path")
    return Path(text)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it takes its name when the block ends well, and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    half = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        half.chmod(0o644)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def read_range(root: str | Path, relative: str, offset: int, size: int) -> bytes:
    """`size` bytes at `offset` of one file of a set.

    Raises:
        ValueError: the file is missing or shorter than that.
    """
    path = local(root) / relative
    try:
        with path.open("rb") as source:
            source.seek(offset)
            data = source.read(size)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; the set is incomplete: make it again, or give another") from None
    if len(data) != size:
        raise ValueError(f"{path} ends before byte {offset + size}; the set was damaged: make it again")
    return data
