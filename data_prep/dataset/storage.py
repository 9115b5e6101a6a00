"""Read and write files in a local folder or an object store, atomically, through the same functions.

- A local file is written in its final folder under a name that starts with a dot, flushed to the disk, and renamed. A
  reader, or a run after a crash, therefore sees either the complete file or none. Files whose names start with a dot
  are leftovers of a killed run: they are never read, and are deleted when a set is finished.
- An object (`s3://`, `gs://`, or another store that fsspec supports) is written by one put, or from 100 MB on by one
  multipart upload. Both are atomic, and later reads see the object. A killed multipart upload leaves pieces that no
  reader sees; delete them with a lifecycle rule of the bucket.
- A file may be written twice, if a worker that was believed dead is still running. Both copies have equal bytes, so
  overwriting is harmless. Where a difference must be detected (a ledger entry), use `put_once`: it writes only if the
  file does not exist, and otherwise compares.

Failed requests (status 500, throttling, timeouts, broken or stalled connections) are tried again for minutes, with
growing pauses. The address and keys of an S3 server come from the environment (`AWS_ENDPOINT_URL`, …).
"""

import io
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.dataset import tar_members

# Number of concurrent requests for small files, since an object store answers each after tens of milliseconds.
AT_ONCE = 32
HELD_BYTES = 64 << 20  # size of the largest object that `open_read` keeps in memory
# Called with an offset in a range and buffers: fills the buffers, one after the other, with the bytes from there on.
ReadInto = Callable[[int, Sequence[memoryview]], None]
_CONNECT_S, _READ_S = 10, 20  # time limits of a request to S3, seconds
_ATTEMPTS = 10  # of a request to S3


def is_remote(root: str | Path) -> bool:
    """Return whether `root` is a URI of an object store and not a local path."""
    return "://" in str(root) and not str(root).startswith("file://")


def local(root: str | Path) -> Path:
    """Return a local root as a path, without a leading `file://`.

    Raises:
        ValueError: the root is on an object store.
    """
    if is_remote(root):
        raise ValueError(f"{str(root)!r} is on an object store; give a local or mounted folder")
    return Path(str(root).removeprefix("file://"))


def absolute(root: str | Path) -> str:
    """Return a root as an absolute path, valid in every working directory; a URI only loses a slash at its end."""
    return str(root).rstrip("/") if is_remote(root) else str(local(root).expanduser().absolute())


def check(root: str | Path) -> None:
    """Check that the bucket of a root can be reached, to report a mistake before any work starts. Ignore local roots.

    Raises:
        ValueError: the bucket does not exist, or the keys give no access to it.
    """
    if is_remote(root):
        bucket = "/".join(str(root).split("/")[:3])
        try:
            _system(root).info(bucket)
        except Exception as error:  # each store and each way to sign in raises different errors
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"{bucket} cannot be reached ({cause}); check the bucket, keys and address") from error


