"""Find hard cuts, exact to the frame, with as little decoding as possible; divide long scenes at pauses in speech.

The sizes and kinds of packets show where the picture may have changed, since encoders react to changes. Candidates for
a cut are these frames (at a key frame, the cut may also be anywhere after the key frame before it):

- a *spike*: a frame with a third of a key frame's bytes or more, and far more than the frames around it;
- a key frame after a rare interval: the encoder detected a change;
- a key frame after a frequent interval, which may be the encoder's regular one, if it differs from the key frame before
  it in brightness and in colours (within one shot things move, but the colours remain similar);
- a key frame after a regular interval, if almost nothing was coded since the one before, and yet its size differs.

Around such a candidate, first only the frames that other frames refer to are decoded, at a small size. Where two of
them differ much, every frame nearby is decoded. A difference counts as a cut if it is far above the usual difference
from frame to frame there. A dissolve is no hard cut and is not found.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from data_prep.media.container import Media, Packets, choose_streams, clock, open_media
from data_prep.media.thumbnails import Thumbnail, Thumbnails

CUT_MIN = 0.10  # least mean absolute difference of two frames at a cut, of the full range
CUT_OVER_MOTION = 3.0  # least difference at a cut, in units of the median difference of frames around it
CUT_OVER_SHAKE = 2.0  # least difference at a cut, in units of the largest difference within `SHAKE` frames
SHAKE = 4  # frames on each side of a possible cut
LEAP_OVER_SHAKE = 1.25  # as CUT_OVER_SHAKE, for the neighbours of a large difference where some frames are skipped
COLOURS_MIN = 0.15  # least share of pixels with other colours between two shots
SPIKE = 2.0  # a spike has more than this times the bytes of its largest neighbour
NEIGHBOURS = 12  # frames on each side that a spike is compared with
MARGIN = 8  # frames on each side of a large difference that are decoded too, to measure the usual difference
CONTEXT = MARGIN + SHAKE  # decoding begins at least so many frames before a candidate
# Default intervals of key frames of encoders that add a key frame at each cut that they detect: x264 and x265; libvpx.
CLOCKS = frozenset([250, 128])
CLOCK_TIMES = 3  # any other interval that occurs at least so often may be regular
CLOCK_SPIKE = 4.0  # as SPIKE, within such a default interval, where the encoder detected no cut
CALM = 1.0  # fewer bytes than this times a key frame's between two key frames cannot show another shot
SAME_SIZE = 0.03  # the sizes of key frames of one still picture differ by less than this share
DENSE_S = 0.4  # seconds; of key frames that are closer together, some are skipped


@dataclass(frozen=True)
class PacketIndex:
    """Times, kinds and sizes of the video packets of a span, read without decoding. Packets are ordered by time.

    Attributes:
        times: times at which the frames are shown, seconds, (N,) ascending.
        key: whether each packet is a key frame, where decoding can begin, (N,) bool.
        sizes: sizes of the packets, bytes, (N,).
    """

    times: np.ndarray
    key: np.ndarray
    sizes: np.ndarray

    @cached_property
    def step(self) -> float:
        """Return the median time from one frame to the next, seconds."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.04

    @property
    def end(self) -> float:
        """Return the time at which the last frame is no longer shown, seconds."""
        return float(self.times[-1]) + self.step


def read_packet_index(media: Media, start_s: float, end_s: float) -> PacketIndex | None:
    """Read the video packets with a time in [start_s, end_s), seconds. Return None if there are none.

    Raises:
        FFmpegError, OSError: the file cannot be opened.
    """
    with open_media(media) as container:
        stream = choose_streams(container).video
        if stream is None:
            return None
        half = float(stream.time_base or 0) / 2
        rows, late, time_of = [], 0, clock(stream)
        for packet in Packets(container, stream, start_s):
            time_s = time_of(packet)
            if time_s is None or packet.is_discard or not packet.size:
                continue
            late = late + 1 if time_s >= end_s else 0
            if late > 64:  # packets come in decoding order, and no codec reorders more of them
                break
            if start_s - half <= time_s < end_s - half:
                rows.append((time_s, packet.is_keyframe, packet.size))
    if not rows:
        return None
    rows.sort()
    times, key, sizes = zip(*rows, strict=True)
    return PacketIndex(np.array(times), np.array(key), np.array(sizes))


def scene_cuts(thumbnails: Thumbnails, packets: PacketIndex) -> list[float]:
    """Find the hard cuts of a span.

    Args:
        thumbnails: decodes small frames of the same video stream.
        packets: the video packets of the span.

    Returns:
        Times of the first frames of new shots, seconds, ordered; without the start of the span.
    """
    cuts: set[float] = set()
    for first, last in _stretches(packets, _candidates(packets, thumbnails)):
        # A difference just after the first decoded frame may be the end of a flash. It is no cut: for a cut there,
        # the range of frames would begin earlier.
        known_s = float(packets.times[first]) + SHAKE * packets.step if first else 0.0
        cuts.update(time_s for time_s in _cuts_between(packets, thumbnails, first, last) if time_s > known_s)
    return sorted(cuts)


