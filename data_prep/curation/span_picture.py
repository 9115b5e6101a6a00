"""The frames of one span: the times of its cuts, the hashes of its key frames, and facts for the `info` of a clip."""

from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
from av.container import InputContainer

from data_prep.clip import Clip
from data_prep.curation.near_duplicates import picture_hashes
from data_prep.curation.scenes import PacketIndex, scene_cuts
from data_prep.media.container import choose_streams
from data_prep.media.decode import Picture
from data_prep.media.thumbnails import Thumbnails


class SpanPicture:
    """The frames of a span. Each method decodes only the frames that it needs, and a key frame is decoded only once.

    Args:
        source: the open source.
        packets: the packets of its video stream in the span.
    """

    def __init__(self, source: InputContainer, packets: PacketIndex) -> None:
        self._packets = packets
        self._streams = choose_streams(source)
        assert self._streams.video is not None, "the packets were read from a video stream"
        self._video = self._streams.video
        self._thumbnails = Thumbnails(source, self._video)

    def cuts(self) -> list[float]:
        """Return the times of the hard cuts (the first frames of new shots), seconds, ordered."""
        return scene_cuts(self._thumbnails, self._packets)

    def hashes(self, clip: Clip) -> list[int]:
        """Return the 64-bit hashes of the clip's first key frames, at most three (`near_duplicates.picture_hashes`)."""
        packets, half = self._packets, self._packets.step / 2
        inside = packets.key & (packets.times >= clip.start_s - half) & (packets.times < clip.end_s - half)
        return picture_hashes(self._thumbnails, packets.times[inside].tolist(), half)

    def record(self, clip: Clip) -> dict[str, Any]:
        """Return facts for the `info` of a clip: picture size, rotation, frame rate, number of frames, codec, streams.

        Raises:
            ValueError: no key frame of the span can be decoded.
        """
        packets, look = self._packets, self._look
        inside = packets.times[(packets.times >= clip.start_s - 1e-6) & (packets.times < clip.end_s - packets.step / 2)]
        steps = np.diff(inside)
        return {
            "width": look.width,
            "height": look.height,
            "rotation": look.rotation,
            "fps": round(1 / float(steps.mean()), 6) if len(steps) else round(1 / packets.step, 6),
            "frames": len(inside),
            "constant_rate": bool(len(steps) and np.abs(steps - median(steps)).max() < 0.002),
            "video_codec": self._video.codec_context.codec.canonical_name,
            **self._streams.record,
        }

    @cached_property
    def _look(self) -> Picture:
        """Return size and rotation of the span's picture, from a decoded key frame.

        It is the first key frame of the span that can be decoded; else the one before the span.
        """
        keys, half = self._packets.times[self._packets.key].tolist(), self._packets.step / 2
        found = self._thumbnails.keys(keys[:1], half) or self._thumbnails.keys(keys, half)
        first = found[min(found)] if found else self._thumbnails.before(float(self._packets.times[0]))
        if first is None:
            raise ValueError("no picture can be decoded")
        return first.shown
