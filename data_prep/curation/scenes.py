"""Find hard cuts, exact to the frame, with as little decoding as possible; divide long scenes at pauses in speech.

The packets show where the picture may have changed, since encoders react to it. Candidates for a cut are:

- a *spike*: a frame with a third of a key frame's bytes or more, and far more than the frames around it;
- a key frame at a rare interval: its encoder detected a change;
- a key frame at a frequent interval, which may be the encoder's regular one, when it differs from the key frame before
  it in brightness and in colours (within one shot things move, but colours stay);
- a key frame at a regular interval when almost nothing was coded since the one before, and yet its size differs.

Before a candidate, only frames that other frames refer to are decoded, at a small size. Where two of them differ much,
every frame around that place is decoded and compared with the motion there. A dissolve is no hard cut and is not found.
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
CUT_OVER_MOTION = 3.0  # a cut differs by at least so many times the median difference around it
CUT_OVER_SHAKE = 2.0  # and by at least so many times the largest difference close to it
SHAKE = 4  # frames on each side that are close
LEAP_OVER_SHAKE = 1.25  # as CUT_OVER_SHAKE, for the steps next to a leap where up to every second frame is skipped
COLOURS_MIN = 0.15  # least share of the pixels whose colours differ between two shots
SPIKE = 2.0  # a spike has more than so many times the bytes of its largest neighbour
NEIGHBOURS = 12  # frames on each side that a spike is compared with
MARGIN = 8  # frames beyond a leap that are decoded too, to measure the motion around it
CONTEXT = MARGIN + SHAKE  # least number of frames before a candidate that are decoded
# Regular intervals of key frames, in frames, of encoders that put another key frame at a cut: x264 and x265; libvpx.
CLOCKS = frozenset([250, 128])
CLOCK_TIMES = 3  # any other interval may be regular when it occurs so often
CLOCK_SPIKE = 4.0  # as SPIKE, between key frames at such an interval: the encoder detected no cut there
CALM = 1.0  # in sizes of a key frame: less than this between two key frames cannot show another shot
SAME_SIZE = 0.03  # key frames of one still picture differ in size by less than this share
DENSE_S = 0.4  # where key frames are closer together than this, some are skipped, seconds


@dataclass(frozen=True)
class PacketIndex:
    """The video packets of a span, in order of presentation, read without decoding.

    Attributes:
        times: seconds, (N,).
        key: whether the packet is a key frame, where decoding can begin, (N,).
        sizes: bytes, (N,).
    """

    times: np.ndarray
    key: np.ndarray
    sizes: np.ndarray

    @cached_property
    def step(self) -> float:
        """The median time from one frame to the next, seconds."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.04

    @property
    def end(self) -> float:
        """When the last frame's display ends, seconds."""
        return float(self.times[-1]) + self.step


def read_packet_index(media: Media, start_s: float, end_s: float) -> PacketIndex | None:
    """Read the video packets with a time in [start_s, end_s); return None without a video stream or packet.

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
        thumbnails: of the video stream that the packets were read from.
        packets: of the span.

    Returns:
        Times of the first frames of new shots, seconds, ordered; the start of the span is none.
    """
    cuts: set[float] = set()
    for first, last in _stretches(packets, _candidates(packets, thumbnails)):
        # A difference just after the first decoded frame may be the end of a flash. A cut there would have made the
        # stretch begin earlier.
        known_s = float(packets.times[first]) + SHAKE * packets.step if first else 0.0
        cuts.update(time_s for time_s in _cuts_between(packets, thumbnails, first, last) if time_s > known_s)
    return sorted(cuts)


def _candidates(packets: PacketIndex, thumbnails: Thumbnails) -> list[int]:
    """Return the indices of the frames at which a shot may begin, or may have begun since the key frame before."""
    spikes = np.array(_spikes(packets), int)
    found, pairs = set(spikes.tolist()), []
    keys = list(pairwise(_looked_at(packets)))
    intervals = Counter(after - before for before, after in keys)
    for before, after in keys:
        inside = spikes[(spikes > before) & (spikes < after)]
        if after - before in CLOCKS:
            # The encoder detects cuts and found none here, so only a higher spike counts.
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
        # A key frame that cannot be decoded is unknown, so its stretch is examined.
        changed = one is None or other is None or one.difference(other) > CUT_MIN / 2
        explained = len(inside) and _calm(packets, before, after)
        if changed and not explained and not _at_rest(packets, before, after):
            unlike = one is None or other is None or one.recoloured(other) > COLOURS_MIN
            found |= {after} if unlike else set()
        elif not changed and len(inside) == 1:
            found.discard(int(inside[0]))  # one change between two equal key frames is no cut
    return sorted(found)