def _candidates(packets: PacketIndex, thumbnails: Thumbnails) -> list[int]:
    """Return the indices of the frames at which a shot may begin, ascending.

    Where the index is that of a key frame, the shot may begin anywhere after the key frame before it.
    """
    spikes = np.array(_spikes(packets), int)
    found, pairs = set(spikes.tolist()), []
    keys = list(pairwise(_looked_at(packets)))
    intervals = Counter(after - before for before, after in keys)
    for before, after in keys:
        inside = spikes[(spikes > before) & (spikes < after)]
        if after - before in CLOCKS:
            # The encoder detects cuts and found none here, so only higher spikes count.
            inside = np.array([index for index in inside if _stands_out(packets, int(index)) > CLOCK_SPIKE], int)
            found -= set(range(before + 1, after)) - set(inside.tolist())
        if after - before not in CLOCKS and intervals[after - before] < CLOCK_TIMES:
            found.add(after)
        elif len(inside) == 1 or not _at_rest(packets, before, after):
            pairs.append((before, after, inside))
    wanted = {float(packets.times[index]) for before, after, _ in pairs for index in (before, after)}
    seen = thumbnails.keys(sorted(wanted), packets.step / 2)
    for before, after, inside in pairs:
        one, other = (seen.get(float(packets.times[index])) for index in (before, after))
        # Where a key frame cannot be decoded, assume a change, so that the frames there are examined.
        changed = one is None or other is None or one.difference(other) > CUT_MIN / 2
        explained = len(inside) and _calm(packets, before, after)
        if changed and not explained and not _at_rest(packets, before, after):
            unlike = one is None or other is None or one.recoloured(other) > COLOURS_MIN
            found |= {after} if unlike else set()
        elif not changed and len(inside) == 1:
            found.discard(int(inside[0]))  # one change between two equal key frames is no cut
    return sorted(found)


def _looked_at(packets: PacketIndex) -> Iterator[int]:
    """Yield the indices of the key frames that are compared: those at least about `DENSE_S` after the previous one."""
    last_s = -np.inf
    for index in np.flatnonzero(packets.key):
        if packets.times[index] >= last_s + DENSE_S - packets.step / 2:
            last_s = float(packets.times[index])
            yield int(index)


def _at_rest(packets: PacketIndex, before: int, after: int) -> bool:
    """Return whether nothing indicates a cut between the key frames `before` and `after`, a regular interval apart."""
    sizes = packets.sizes[[before, after]]
    if _calm(packets, before, after):
        return bool(sizes.max() - sizes.min() < SAME_SIZE * sizes.max())
    return after - before in CLOCKS  # there was motion, and a cut would have ended the interval earlier


def _calm(packets: PacketIndex, before: int, after: int) -> bool:
    """Return whether the packets between two key frames have too few bytes to show another shot."""
    return bool(packets.sizes[before + 1 : after].sum() < CALM * packets.sizes[[before, after]].min())


def _spikes(packets: PacketIndex) -> list[int]:
    """Return the indices of frames that are no key frames, but have far more bytes than the frames around them."""
    key_size = float(np.median(packets.sizes[packets.key])) if packets.key.any() else float(packets.sizes.max())
    large = np.flatnonzero(~packets.key & (packets.sizes > 0.3 * key_size))
    return [int(index) for index in large if _stands_out(packets, int(index)) > SPIKE]


def _stands_out(packets: PacketIndex, index: int) -> float:
    """Return a frame's bytes over the bytes of the largest frame around it; key frames around it do not count."""
    around = slice(max(0, index - NEIGHBOURS), index + NEIGHBOURS + 1)
    sizes = np.where(packets.key[around], 0, packets.sizes[around])
    return float(packets.sizes[index] / max(1, _without(sizes, index - around.start, NEIGHBOURS).max(initial=0)))


