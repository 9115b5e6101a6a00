"""Members of a tar as sources of their own, addressed by byte range: nothing is unpacked and no neighbour is read.

`tar://{offset}+{size}/{member}::{tar}` names the bytes of one member of a tar on a disk or an object store.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

PREFIX = "tar://"


def address(tar: str, member: str, offset: int, size: int) -> str:
    """The URI of `size` bytes at `offset` of `tar`."""
    return f"{PREFIX}{offset}+{size}/{member}::{tar}"


def parse(uri: str) -> tuple[str, int, int]:
    """(the tar, offset, size) of a member's URI.

    Raises:
        ValueError: it is no such URI.
    """
    place, _, tar = uri.removeprefix(PREFIX).rpartition("::")
    offset, plus, size = place.partition("/")[0].partition("+")
    if not (uri.startswith(PREFIX) and plus and offset.isdigit() and size.isdigit()):
        raise ValueError(f"{uri!r} names no member of a tar: {PREFIX}offset+size/member::tar")
    return tar, int(offset), int(size)


def members(tar: str, opened: BinaryIO) -> Iterator[tuple[str, str, int]]:
    """(name, URI, bytes) of the files of a tar, read header by header; a damaged tar ends where it breaks.

    Raises:
        ValueError: it is no tar, or a compressed one, in which no member can be addressed.
    """
    try:
        archive = tarfile.open(fileobj=opened, mode="r:")  # noqa: SIM115
    except tarfile.TarError as error:
        raise ValueError(f"{tar!r} is no plain tar ({error}); unpack it, or write it without compression") from None
    with archive:
        while True:
            try:
                member = archive.next()
            except (tarfile.TarError, OSError, EOFError):
                return
            if member is None:
                return
            # Else every member of a large tar stays in memory.
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            if member.isreg():
                yield member.name, address(tar, member.name, member.offset_data, member.size), member.size


def open_member(uri: str, open_file: Callable[[str], BinaryIO]) -> BinaryIO:
    """A member as a file to read; `open_file` opens the tar."""
    tar, offset, size = parse(uri)
    return io.BufferedReader(_Window(open_file(tar), offset, size), 1 << 16)


class _Window(io.RawIOBase):
    """Bytes `offset` … `offset + size` of a file as a file, which is closed with it."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._offset + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