def _looked_at(packets: PacketIndex) -> Iterator[int]:
    """Yield the indices of key frames that are at least about `DENSE_S` apart."""
    last_s = -np.inf
    for index in np.flatnonzero(packets.key):
        if packets.times[index] >= last_s + DENSE_S - packets.step / 2:
            last_s = float(packets.times[index])
            yield int(index)


def _at_rest(packets: PacketIndex, before: int, after: int) -> bool:
    """Whether nothing indicates a cut at the key frame `after`, which is at a regular interval from `before`."""
    sizes = packets.sizes[[before, after]]
    if _calm(packets, before, after):
        return bool(sizes.max() - sizes.min() < SAME_SIZE * sizes.max())
    return after - before in CLOCKS  # there was motion, and a cut would have ended the interval earlier


def _calm(packets: PacketIndex, before: int, after: int) -> bool:
    """Whether too little was coded between two key frames to show another shot there."""
    return bool(packets.sizes[before + 1 : after].sum() < CALM * packets.sizes[[before, after]].min())


def _spikes(packets: PacketIndex) -> list[int]:
    """Return the indices of frames that are no key frames and yet far larger than the frames around them."""
    key_size = float(np.median(packets.sizes[packets.key])) if packets.key.any() else float(packets.sizes.max())
    large = np.flatnonzero(~packets.key & (packets.sizes > 0.3 * key_size))
    return [int(index) for index in large if _stands_out(packets, int(index)) > SPIKE]


def _stands_out(packets: PacketIndex, index: int) -> float:
    """Return a frame's size over that of its largest neighbour; neighbouring key frames do not count."""
    around = slice(max(0, index - NEIGHBOURS), index + NEIGHBOURS + 1)
    sizes = np.where(packets.key[around], 0, packets.sizes[around])
    return float(packets.sizes[index] / max(1, _without(sizes, index - around.start, NEIGHBOURS).max(initial=0)))


def _stretches(packets: PacketIndex, candidates: list[int]) -> list[tuple[int, int]]:
    """Return index ranges to decode, merged: for each candidate, from the key frame before it to shortly after it."""
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
    """Find the cuts among the frames [first, last): find leaps coarsely, then measure them frame by frame."""
    start_s, end_s = (float(packets.times[i]) if i < len(packets.times) else packets.end for i in (first, last))
    coarse = thumbnails.between(start_s, end_s)
    if len(coarse) >= last - first:
        return _measured(coarse)
    # Skipped frames make the differences larger, so a cut that stands out in spite of them is one.
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
    if len(thumbnails) < 2:
        return []
    pictures = np.stack([thumbnail.light for thumbnail in thumbnails])
    steps = np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2))
    found = []
    for index in np.flatnonzero(steps > CUT_MIN):
        around = _without(steps, int(index), MARGIN)
        # A shaking camera differs much in several successive frames, a cut in one.
        if steps[index] < CUT_OVER_SHAKE * _without(steps, int(index), SHAKE).max(initial=0):
            continue
        usual = float(np.median(around)) if len(around) else 0.0
        # After a flash, the picture is again as before it.
        after = pictures[min(index + 3, len(pictures) - 1)]
        lasts = float(np.abs(pictures[index] - after).mean()) > CUT_MIN * 0.7
        if steps[index] > CUT_OVER_MOTION * usual and lasts:
            found.append(thumbnails[index + 1].time_s)
    return found


def _without(steps: np.ndarray, index: int, reach: int) -> np.ndarray:
    """Return the steps at most `reach` from `index`, without that one."""
    return np.concatenate([steps[max(0, index - reach) : index], steps[index + 1 : index + 1 + reach]])


def divide_scene(
    start_s: float, end_s: float, longest_s: float, packets: PacketIndex, voiced: np.ndarray, voiced_start_s: float
) -> list[tuple[float, float]]:
    """Divide a scene into as few clips of nearly equal length as `longest_s` allows.

    Each division is moved by up to a quarter of a clip, to the middle of the longest pause in speech, so that sentences
    stay complete where possible, and then to the next frame.

    Args:
        start_s: when the scene begins, seconds.
        end_s: when it ends.
        longest_s: the longest clip, seconds.
        packets: of the span that holds the scene.
        voiced: the probability of speech per 32 ms.
        voiced_start_s: when `voiced` begins, seconds.

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
    """Return the middle of the longest pause in [low_s, high_s], or the time at which speech is least likely."""
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