def _stretches(packets: PacketIndex, candidates: list[int]) -> list[tuple[int, int]]:
    """Return the ranges [first, last) of frames to decode: from a key frame before each candidate to shortly after it.

    Ranges that overlap or touch are merged.
    """
    keys = np.array(list(_looked_at(packets)), int)
    found: list[tuple[int, int]] = []
    for index in candidates:
        earlier = keys[keys < index - CONTEXT]
        # At a key frame the change may be anywhere since the one before it; at a spike it is at the spike.
        first = max(0, int(earlier[-1]) if len(earlier) else 0)
        last = min(len(packets.times), index + 1 + MARGIN)
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _cuts_between(packets: PacketIndex, thumbnails: Thumbnails, first: int, last: int) -> list[float]:
    """Return the times of the cuts among the frames [first, last), seconds, ordered.

    Decode some frames first. Where two of them differ much, decode every frame around them, and judge those.
    """
    start_s, end_s = (float(packets.times[i]) if i < len(packets.times) else packets.end for i in (first, last))
    coarse = thumbnails.between(start_s, end_s)
    if len(coarse) >= last - first:
        return _measured(coarse)
    # Skipped frames make the usual differences larger. What counts as a cut in spite of that is a cut.
    found = set(_measured(coarse))
    around_s = (MARGIN + 0.5) * packets.step
    spans: list[tuple[float, float]] = []
    steps = np.array([one.difference(other) for one, other in pairwise(coarse)])
    for index in np.flatnonzero(steps > CUT_MIN):
        one, other = coarse[index], coarse[index + 1]
        if other.time_s - one.time_s < 1.5 * packets.step and other.time_s in found:
            continue
        found.discard(other.time_s)
        if steps[index] > LEAP_OVER_SHAKE * _without(steps, int(index), 1).max(initial=0):
            low, high = one.time_s - around_s, other.time_s + around_s
            spans[-1:] = [(spans[-1][0], high)] if spans and low <= spans[-1][1] else [*spans[-1:], (low, high)]
    dense = thumbnails.between(start_s, end_s, spans) if spans else []
    for low, high in spans:
        found.update(_measured([thumbnail for thumbnail in dense if low <= thumbnail.time_s <= high]))
    return sorted(found)


def _measured(thumbnails: list[Thumbnail]) -> list[float]:
    """Return the times of the cuts in successive frames: each differs far more from the frame before than is usual."""
    if len(thumbnails) < 2:
        return []
    pictures = np.stack([thumbnail.light for thumbnail in thumbnails])
    steps = np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2))
    found = []
    for index in np.flatnonzero(steps > CUT_MIN):
        around = _without(steps, int(index), MARGIN)
        # Where a camera shakes, several successive frames differ much; at a cut, only one does.
        if steps[index] < CUT_OVER_SHAKE * _without(steps, int(index), SHAKE).max(initial=0):
            continue
        usual = float(np.median(around)) if len(around) else 0.0
        # After a flash, the picture is again as before; after a cut, it remains different.
        after = pictures[min(index + 3, len(pictures) - 1)]
        lasts = float(np.abs(pictures[index] - after).mean()) > CUT_MIN * 0.7
        if steps[index] > CUT_OVER_MOTION * usual and lasts:
            found.append(thumbnails[index + 1].time_s)
    return found


def _without(steps: np.ndarray, index: int, reach: int) -> np.ndarray:
    """Return the values at most `reach` places from `index`, without the one at `index`."""
    return np.concatenate([steps[max(0, index - reach) : index], steps[index + 1 : index + 1 + reach]])


def divide_scene(
    start_s: float, end_s: float, longest_s: float, packets: PacketIndex, voiced: np.ndarray, voiced_start_s: float
) -> list[tuple[float, float]]:
    """Divide a scene into few clips of nearly equal length, none longer than `longest_s`.

    Each division is moved by up to a quarter of a clip, to the middle of the longest pause in speech there, so that
    most sentences remain complete, and then to the next frame.

    Args:
        start_s: when the scene begins, seconds.
        end_s: when it ends.
        longest_s: the longest clip, seconds.
        packets: the video packets of the span that contains the scene.
        voiced: probability of speech in each 32 ms, (V,); empty where it is not known.
        voiced_start_s: time at which `voiced` begins, seconds.

    Returns:
        Start and end of each clip in seconds, in order and without a gap.
    """
    count = max(1, int(np.ceil((end_s - start_s) / longest_s - 1e-6)))
    # Clips of nearly the longest length would leave no room to move the divisions.
    if count > 1 and (end_s - start_s) / count > 0.9 * longest_s:
        count += 1
    length = (end_s - start_s) / count
    edges = [start_s]
    for index in range(1, count):
        ideal = start_s + index * length
        reach = min(length / 4, (longest_s - length) / 2)
        moved = _pause(voiced, voiced_start_s, ideal - reach, ideal + reach)
        edges.append(float(packets.times[min(np.searchsorted(packets.times, moved), len(packets.times) - 1)]))
    edges.append(end_s)
    return [(first, last) for first, last in pairwise(edges) if last > first]


def _pause(voiced: np.ndarray, start_s: float, low_s: float, high_s: float) -> float:
    """Return the middle of the longest pause in [low_s, high_s]; without a pause, the time when speech is least likely.

    Times are seconds. `voiced` is the probability of speech in each 32 ms from `start_s` on; a pause is below 0.5.
    """
    frame_s = 0.032
    low, high = (round((edge - start_s) / frame_s) for edge in (low_s, high_s))
    window = voiced[max(0, low) : max(0, high)]
    if not len(window):
        return (low_s + high_s) / 2
    from_middle = np.abs(np.arange(len(window)) - len(window) / 2)
    best, begin, place = 0, None, int((window + 1e-3 * from_middle / len(window)).argmin())
    for index in range(len(window) + 1):
        if index < len(window) and window[index] < 0.5:
            begin = index if begin is None else begin
        elif begin is not None:
            if index - begin > best:
                best, place = index - begin, (begin + index) // 2
            begin = None
    return start_s + (max(0, low) + place) * frame_s
