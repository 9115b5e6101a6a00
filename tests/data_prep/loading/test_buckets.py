"""Buckets: their grid, their token counts, and the choice of a clip's bucket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.loading.buckets import Bucket, choose, parse_key

WIDE = Bucket(frames=49, height=128, width=192, fps=24)
LONG = Bucket(frames=121, height=128, width=192, fps=24)
LARGE = Bucket(frames=49, height=256, width=384, fps=24)
TALL = Bucket(frames=49, height=192, width=128, fps=24)
ALL = [TALL, WIDE, LARGE, LONG]


def info(width=640, height=427, fps=24.0, duration_s=3.0):
    return {"width": width, "height": height, "fps": fps, "duration_s": duration_s}


def test_the_published_token_counts():
    """facts §2.3: 121 frames at 24 fps, 512 × 768 pixels: 16 × 16 × 24 = 6,144 video tokens, 126 audio tokens."""
    bucket = Bucket(frames=121, height=512, width=768, fps=24)
    assert bucket.latent_shape == (16, 16, 24)
    assert (bucket.video_tokens, bucket.audio_tokens) == (6144, 126)
    assert bucket.key == "f121_h512_w768_a126"


def test_a_key_says_the_shape():
    assert WIDE.key == "f49_h128_w192_a51"
    shape = parse_key(WIDE.key)
    assert shape == (49, 128, 192, 51)
    assert (shape.latent_shape, shape.video_tokens) == (WIDE.latent_shape, WIDE.video_tokens)
    with pytest.raises(ValueError, match="not a bucket key"):
        parse_key("f49_h128")


@pytest.mark.parametrize("wrong", [{"frames": 48}, {"height": 100}, {"width": 200}, {"fps": 0}, {"depth": 3}])
def test_off_the_grid_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Bucket(**wrong)


def test_the_longest_then_the_largest_of_the_nearest_aspect():
    assert choose(info(duration_s=6), ALL) == (LONG, "")
    assert choose(info(duration_s=3), ALL) == (LARGE, "")
    assert choose(info(width=320, height=214, duration_s=3), ALL) == (WIDE, "")
    assert choose(info(width=427, height=640, duration_s=6), ALL) == (TALL, "")


def test_a_clip_that_fills_no_bucket_gets_a_reason():
    assert choose(info(width=160, height=120), ALL) == (None, "too small")
    assert choose(info(duration_s=1.5), ALL) == (None, "too short")
    assert choose(info(fps=15), ALL) == (None, "frame rate too low")
    assert choose(info(fps=23.976, duration_s=49 / 23.976), [WIDE]) == (WIDE, "")


def test_frames_stand_in_for_an_unknown_duration():
    assert choose({"width": 192, "height": 128, "fps": 24, "frames": 49}, ALL) == (WIDE, "")
    assert choose({"width": 192, "height": 128, "fps": 24, "frames": 48}, ALL) == (None, "too short")


@given(
    width=st.integers(16, 4000),
    height=st.integers(16, 4000),
    fps=st.floats(5, 120),
    duration_s=st.floats(0.1, 30),
)
def test_no_clip_is_upscaled_slowed_or_repeated(width, height, fps, duration_s):
    bucket, reason = choose(info(width, height, fps, duration_s), ALL)
    if bucket is None:
        assert reason
        assert all(b.misfit(width, height, fps, duration_s) for b in ALL)
        return
    crop = bucket.crop(width, height)
    assert crop.width <= width
    assert crop.height <= height
    assert 0 <= crop.left <= crop.width - bucket.width
    assert 0 <= crop.top <= crop.height - bucket.height
    assert crop.width == bucket.width or crop.height == bucket.height
    assert duration_s + 1 / bucket.fps > bucket.duration_s