def at(root: str | Path, *names: str) -> str:
    """Return the path or URI of a file: the root and the names, joined with slashes."""
    return "/".join([str(root).removeprefix("file://").rstrip("/"), *names])


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing, in a `with` block. It appears at `path` only if the block ends without an error."""
    if is_remote(path):
        held = io.BytesIO()
        yield held
        put(path, held.getvalue())
        return
    folder, name = os.path.split(str(local(path)))
    half = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    try:
        file = open(half, "xb")  # noqa: SIM115 (closed below; the folder nearly always exists)
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
        file = open(half, "xb")  # noqa: SIM115
    try:
        with file as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(half, local(path))
    except BaseException:
        os.unlink(half)
        raise


def put(path: str | Path, data: bytes) -> None:
    """Write a file, replacing any that exists."""
    if is_remote(path):
        _system(path).pipe_file(str(path), data)
        return
    with atomic_write(path) as out:
        out.write(data)


def put_once(path: str | Path, data: bytes) -> None:
    """Write a file if it does not exist; if it exists, check that its bytes are `data`.

    Raises:
        FileExistsError: the file exists with other bytes.
    """
    if is_remote(path):
        try:
            _system(path).pipe_file(str(path), data, mode="create")
            return
        except FileExistsError:
            pass  # perhaps our own earlier request succeeded and its response was lost, so compare
    elif not exists(path):
        put(path, data)
        return
    if read(path) != data:
        raise FileExistsError(f"{path} was written before with other bytes; the first version is kept")


def read(path: str | Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return _system(path).cat_file(str(path)) if is_remote(path) else local(path).read_bytes()


def read_many(paths: list[str]) -> Iterator[bytes]:
    """Yield the bytes of files, in the given order. From an object store, many are fetched at once.

    Raises:
        FileNotFoundError: a file is missing.
    """
    if not paths or not is_remote(paths[0]):
        yield from map(read, paths)
        return
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for start in range(0, len(paths), 16 * AT_ONCE):  # bounds the memory of files not yet consumed
            yield from threads.map(read, paths[start : start + 16 * AT_ONCE])


def read_range(root: str | Path, relative: str, offset: int, size: int) -> bytes:
    """Return `size` bytes at `offset` of the file at the path `relative` in a set.

    Raises:
        ValueError: the file is missing, or ends before `offset + size`.
    """
    path = at(root, relative)
    try:
        if is_remote(path):
            data = _in_range(lambda: _system(path).cat_file(path, start=offset, end=offset + size))
        else:
            with open(path, "rb") as source:
                source.seek(offset)
                data = source.read(size)
    except FileNotFoundError:
        raise _missing(path) from None
    if len(data) != size:
        raise _damaged(path, offset + size)
    return data


@contextmanager
def open_ranges(root: str | Path, places: Sequence[tuple[str, int, int]]) -> Iterator[list[ReadInto]]:
    """Open byte ranges of files of a set, to read them into buffers inside a `with` block.

    Local bytes are read directly into the buffers, without a copy. Ranges in an object store are fetched before the
    block starts, many at once.

    Args:
        root: the set.
        places: (path relative to the set, offset, size) of each range, bytes.

    Yields:
        For each range a function of (offset in the range, buffers) that fills the buffers, one after the other.

    Raises:
        ValueError: a file is missing, or too short.
    """
    if is_remote(root):
        with ThreadPoolExecutor(min(AT_ONCE, max(1, len(places)))) as threads:
            fetched = list(threads.map(lambda place: read_range(root, *place), places))
        yield [partial(_copy_into, data) for data in fetched]
        return
    with ExitStack() as opened:
        found: list[ReadInto] = []
        for relative, offset, _ in places:
            path = at(root, relative)
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise _missing(path) from None
            opened.callback(os.close, handle)
            found.append(partial(_read_into, handle, path, offset))
        yield found


def _copy_into(data: bytes, start: int, buffers: Sequence[memoryview]) -> None:
    """Fill the buffers, one after the other, with the bytes of `data` from `start` on."""
    for buffer in buffers:
        buffer[:] = memoryview(data)[start : start + len(buffer)]
        start += len(buffer)


def _read_into(handle: int, path: str, offset: int, start: int, buffers: Sequence[memoryview]) -> None:
    """Fill the buffers with the bytes of an open file from `offset + start` on; a read may fill only some of them."""
    left, at = [buffer for buffer in buffers if len(buffer)], offset + start
    while left:
        count = os.preadv(handle, left, at)
        if not count:
            raise _damaged(path, at + sum(map(len, left)))
        at += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]


def _missing(path: str) -> ValueError:
    return ValueError(f"{path} is missing; the set is incomplete: make it again, or give another")


def _damaged(path: str, end: int) -> ValueError:
    return ValueError(f"{path} ends before byte {end}; the set was damaged: make it again")


def exists(path: str | Path) -> bool:
    """Return whether a file exists."""
    if not is_remote(path):
        return local(path).exists()
    try:
        _system(path).info(str(path))
    except FileNotFoundError:
        return False
    return True


def names(folder: str | Path, prefix: str = "") -> list[str]:
    """Return the names in a folder that start with `prefix` and not with a dot; [] if the folder does not exist."""
    if is_remote(folder):
        try:
            found = _system(folder).find(str(folder), maxdepth=1, prefix=prefix)
        except FileNotFoundError:
            return []
        listed = [name.rsplit("/", 1)[1] for name in found]
    else:
        try:
            with os.scandir(local(folder)) as files:
                listed = [file.name for file in files if file.name.startswith(prefix)]
        except FileNotFoundError:
            return []
    return [name for name in listed if name[0] != "."]


def sweep(folder: str | Path) -> None:
    """Delete the files of interrupted writes (names that start with a dot) in a folder. Call it while nobody writes."""
    if not is_remote(folder):
        for half in local(folder).glob(".*"):
            half.unlink(missing_ok=True)


def size(path: str) -> int:
    """Return the size of a file or of a member of a tar, bytes.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if path.startswith(tar_members.PREFIX):
        return tar_members.parse(path)[2]
    return int(_system(path).info(path)["size"]) if is_remote(path) else local(path).stat().st_size


