"""Bring a clip's pictures to the shape of its bucket, for `encode` and for the training of a VAE."""

import numpy as np

from data_prep.loading.buckets import Bucket
from data_prep.media.container import Media
from data_prep.media.decode import decode_video


def bucket_frames(media: Media, start_s: float, bucket: Bucket, width: int, height: int) -> np.ndarray:
    """Decode the first `bucket.duration_s` seconds of a clip at the bucket's rate, scaled and cropped to its size.

    Args:
        media: the clip's file.
        start_s: the clip's in point in that file, seconds.
        bucket: the shape to bring the clip to.
        width: of the clip's picture when shown upright, pixels.
        height: of the same picture, pixels.

    Returns:
        (bucket.frames, bucket.height, bucket.width, 3) uint8 RGB.

    Raises:
        FFmpegError, OSError: the file cannot be opened.
        ValueError: no frame of the clip can be decoded.
    """
    crop = bucket.crop(width, height)
    frames, _ = decode_video(
        media,
        start_s,
        start_s + bucket.duration_s,
        fps=bucket.fps,
        max_frames=bucket.frames,
        size=(crop.height, crop.width),
    )
    if not len(frames):
        raise ValueError("no frame of the clip can be decoded")
    frames = frames[:, crop.top : crop.top + bucket.height, crop.left : crop.left + bucket.width]
    missing = bucket.frames - len(frames)
    if missing > 0:  # the picture ends a little before the sound: repeat the last frame
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    return np.ascontiguousarray(frames)
