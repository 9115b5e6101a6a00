"""Edit the boxes of an mp4 file (ISO 14496-12): limit the time that is shown, and move the index before the media."""

import struct
from collections.abc import Iterator

import numpy as np


def _boxes(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, first, last) of each box in data[start:end]; its content is data[first:last]."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        size = size or end - start
        if size < head:
            return
        yield bytes(kind), start + head, min(start + size, end)
        start += size


def _find(data: bytes | bytearray, start: int, end: int, kind: bytes) -> tuple[int, int] | None:
    """Return the byte range of the content of the first box of type `kind` in data[start:end], or None."""
    return next(((low, high) for name, low, high in _boxes(data, start, end) if name == kind), None)


def set_out_point(file: bytes, duration_s: float) -> bytes:
    """Return the mp4 `file` with the edits of each track, and the movie, limited to `duration_s` seconds."""
    data = bytearray(file)
    moov = _find(data, 0, len(data), b"moov")
    assert moov is not None, "the muxer wrote an mp4 without moov"
    mvhd = _find(data, *moov, b"mvhd")
    assert mvhd is not None, "the muxer wrote an mp4 without mvhd"
    version = data[mvhd[0]]
    (timescale,) = struct.unpack_from(">I", data, mvhd[0] + (20 if version else 12))
    limit = round(duration_s * timescale)
    longest = 0
    for kind, low, high in _boxes(data, *moov):
        if kind != b"trak":
            continue
        tkhd, edts = _find(data, low, high, b"tkhd"), _find(data, low, high, b"edts")
        elst = _find(data, *edts, b"elst") if edts else None
        assert tkhd is not None and elst is not None, "the muxer wrote a track without an edit list"  # noqa: PT018
        shown = _limit_edits(data, elst[0], limit)
        _put(data, tkhd[0], 28, 20, shown)
        longest = max(longest, shown)
    _put(data, mvhd[0], 24, 16, longest)
    return bytes(data)


def index_first(data: bytes) -> bytes:
    """Return an mp4 with `moov` before `mdat`, so that a player can start before it has read the complete file.

    The byte positions of the media that `moov` lists are corrected.
    """
    tops = {kind: (low - 8, high) for kind, low, high in _boxes(data, 0, len(data))}
    (low, high), begin = tops[b"moov"], tops[b"ftyp"][1]
    moov = bytearray(data[low:high])
    inside = [(8, len(moov))]
    for kind in (b"trak", b"mdia", b"minf", b"stbl"):
        inside = [(first, last) for span in inside for name, first, last in _boxes(moov, *span) if name == kind]
    for span in inside:
        for kind, at, _ in _boxes(moov, *span):
            if kind in (b"stco", b"co64"):
                (count,) = struct.unpack_from(">I", moov, at + 4)
                places = np.frombuffer(moov, ">u4" if kind == b"stco" else ">u8", count, at + 8)
                places += len(moov)  # a view of `moov`: this changes its bytes
    return data[:begin] + moov + data[begin:low] + data[high:]


def _limit_edits(data: bytearray, at: int, limit: int) -> int:
    """Shorten the edits of an `elst` (content at byte `at`) to `limit` ticks in total. Return their new total."""
    wide = data[at] == 1
    (count,) = struct.unpack_from(">I", data, at + 4)
    total = 0
    for index in range(count):
        place = at + 8 + index * (20 if wide else 12)
        (length,) = struct.unpack_from(">Q" if wide else ">I", data, place)
        length = min(length, limit - total)
        struct.pack_into(">Q" if wide else ">I", data, place, length)
        total += length
    return total


def _put(data: bytearray, at: int, wide_offset: int, offset: int, value: int) -> None:
    """Write a number into the box whose content begins at byte `at`.

    Version 1 of a box has it as 8 bytes at `wide_offset`; version 0, as 4 bytes at `offset`.
    """
    if data[at] == 1:
        struct.pack_into(">Q", data, at + wide_offset, value)
    else:
        struct.pack_into(">I", data, at + offset, value)
