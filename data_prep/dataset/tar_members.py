"""Read members of a tar as sources. The tar is not unpacked, and no other member is read.

The URI of a member gives its byte range in a tar on a disk or in an object store:
`tar://{offset}+{size}/{member}::{tar}`.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

PREFIX = "tar://"


def address(tar: str, member: str, offset: int, size: int) -> str:
    """Return the URI of a member, whose data are `size` bytes at `offset` of `tar`."""
    return f"{PREFIX}{offset}+{size}/{member}::{tar}"


def parse(uri: str) -> tuple[str, int, int]:
    """Return (path or URI of the tar, offset, size) for the URI of a member; offset and size in bytes.

    Raises:
        ValueError: not the URI of a member.
    """
    place, _, tar = uri.removeprefix(PREFIX).rpartition("::")
    offset, plus, size = place.partition("/")[0].partition("+")
    if not (uri.startswith(PREFIX) and plus and offset.isdigit() and size.isdigit()):
        raise ValueError(f"{uri!r} is not the URI of a tar member; write {PREFIX}offset+size/member::tar")
    return tar, int(offset), int(size)


def members(tar: str, opened: BinaryIO) -> Iterator[tuple[str, str, int]]:
    """Yield (name, URI, size in bytes) of each file in a tar. In a damaged tar, stop without an error at the damage.

    Args:
        tar: path or URI of the tar.
        opened: the same tar, open for reading; only its headers are read.

    Raises:
        ValueError: not a tar, or a compressed one, whose members have no byte range.
    """
    try:
        archive = tarfile.open(fileobj=opened, mode="r:")  # noqa: SIM115
    except tarfile.TarError as error:
        raise ValueError(f"{tar!r} is not a plain tar ({error}); unpack it, or write it without compression") from None
    with archive:
        while True:
            try:
                member = archive.next()
            except (tarfile.TarError, OSError, EOFError):
                return
            if member is None:
                return
            # Keep no list of the members: of a large tar it would fill the memory.
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            if member.isreg():
                yield member.name, address(tar, member.name, member.offset_data, member.size), member.size


def open_member(uri: str, open_file: Callable[[str], BinaryIO]) -> BinaryIO:
    """Open a member for reading.

    Args:
        uri: URI of the member.
        open_file: function that opens the tar, given its path or URI.
    """
    tar, offset, size = parse(uri)
    return io.BufferedReader(_Window(open_file(tar), offset, size), 1 << 16)


class _Window(io.RawIOBase):
    """A read-only file that consists of `size` bytes at `offset` of another file. Closing it closes the other too."""

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
