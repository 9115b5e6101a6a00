"""Divide a segment into spans: parts of a source that are short enough to be decoded at once.

The source is opened only where its length is needed and not known. Its length is then the time of its last packet,
since the length in the header may be wrong.
"""

import math
import os
from dataclasses import replace

import xxhash
from av.container import InputContainer

from data_prep.clip import Segment, stable_id
from data_prep.curation.sandbox import beat
from data_prep.curation.scenes import read_packet_index
from data_prep.dataset import storage
from data_prep.media.container import last_timestamp, open_for_sound

MAX_READ = 2.0  # at most so many times a span's length is read; timestamps beyond it are regarded as errors
HASH_ALL = 64 << 20  # bytes; of a larger file the content key is a hash of its first and last MiB and its size
# No video has fewer bytes per second. So a file's size limits its length: a small file is not opened to measure it, and
# timestamps beyond the limit are errors.
_MIN_BYTES_PER_S = 1_000


def spans(segment: Segment, span_s: float) -> list[Segment]:
    """Return the spans of a segment, each at most about `span_s` seconds long, in order.

    A short segment is returned as its only span. A longer one is divided into spans with their own ids and times, and
    with the content key. If the source cannot be read, the segment is returned with one failed clip.
    """
    if not _is_long(segment, span_s):
        return [segment]
    try:
        return divide(with_content_key(segment), span_s)
    except Exception as error:  # damaged media make libraries raise anything
        return [segment.failed("read", error)]


def _is_long(segment: Segment, span_s: float) -> bool:
    """Return whether a segment is longer than a span, or is a part of a source and so has no times yet."""
    if segment.parts > 1:
        return True
    if math.isfinite(segment.end_s):
        return _count(segment.end_s - segment.start_s, span_s) > 1
    try:
        if (segment.size or storage.size(segment.uri)) <= span_s * _MIN_BYTES_PER_S:
            return False
        with open_for_sound(segment.uri) as source:
            if len(divide(segment, span_s, source)) == 1:
                return False
            # One wrong timestamp does not make a source long: the packets have to reach that far.
            packets = read_packet_index(source, segment.start_s, segment.start_s + MAX_READ * span_s)
    except Exception:  # `curate_span` opens the source again and reports the error
        return False
    return packets is not None and packets.end - segment.start_s > span_s


def divide(segment: Segment, span_s: float, source: InputContainer | None = None) -> list[Segment]:
    """Divide a segment into spans of equal length. If the source's length is unknown, find it at the end of the file.

    Args:
        segment: the segment to divide.
        span_s: length of the longest span, seconds.
        source: the open source; with None it is opened if needed.

    Raises:
        ValueError: the length of the source cannot be measured, and the segment is not its first part. The first part
            then stands for the complete source.
    """
    if not segment.size:  # a list did not give it
        segment = replace(segment, size=storage.size(segment.uri))
    begin, end = segment.start_s, segment.end_s
    if math.isinf(end) and segment.size > span_s * _MIN_BYTES_PER_S:
        length = max(0.0, min(last_timestamp(source or segment.uri), segment.size / _MIN_BYTES_PER_S) - begin)
    else:
        length = span_s if math.isinf(end) else end - begin
    if not length and segment.part:
        raise ValueError(f"its length cannot be measured: part 1 of {segment.parts} has its verdict")
    first, last = (begin + length * part / segment.parts for part in (segment.part, segment.part + 1))
    count = _count(last - first, span_s)
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


def _count(length_s: float, span_s: float) -> int:
    """Return the number of spans for a length in seconds; a thousandth of a span more needs no further span."""
    return max(1, math.ceil(length_s / span_s - 1e-3))


def with_content_key(segment: Segment) -> Segment:
    """Return the segment with its content key; compute the key from the source if it is missing.

    Raises:
        OSError: the source cannot be read.
    """
    return segment if segment.content_key else replace(segment, content_key=content_key(segment.uri))


def content_key(uri: str) -> str:
    """Return a hash (XXH3) of a source's bytes, 20 hexadecimal digits.

    Of a source larger than `HASH_ALL`, hash the size and the first and last MiB.

    Raises:
        OSError: the source cannot be read.
    """
    digest = xxhash.xxh3_128()
    with storage.open_read(uri) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= HASH_ALL:
            while block := file.read(1 << 20):
                beat()
                digest.update(block)
        else:
            digest.update(f"{size}".encode() + file.read(1 << 20))
            file.seek(-(1 << 20), os.SEEK_END)
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:20]
