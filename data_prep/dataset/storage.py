"""Files of a set, written whole or not at all. The one place that knows where a set lives: a folder or an object store.

- A local file is written beside its final name under a name that starts with a dot, flushed to the disk and renamed,
  so that a reader, or a run that comes after a crash, sees either the whole file or none. Files that start with a dot
  are leftovers of a killed run: never read, and swept away when a set is finished.
- An object (`s3://`, `gs://`, whatever fsspec knows) appears by one put, or by the completion of one multipart upload
  from 100 MB on; both are atomic, and a read after it sees it. A killed multipart upload leaves parts that no reader
  sees: let the bucket's lifecycle rule delete them.
- What may be written twice, by a worker that was thought dead, has equal bytes, and overwriting is harmless. Where
  equal bytes are to be proven rather than believed (a ledger entry), `put_once` writes under the condition that
  nothing is there, and else compares.

Requests that fail (500s, throttling, timeouts, connections that break or stand still) are tried again with growing
pauses, for minutes; the address and keys of an S3 server are taken from the environment (`AWS_ENDPOINT_URL`, …).
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

# Requests at once where many small files are read: an object store answers each after tens of milliseconds.
AT_ONCE = 32
HELD_BYTES = 64 << 20
ReadInto = Callable[[int, Sequence[memoryview]], None]  # (place in a range, what to fill one after the other)
_CONNECT_S, _READ_S = 10, 20
_ATTEMPTS = 10


def is_remote(root: str | Path) -> bool:
    """Whether it is a URI of an object store, and no local path."""
    return "://" in str(root) and not str(root).startswith("file://")


def local(root: str | Path) -> Path:
    """The folder behind a local root.

    Raises:
        ValueError: the root is on an object store.
    """
    if is_remote(root):
        raise ValueError(f"{str(root)!r} is on an object store; give a local or mounted folder")
    return Path(str(root).removeprefix("file://"))


def absolute(root: str | Path) -> str:
    """A root that means the same in every process, wherever it runs."""
    return str(root).rstrip("/") if is_remote(root) else str(local(root).expanduser().absolute())


def check(root: str | Path) -> None:
    """Ask for a root's bucket, so that a mistake is told before anything starts.

    Raises:
        ValueError: there is no such bucket, or these keys do not open it.
    """
    if is_remote(root):
        bucket = "/".join(str(root).split("/")[:3])
        try:
            _system(root).info(bucket)
        except Exception as error:  # each store and each way of signing in has errors of its own
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"{bucket} cannot be reached ({cause}); check the bucket, keys and address") from error


def at(root: str | Path, *names: str) -> str:
    """The path or URI of a file of a set."""
    return "/".join([str(root).removeprefix("file://").rstrip("/"), *names])


@contextmanager
def whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write; it takes its name when the block ends well, and leaves nothing when it does not."""
    if is_remote(path):
        held = io.BytesIO()
        yield held
        put(path, held.getvalue())
        return
    folder, name = os.path.split(str(local(path)))
    half = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    try:
        file = open(half, "xb")  # noqa: SIM115 (closed below; the folder nearly always stands)
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
    """Write a whole file; what is there is replaced."""
    if is_remote(path):
        _system(path).pipe_file(str(path), data)
        return
    with whole(path) as out:
        out.write(data)


def put_once(path: str | Path, data: bytes) -> None:
    """Write a whole file that nobody writes with other bytes.

    Raises:
        FileExistsError: it is there and differs.
    """
    if is_remote(path):
        try:
            _system(path).pipe_file(str(path), data, mode="create")
            return
        except FileExistsError:
            pass  # also where our own first request was done and its answer was lost
    elif not exists(path):
        put(path, data)
        return
    if read(path) != data:
        raise FileExistsError(f"{path} was written before with other bytes; the first stands")


def read(path: str | Path) -> bytes:
    """A whole file. Raises FileNotFoundError."""
    return _system(path).cat_file(str(path)) if is_remote(path) else local(path).read_bytes()


