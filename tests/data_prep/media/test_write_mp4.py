"""`write_mp4`: players and our reader get back what was written."""

import io

import av
import numpy as np
import pytest

from data_prep.media.write_mp4 import exact_rate, write_mp4


def _frames(count: int, colour=(220, 30, 60)) -> np.ndarray:
    frames = np.zeros((count, 64, 96, 3), np.uint8)
    frames[...] = colour
    return frames


def _tone(seconds: float, rate: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate) * np.ones((2, 1))).astype(np.float32)


@pytest.mark.parametrize(("fps", "rate"), [(24, 24000), (29.97, 44100), (25, 48000), (24, 16000)])
@pytest.mark.parametrize("sound_s", [1.0, 4.0])
def test_streams_end_together(fps, rate, sound_s):
    buffer = io.BytesIO()
    write_mp4(buffer, _frames(49), fps, _tone(sound_s, rate), rate)
    with av.open(io.BytesIO(buffer.getvalue()), "r") as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.codec_context.name == "h264"
        assert audio.codec_context.name == "aac"
        assert audio.channels == 2
        ends = [float((s.duration or 0) * (s.time_base or 0)) for s in (video, audio)]
        assert abs(ends[0] - ends[1]) <= 0.04
        assert abs(ends[0] - 49 / fps) <= 0.002
    assert buffer.getvalue().index(b"moov") < buffer.getvalue().index(b"mdat")


def test_the_same_bytes_from_an_array_and_an_iterator(tmp_path):
    frames, tone = _frames(20), _tone(1, 24000)
    buffer = io.BytesIO()
    write_mp4(buffer, iter(frames), 24, tone, 24000)
    write_mp4(tmp_path / "a.mp4", frames, 24, tone, 24000)
    assert (tmp_path / "a.mp4").read_bytes() == buffer.getvalue()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_colour_survives():
    buffer = io.BytesIO()
    write_mp4(buffer, _frames(5), 24, None, 24000)
    with av.open(io.BytesIO(buffer.getvalue()), "r") as container:
        pixel = next(container.decode(video=0)).to_ndarray(format="rgb24")[10, 10]
    assert np.abs(pixel.astype(int) - (220, 30, 60)).max() <= 4


def test_wrong_input_is_said_plainly(tmp_path):
    with pytest.raises(ValueError, match="even width"):
        write_mp4(tmp_path / "a.mp4", np.zeros((2, 63, 64, 3), np.uint8), 24, None, 24000)
    with pytest.raises(ValueError, match="no frame"):
        write_mp4(tmp_path / "a.mp4", [], 24, None, 24000)
    with pytest.raises(ValueError, match="stereo"):
        write_mp4(tmp_path / "a.mp4", _frames(2), 24, np.zeros((1, 100), np.float32), 24000)
    assert list(tmp_path.iterdir()) == []


def test_exact_rate():
    assert [str(exact_rate(fps)) for fps in (29.97, 23.976, 25, 59.94, 12.5)] == [
        "30000/1001",
        "24000/1001",
        "25",
        "60000/1001",
        "25/2",
    ]
