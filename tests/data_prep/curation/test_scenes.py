"""Hard cuts are exact to the frame; motion, flashes and shaking are none; divisions are at pauses."""

import io
from itertools import pairwise

import numpy as np
import pytest
from av.error import FFmpegError

from data_prep.curation.scenes import PacketIndex, divide_scene, read_packet_index, scene_cuts
from data_prep.media.container import Media, choose_streams, open_media
from data_prep.media.thumbnails import Thumbnails
from data_prep.media.write_mp4 import write_mp4
from tests.data_prep.media.marked_media import write


def _texture(seed: int, frames: int, speed: int = 1) -> list[np.ndarray]:
    """A blurred random picture that moves sideways."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (8, 24, 3)).astype(np.float32)
    wide = np.repeat(np.repeat(small, 12, axis=0), 12, axis=1)
    wide = (wide + np.roll(wide, 3, 1) + np.roll(wide, 3, 0)) / 3
    return [np.roll(wide, -speed * k, axis=1)[:, :160].astype(np.uint8) for k in range(frames)]


def _cuts(frames: list[np.ndarray]) -> list[float]:
    out = io.BytesIO()
    write_mp4(out, frames, 25, None, 16000)
    return _found(out.getvalue())[1]


def _found(media: Media) -> tuple[PacketIndex, list[float]]:
    """Return the packets and the cuts."""
    with open_media(media) as container:
        packets, video = read_packet_index(container, 0.0, float("inf")), choose_streams(container).video
        assert packets is not None
        assert video is not None
        return packets, scene_cuts(Thumbnails(container, video), packets)


def test_cuts_to_the_frame():
    frames = [*_texture(1, 63), *_texture(2, 40), *_texture(3, 71)]
    assert _cuts(frames) == pytest.approx([63 / 25, 103 / 25], abs=1e-6)


def test_cuts_inside_a_single_group_of_pictures(tmp_path):
    frames = [*_texture(1, 30), *_texture(2, 45)]
    path = write(tmp_path / "a.mp4", frames, None, gop=500, options={})
    assert _found(path)[1] == pytest.approx([30 / 25], abs=1e-6)


@pytest.mark.parametrize(
    ("codec", "gop"), [("libx264", 250), ("libx264", 25), ("libvpx", 128), ("mpeg4", 12), ("mpeg4", 1)]
)
def test_cuts_with_any_encoder(tmp_path, codec, gop):
    lengths = [40, 61, 40, 40, 33, 77, 40]
    frames = [frame for seed, length in enumerate(lengths) for frame in _texture(seed, length, speed=2)]
    name = "a.mkv" if codec == "libvpx" else "a.mp4"
    path = write(tmp_path / name, frames, None, codecs=(codec, "aac"), gop=gop)
    assert _found(path)[1] == pytest.approx(np.cumsum(lengths)[:-1] / 25, abs=6e-4)


def test_a_shot_that_returns_is_a_shot():
    frames = [*_texture(1, 70), *_texture(2, 80), *_texture(1, 90)]
    assert _cuts(frames) == pytest.approx([70 / 25, 150 / 25], abs=1e-6)


def test_a_flash_on_a_key_frame_is_no_cut(tmp_path):
    frames = _texture(1, 120)
    frames[50] = np.full_like(frames[50], 255)
    path = write(tmp_path / "a.mp4", frames, None, gop=50)
    packets, cuts = _found(path)
    assert packets.key[50]
    assert cuts == []


def test_motion_is_no_cut():
    assert _cuts(_texture(1, 100, speed=6)) == []


def test_a_flash_is_no_cut():
    frames = _texture(1, 80)
    frames[40] = np.full_like(frames[40], 255)
    assert _cuts(frames) == []


def test_a_shaking_camera_is_no_cut():
    frames = _texture(1, 80)
    for k in range(40, 46):
        frames[k] = np.roll(frames[k], (-1) ** k * 30, axis=0)
    assert _cuts(frames) == []


def test_a_broken_file_has_no_packets():
    with pytest.raises(FFmpegError, match="Invalid data"):
        read_packet_index(b"no video at all", 0.0, 10.0)


def _track(seconds: float) -> PacketIndex:
    times = np.arange(round(seconds * 25)) / 25
    return PacketIndex(times, np.zeros(len(times), bool), np.ones(len(times)))


def test_parts_are_as_few_as_fit_and_end_at_pauses():
    voiced = np.ones(round(30 / 0.032), np.float32)
    pause = slice(round(10.5 / 0.032), round(10.9 / 0.032))
    voiced[pause] = 0.0
    found = divide_scene(0.0, 30.0, 12.0, _track(30.0), voiced, 0.0)
    assert found[0][0] == 0.0
    assert found[-1][1] == 30.0
    assert all(one[1] == other[0] for one, other in pairwise(found))
    assert all(end - start <= 12.0 for start, end in found)
    assert [end for _, end in found] == pytest.approx([10.7, 20.0, 30.0], abs=0.06)
    assert divide_scene(0.0, 12.0, 12.0, _track(12.0), voiced, 0.0) == [(0.0, 12.0)]


def test_parts_begin_on_frames():
    packets = _track(25.0)
    for start, _ in divide_scene(0.0, 25.0, 12.0, packets, np.zeros(800, np.float32), 0.0):
        assert start in packets.times
