import numpy as np
import pytest

from captioning.look.picture_statistics import COLOURS, describe, name_colours

H, W, F = 90, 160, 32
TIMES = np.arange(F) / 8


def textured(height: int, width: int) -> np.ndarray:
    """Make a picture (height, width, 3) with detail everywhere."""
    coarse = np.random.default_rng(1).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)[:height, :width]


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((5, 5, 5), "black"),
        ((250, 250, 250), "white"),
        ((128, 128, 128), "grey"),
        ((220, 20, 30), "red"),
        ((250, 140, 10), "orange"),
        ((100, 60, 25), "brown"),
        ((225, 200, 160), "beige"),
        ((240, 230, 20), "yellow"),
        ((40, 160, 50), "green"),
        ((20, 220, 220), "cyan"),
        ((30, 60, 210), "blue"),
        ((140, 30, 200), "purple"),
        ((255, 150, 180), "pink"),
    ],
)
def test_colours_have_their_names(rgb, name):
    assert COLOURS[int(name_colours(np.array([[rgb]], np.uint8))[0, 0])] == name


def test_colours_are_told_by_region_and_share():
    frames = np.zeros((F, H, W, 3), np.uint8)
    frames[:, : H // 2] = (30, 60, 210)
    frames[:, H // 2 :] = (40, 160, 50)
    found = describe(frames, TIMES)
    assert found["regions"]["upper"] == "blue"
    assert found["regions"]["lower"] == "green"
    assert found["colours"] == pytest.approx({"blue": 0.5, "green": 0.5}, abs=0.02)
    assert not found["black_and_white"]
    assert found["movement"] == 0


def test_black_and_white_is_told_from_colour():
    grey = textured(H, W).mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    assert describe(np.repeat(grey[None], F, 0), TIMES)["black_and_white"]


@pytest.mark.parametrize(
    ("step", "camera"), [((0, 2), "pans right"), ((0, -2), "pans left"), ((1, 0), "tilts down"), ((-1, 0), "tilts up")]
)
def test_a_pan_is_told_with_its_direction(step, camera):
    world = textured(200, 400)
    y, x = 60, 120
    frames = np.stack([world[y + k * step[0] :, x + k * step[1] :][:H, :W] for k in range(F)])
    assert describe(frames, TIMES)["camera"] == camera


def test_a_moving_thing_is_no_moving_camera():
    frames = np.repeat(textured(H, W)[None], F, 0)
    for k in range(F):
        frames[k, 40:60, 4 * k : 4 * k + 20] = (255, 255, 255)
    found = describe(frames, TIMES)
    assert found["camera"] == "static"
    assert found["path"] == "left to right"


def test_a_thing_on_an_empty_ground_tells_no_pan():
    frames = np.zeros((F, H, W, 3), np.uint8)
    ball = textured(50, 70)
    for k in range(F):
        frames[k, 20:70, 20 + 2 * k : 90 + 2 * k] = ball
    assert describe(frames, TIMES)["camera"] == ""


def test_movement_on_one_side_is_placed():
    frames = np.repeat(textured(H, W)[None], F, 0)
    frames[::2, 30:50, 130:150] = 0
    assert describe(frames, np.arange(F) / 4)["where"] == "right"


def test_a_cut_is_found_and_a_fade_is_none():
    one, other = textured(H, W), textured(H, W)[::-1, ::-1]
    cut = np.stack([one if k < 16 else other for k in range(F)])
    assert describe(cut, TIMES)["cuts"] == [2.0]
    assert describe(cut, TIMES)["camera"] == ""
    fade = np.stack([(one * (k / F)).astype(np.uint8) for k in range(F)])
    assert describe(fade, TIMES)["cuts"] == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_frames_are_enough(count):
    assert describe(np.zeros((count, H, W, 3), np.uint8), np.arange(count) / 8)["colours"] == {"black": 1.0}


def test_no_frame_is_an_error():
    with pytest.raises(ValueError, match="no frame"):
        describe(np.zeros((0, H, W, 3), np.uint8), np.zeros(0))