def read_many(paths: list[str]) -> Iterator[bytes]:
    """Whole files, in order; from an object store many at once. Raises FileNotFoundError."""
    if not paths or not is_remote(paths[0]):
        yield from map(read, paths)
        return
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for start in range(0, len(paths), 16 * AT_ONCE):  # so that what waits to be taken is bounded
            yield from threads.map(read, paths[start : start + 16 * AT_ONCE])


def read_range(root: str | Path, relative: str, offset: int, size: int) -> bytes:
    """`size` bytes at `offset` of one file of a set.

    Raises:
        ValueError: the file is missing or shorter than that.
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
    """For each (file of a set, offset, size) what fills buffers, one after the other, with its bytes from a place on.

    Local bytes go straight into the buffers; an object store's are all fetched at the beginning, many at once.

    Raises:
        ValueError: a file is missing or shorter than that.
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
    for buffer in buffers:
        buffer[:] = memoryview(data)[start : start + len(buffer)]
        start += len(buffer)


def _read_into(handle: int, path: str, offset: int, start: int, buffers: Sequence[memoryview]) -> None:
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
    """Whether a file is there."""
    if not is_remote(path):
        return local(path).exists()
    try:
        _system(path).info(str(path))
    except FileNotFoundError:
        return False
    return True


def names(folder: str | Path, prefix: str = "") -> list[str]:
    """The names in a folder that begin with `prefix`, without those that begin with a dot; [] where there is none."""
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
    """Remove what killed writers left in a folder; while nobody writes there."""
    if not is_remote(folder):
        for half in local(folder).glob(".*"):
            half.unlink(missing_ok=True)


def size(path: str) -> int:
    """Bytes of a file. Raises FileNotFoundError."""
    if path.startswith(tar_members.PREFIX):
        return tar_members.parse(path)[2]
    return int(_system(path).info(path)["size"]) if is_remote(path) else local(path).stat().st_size


def version(path: str) -> str:
    """What differs once a file is written anew: its size, and its time or the store's own tag. FileNotFoundError."""
    if not is_remote(path):
        found = local(path).stat()
        return f"{found.st_size} {found.st_mtime_ns}"
    about = _system(path).info(path)
    tag = next((about[name] for name in ("ETag", "etag", "LastModified", "mtime") if name in about), "")
    return f"{about['size']} {tag}"


def remove(path: str | Path) -> None:
    """Delete a file, if it is there."""
    if is_remote(path):
        _system(path).rm_file(str(path))
    else:
        local(path).unlink(missing_ok=True)


def open_read(uri: str) -> BinaryIO:
    """A source to read, which may be a member of a tar.

    A source is opened once for each look at it. An object of at most `HELD_BYTES` is therefore fetched whole and held
    until another one is opened; of a larger one the byte ranges that are asked for are fetched.
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
    """The bytes of a small object, or of a small member of a tar on an object store; None for others."""
    file, start, count = tar_members.parse(uri) if uri.startswith(tar_members.PREFIX) else (uri, 0, size(uri))
    if count > HELD_BYTES or not is_remote(file):
        return None
    return _in_range(lambda: _system(file).cat_file(file, start=start, end=start + count)) if count else b""


def _in_range(fetch: Callable[[], bytes]) -> bytes:
    try:
        return fetch()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        if "range" in str(error).lower():  # the object ends before it begins
            return b""
        raise


def _system(path: str | Path) -> Any:
    return file_system(str(path).split("://", 1)[0])


@cache
def file_system(protocol: str) -> Any:
    """fsspec's file system of a protocol, set to be patient and to remember no listing.

    Raises:
        ValueError: fsspec does not know it.
    """
    import fsspec  # slow to import, and no local set needs it

    if protocol not in ("s3", "s3a"):
        # Asking what kind of bucket it is takes a permission that reading and writing do not.
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
