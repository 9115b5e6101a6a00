"""A clip's frames in the shape of its bucket."""

import wave

import numpy as np
import pytest

from data_prep.loading.bucket_frames import bucket_frames
from data_prep.loading.buckets import Bucket
from data_prep.media.write_mp4 import write_mp4

BUCKET = Bucket(frames=9, height=64, width=96, fps=24)


def test_a_clip_is_scaled_cropped_and_held_at_its_end(tmp_path):
    frames = np.zeros((8, 128, 256, 3), np.uint8)
    frames[:, :, 24:232] = 255  # the crop to the bucket's aspect ratio leaves columns 32 to 224
    write_mp4(tmp_path / "a.mp4", frames, 24, None, 16000)
    made = bucket_frames(tmp_path / "a.mp4", 0.0, BUCKET, width=256, height=128)
    assert made.shape == (9, 64, 96, 3)
    assert made.min() > 200
    np.testing.assert_array_equal(made[8], made[7])


def test_a_clip_without_frames_is_an_error(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(bytes(32000))
    with pytest.raises(ValueError, match="no frame of the clip can be decoded"):
        bucket_frames(tmp_path / "a.wav", 0.0, BUCKET, width=96, height=64)