def version(path: str) -> str:
    """Return a text that changes when the file is rewritten: its size, and its time of change or the store's ETag.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_remote(path):
        found = local(path).stat()
        return f"{found.st_size} {found.st_mtime_ns}"
    about = _system(path).info(path)
    tag = next((about[name] for name in ("ETag", "etag", "LastModified", "mtime") if name in about), "")
    return f"{about['size']} {tag}"


def remove(path: str | Path) -> None:
    """Delete a file if it exists."""
    if is_remote(path):
        _system(path).rm_file(str(path))
    else:
        local(path).unlink(missing_ok=True)


def open_read(uri: str) -> BinaryIO:
    """Open a source for reading: a local file, an object, or a member of a tar.

    Curation opens a source several times. So an object of at most `HELD_BYTES` is fetched completely, and kept in
    memory until another one is opened. Of a larger object only the requested byte ranges are fetched.
    """
    if not is_remote(uri):
        return local(uri).open("rb")
    data = _held(uri)
    if data is not None:
        return io.BytesIO(data)
    if uri.startswith(tar_members.PREFIX):
        return tar_members.open_member(uri, open_read)
    return _system(uri).open(uri, "rb")


@lru_cache(maxsize=1)
def _held(uri: str) -> bytes | None:
    """Return the bytes of a small object, or of a small member of a tar in an object store; None for any other file."""
    file, start, count = tar_members.parse(uri) if uri.startswith(tar_members.PREFIX) else (uri, 0, size(uri))
    if count > HELD_BYTES or not is_remote(file):
        return None
    return _in_range(lambda: _system(file).cat_file(file, start=start, end=start + count)) if count else b""


def _in_range(fetch: Callable[[], bytes]) -> bytes:
    """Return the bytes that `fetch` requests from an object; b"" if the object ends before the requested range."""
    try:
        return fetch()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        if "range" in str(error).lower():  # the object ends before the range begins
            return b""
        raise


def _system(path: str | Path) -> Any:
    return file_system(str(path).split("://", 1)[0])


@cache
def file_system(protocol: str) -> Any:
    """Return fsspec's file system for a protocol such as "s3", without a cache of listings; for S3 with many retries.

    Raises:
        ValueError: the package that fsspec needs for the protocol is not installed.
    """
    import fsspec  # slow to import, and a local set does not need it

    if protocol not in ("s3", "s3a"):
        # gcsfs would ask for the kind of bucket, which needs a permission that reading and writing do not need.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            return fsspec.filesystem(protocol, use_listings_cache=False)
        except ImportError as error:
            raise ValueError(f"{protocol}:// needs a package that is not installed: {error}") from error
    import s3fs

    s3fs.S3FileSystem.retries = _ATTEMPTS
    return s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": _CONNECT_S,
            "read_timeout": _READ_S,
            "retries": {"max_attempts": _ATTEMPTS, "mode": "standard"},
        },
    )
