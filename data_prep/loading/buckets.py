"""Buckets: the few shapes that clips are brought to, so that all samples of a batch have one shape.

A bucket is a number of frames (1 + 8k, for the video VAE's causal stride), a height and a width (multiples of 32), and
a frame rate. The sound lasts as long as the picture, at 25 audio latents per second. A video token is one latent pixel
(8 × 32 × 32 pixels of the picture); an audio token is one audio latent.

`choose` takes the buckets that a clip can fill without being upscaled, slowed or repeated, and of these the one with
the nearest aspect ratio; among equal ratios the longest, then the largest. A clip that fills no bucket gets a reason.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from pydantic import Field, model_validator

from data_prep.settings import Settings

AUDIO_LATENTS_PER_S = 25
MEL_FRAMES_PER_LATENT = 4

# Lets a clip of 23.976 fps fill a bucket of 24 fps; one of 15 fps does not.
_FPS_TOLERANCE = 0.97


class BucketShape(NamedTuple):
    """The size of a bucket's clips: frames, height and width in pixels, audio latents. The index stores its key."""

    frames: int
    height: int
    width: int
    audio_tokens: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the video latent: (frames, height, width)."""
        return 1 + (self.frames - 1) // 8, self.height // 32, self.width // 32

    @property
    def video_tokens(self) -> int:
        """Number of video tokens: the latent pixels of all latent frames."""
        return math.prod(self.latent_shape)

    @property
    def key(self) -> str:
        """The bucket's name in the index, such as f49_h128_w192_a51."""
        return f"f{self.frames}_h{self.height}_w{self.width}_a{self.audio_tokens}"


_KEY = re.compile(r"f(\d+)_h(\d+)_w(\d+)_a(\d+)")


def parse_key(key: str) -> BucketShape:
    """Return the shape that a bucket's key names: the inverse of `BucketShape.key`.

    Raises:
        ValueError: not a bucket key.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key!r} is not a bucket key (such as f49_h128_w192_a51); write the index anew with encode")
    return BucketShape(*map(int, match.groups()))


class Crop(NamedTuple):
    """How to fit a picture to a bucket: scale it to `width` × `height` pixels, then crop it from (`left`, `top`) on."""

    width: int
    height: int
    left: int
    top: int


class Bucket(Settings):
    """One shape of clip."""

    frames: int = Field(default=49, description="frames: 1 + a multiple of 8", ge=1)
    height: int = Field(default=128, description="pixels: a multiple of 32", ge=32)
    width: int = Field(default=192, description="pixels: a multiple of 32", ge=32)
    fps: float = Field(default=24.0, description="frames per second", gt=0)

    @model_validator(mode="after")
    def _on_the_grid(self) -> Self:
        """Refuse sizes that are not multiples of the VAE's strides."""
        if self.frames % 8 != 1:
            near = 1 + 8 * round((self.frames - 1) / 8)
            raise ValueError(f"frames must be 1 + a multiple of 8; {self.frames} is not, {near} is")
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels % 32:
                near = max(32, 32 * round(pixels / 32))
                raise ValueError(f"{name} must be a multiple of 32; {pixels} is not, {near} is")
        return self

    @property
    def duration_s(self) -> float:
        """Length of the picture, and of the sound, in seconds."""
        return self.frames / self.fps

    @property
    def shape(self) -> BucketShape:
        """The bucket's size, without its frame rate."""
        return BucketShape(self.frames, self.height, self.width, self.audio_tokens)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the video latent: (frames, height, width)."""
        return self.shape.latent_shape

    @property
    def video_tokens(self) -> int:
        """Number of video tokens: the latent pixels of all latent frames."""
        return self.shape.video_tokens

    @property
    def audio_tokens(self) -> int:
        """Number of audio tokens: the audio latents, 25 per second, rounded."""
        return round(self.duration_s * AUDIO_LATENTS_PER_S)

    @property
    def mel_frames(self) -> int:
        """Number of mel frames of the sound: 4a − 3 for a = `audio_tokens`.

        The audio VAE encodes exactly this many to a latents, and decodes a latents to this many.
        """
        return MEL_FRAMES_PER_LATENT * self.audio_tokens - (MEL_FRAMES_PER_LATENT - 1)

    @property
    def key(self) -> str:
        """The bucket's name in the index, such as f49_h128_w192_a51."""
        return self.shape.key

    def crop(self, width: int, height: int) -> Crop:
        """Return how to scale a picture (`width` × `height` pixels) until it covers the bucket, and crop its middle."""
        scale = max(self.width / width, self.height / height)
        scaled_width = max(self.width, round(width * scale))
        scaled_height = max(self.height, round(height * scale))
        return Crop(scaled_width, scaled_height, (scaled_width - self.width) // 2, (scaled_height - self.height) // 2)

    def misfit(self, width: int, height: int, fps: float, duration_s: float) -> str:
        """Return why a clip cannot fill this bucket, or "" if it can.

        Args:
            width: of the picture, pixels.
            height: of the picture, pixels.
            fps: frames per second.
            duration_s: length of the clip, seconds.
        """
        if width < self.width or height < self.height:
            return "too small"
        if fps < self.fps * _FPS_TOLERANCE:
            return "frame rate too low"
        # Half a frame of slack: a container's duration and its last frame's end rarely agree to the last digit.
        if duration_s < (self.frames - 0.5) / self.fps:
            return "too short"
        return ""


def choose(info: Mapping[str, Any], buckets: Sequence[Bucket]) -> tuple[Bucket | None, str]:
    """Choose the bucket of a clip.

    Args:
        info: the clip's `width` and `height` in pixels, `fps`, and `duration_s` or else `frames`.
        buckets: the buckets to choose from, at least one.

    Returns:
        (bucket, "") or (None, reason). The reason is "too small", "frame rate too low" or "too short", for the bucket
        with the nearest aspect ratio.
    """
    assert buckets
    width, height, fps = int(info["width"]), int(info["height"]), float(info["fps"])
    duration_s = float(info["duration_s"]) if "duration_s" in info else int(info["frames"]) / fps
    aspect = math.log(width / height)

    def preference(bucket: Bucket) -> tuple[float, float, int]:
        # Round, so that buckets of one aspect ratio at two sizes compare equal.
        distance = round(abs(math.log(bucket.width / bucket.height) - aspect), 6)
        return distance, -bucket.duration_s, -bucket.width * bucket.height

    ranked = sorted(buckets, key=preference)
    for bucket in ranked:
        if not bucket.misfit(width, height, fps, duration_s):
            return bucket, ""
    return None, ranked[0].misfit(width, height, fps, duration_s)
