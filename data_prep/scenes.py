"""Hard cuts, found without decoding more than they need.

Encoders tell where the picture may have changed: they place a key frame at a cut, or spend as many bytes on a frame as
on a key frame. So candidates come from the packets alone. A key frame is looked at beside the key frame before it,
both decoded small; only where those differ, or a packet stands out, is the stretch between decoded in full, small, to
find the exact frame. A dissolve is no hard cut and is not found.
"""

from dataclasses import dataclass
from itertools import pairwise

import av
import numpy as np
from av.error import FFmpegError

from data_prep.container import Media, Packets, choose_streams, open_media, timestamp

SMALL = (18, 32)  # height, width of the pictures that are compared
CUT_MIN = 0.10  # mean absolute difference of two frames at a cut, of the full range
CUT_OVER_MOTION = 3.0  # and this many times the usual difference around it
CUT_OVER_SHAKE = 2.0  # and this many times the largest one close by
SHAKE = 4  # frames that are close by
SPIKE = 2.0  # a packet this many times the largest of its neighbours stands out
NEIGHBOURS = 12
_PLANAR = frozenset(["yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray"])
MARGIN = 8  # frames beyond a stretch that are decoded too, to know the motion around a cut


@dataclass(frozen=True)
class Track:
    """The picture's packets in a span, in order of presentation; nothing is decoded to know them.

    Attributes:
        times: seconds, (N,). key: whether decoding can begin there, (N,). sizes: bytes, (N,).
    """

    times: np.ndarray
    key: np.ndarray
    sizes: np.ndarray

    @property
    def step(self) -> float:
        """The usual time from one frame to the next, seconds."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.04

    @property
    def end(self) -> float:
        """When the last frame leaves the screen, seconds."""
        return float(self.times[-1]) + self.step


def read_track(media: Media, start_s: float, end_s: float) -> Track | None:
    """The picture's packets with a time in [start_s, end_s); None without a video stream or packet.

    Raises:
        FFmpegError, OSError: the file cannot be opened.
    """
    with open_media(media) as container:
        stream = choose_streams(container).video
        if stream is None:
            return None
        half = float(stream.time_base or 0) / 2
        rows, late = [], 0
        for packet in Packets(container, stream, start_s):
            time_s = timestamp(packet)
            if time_s is None or packet.is_discard or not packet.size:
                continue
            late = late + 1 if time_s >= end_s else 0
            if late > 64:  # packets come in decoding order; no codec reorders further
                break
            if start_s - half <= time_s < end_s - half:
                rows.append((time_s, packet.is_keyframe, packet.size))
    if not rows:
        return None
    rows.sort()
    times, key, sizes = zip(*rows, strict=True)
    return Track(np.array(times), np.array(key), np.array(sizes))


def scene_cuts(media: Media, track: Track) -> list[float]:
    """Times of the first frames of new shots, seconds, ordered; the track's own start is none.

    Raises:
        FFmpegError, OSError: the file cannot be opened.
    """
    cuts: set[float] = set()
    for first, last in _stretches(track, _changed(media, track)):
        cuts.update(_cuts_between(media, track, first, last))
    return sorted(cuts)


def _changed(media: Media, track: Track) -> list[int]:
    """Indices of the frames at which a shot may begin or have begun since the key frame before."""
    keys = np.flatnonzero(track.key)
    found = set(_spikes(track))
    if len(keys) > 1:
        looks = dict(_looks(media, float(track.times[0]), track.end, only_keys=True))
        stamps = np.array(list(looks))
        for before, after in pairwise(keys):
            one, other = (_nearest(stamps, float(track.times[index]), track.step / 2) for index in (before, after))
            # A key frame that does not decode says nothing; its stretch is then looked at.
            if one is None or other is None or _difference(looks[one], looks[other]) > CUT_MIN / 2:
                found.add(int(after))
    return sorted(found)


def _nearest(stamps: np.ndarray, time_s: float, within_s: float) -> float | None:
    best = float(stamps[np.abs(stamps - time_s).argmin()]) if len(stamps) else np.inf
    return best if abs(best - time_s) < within_s else None


def _spikes(track: Track) -> list[int]:
    """Frames that are no key frames and yet far larger than all around them."""
    sizes = np.where(track.key, 0, track.sizes)
    key_size = float(np.median(track.sizes[track.key])) if track.key.any() else float(track.sizes.max())
    found = []
    for index in np.flatnonzero(sizes > 0.3 * key_size):
        if sizes[index] > SPIKE * _without(sizes, int(index), NEIGHBOURS).max(initial=0):
            found.append(int(index))
    return found


def _stretches(track: Track, candidates: list[int]) -> list[tuple[int, int]]:
    """Index ranges to decode: for each candidate, from the key frame before it to a little after; merged."""
    keys = np.flatnonzero(track.key)
    found: list[tuple[int, int]] = []
    for index in candidates:
        earlier = keys[keys < index]
        # At a key frame the change may lie anywhere since the one before; at a spike it lies at the spike.
        first = max(0, int(earlier[-1]) if len(earlier) else 0)
        last = min(len(track.times), index + 1 + MARGIN)
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _cuts_between(media: Media, track: Track, first: int, last: int) -> list[float]:
    end_s = float(track.times[last]) if last < len(track.times) else track.end
    looks = _looks(media, float(track.times[first]), end_s, only_keys=False)
    if len(looks) < 2:
        return []
    pictures = np.stack([picture for _, picture in looks])
    steps = np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2))
    found = []
    for index in np.flatnonzero(steps > CUT_MIN):
        around = _without(steps, int(index), MARGIN)
        # A shaking camera leaps in several frames running, a cut in one.
        if steps[index] < CUT_OVER_SHAKE * _without(steps, int(index), SHAKE).max(initial=0):
            continue
        usual = float(np.median(around)) if len(around) else 0.0
        # A flash comes back: the picture after it is again like the one before.
        after = pictures[min(index + 3, len(pictures) - 1)]
        if steps[index] > CUT_OVER_MOTION * usual and _difference(pictures[index], after) > CUT_MIN * 0.7:
            found.append(looks[index + 1][0])
    return found


def _without(steps: np.ndarray, index: int, reach: int) -> np.ndarray:
    """The steps up to `reach` away from `index`, but not that one."""
    return np.concatenate([steps[max(0, index - reach) : index], steps[index + 1 : index + 1 + reach]])


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def _looks(media: Media, start_s: float, end_s: float, *, only_keys: bool) -> list[tuple[float, np.ndarray]]:
    """Small pictures, (18, 32) float32 in [0, 1], of a span with their times."""
    found = []
    with open_media(media) as container:
        stream = choose_streams(container).video
        assert stream is not None, "a track was read from a video stream"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"skip_loop_filter": "all"}  # invisible at this size, and a quarter cheaper
        if only_keys:
            stream.codec_context.skip_frame = "NONKEY"
        half = float(stream.time_base or 0) / 2
        for packet in Packets(container, stream, start_s):
            if only_keys and packet.size and not packet.is_keyframe:
                continue
            try:
                frames = packet.decode()
            except (FFmpegError, ValueError):
                continue
            for frame in frames:
                if frame.pts is None or frame.time_base is None:
                    continue
                time_s = float(frame.pts * frame.time_base)
                if time_s >= end_s - half:
                    return found
                if time_s >= start_s - half:
                    found.append((time_s, _small(frame)))
    return found


def _small(frame: av.VideoFrame) -> np.ndarray:
    """The frame's brightness as (18, 32) float32 in [0, 1]; the means of blocks, of every second pixel when large."""
    height, width = SMALL
    if frame.format.name in _PLANAR and frame.height >= 2 * height and frame.width >= 2 * width:
        plane = frame.planes[0]  # read in place: scaling in full costs as much as decoding
        plane_bytes = np.asarray(memoryview(plane))
        pixels = plane_bytes.reshape(-1, plane.line_size)[: frame.height, : frame.width]
        step = max(1, min(frame.height // height, frame.width // width) // 8)
        pixels = pixels[::step, ::step]
    else:
        pixels = frame.reformat(width=4 * width, height=4 * height, format="gray").to_ndarray()
    tall, wide = pixels.shape[0] // height, pixels.shape[1] // width
    blocks = pixels[: tall * height, : wide * width].reshape(height, tall, width, wide)
    return blocks.mean(axis=(1, 3), dtype=np.float32) / 255


def parts(
    start_s: float, end_s: float, longest_s: float, track: Track, voiced: np.ndarray, voiced_start_s: float
) -> list[tuple[float, float]]:
    """Divide a scene into as few parts of nearly equal length as `longest_s` allows.

    Each division is moved, by up to a quarter of a part, to the middle of the longest pause in speech, so that
    sentences stay whole where they can, and then to the next frame.

    Args:
        voiced: the probability of speech per 32 ms, from `voiced_start_s` on.
    """
    count = max(1, int(np.ceil((end_s - start_s) / longest_s - 1e-6)))
    # Room for the moving: parts that would be full length could not be moved.
    if count > 1 and (end_s - start_s) / count > 0.9 * longest_s:
        count += 1
    length = (end_s - start_s) / count
    edges = [start_s]
    for index in range(1, count):
        ideal = start_s + index * length
        reach = min(length / 4, (longest_s - length) / 2)
        moved = _pause(voiced, voiced_start_s, ideal - reach, ideal + reach)
        edges.append(float(track.times[min(np.searchsorted(track.times, moved), len(track.times) - 1)]))
    edges.append(end_s)
    return [(first, last) for first, last in pairwise(edges) if last > first]


def _pause(voiced: np.ndarray, start_s: float, low_s: float, high_s: float) -> float:
    """The middle of the longest unvoiced stretch in [low_s, high_s], or where speech is least likely."""
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
