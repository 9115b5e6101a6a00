"""A clip begins and ends exactly where it should, for our reader and for any reader that supports edit lists."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data_prep.media.container import open_media
from data_prep.media.cut import cut
from data_prep.media.decode import INF, decode_audio, decode_video, frame_times
from tests.data_prep.media.marked_media import lag_s, noise_sound, number_of, numbered_frame, write

KINDS = {
    "mp4": ("a.mp4", ("libx264", "aac"), 48000, "mp4"),
    "mp4-44100": ("b.mp4", ("libx264", "aac"), 44100, "mp4"),
    "ts": ("a.ts", ("libx264", "aac"), 48000, "mp4"),
    "mkv": ("a.mkv", ("libx264", "aac"), 48000, "mp4"),
    "mkv-opus": ("b.mkv", ("libx264", "libopus"), 48000, "mp4"),
    "mp3": ("c.mp4", ("libx264", "libmp3lame"), 48000, "mp4"),
    "webm": ("a.webm", ("libvpx", "libopus"), 48000, "mkv"),
}


@pytest.fixture(scope="module", params=list(KINDS))
def source(request, tmp_path_factory):
    name, codecs, rate, suffix = KINDS[request.param]
    path = tmp_path_factory.mktemp("source") / name
    write(path, [numbered_frame(k) for k in range(150)], noise_sound(6.0, rate), codecs=codecs, rate=rate, gop=40)
    return path, rate, suffix


@pytest.mark.parametrize(("start", "end"), [(0, 50), (37, 90), (80, 120), (101, 150)])
def test_the_exact_frames_and_the_sound_to_a_millisecond(source, start, end):
    path, rate, suffix = source
    times = frame_times(path, 0.0, INF)
    start_s, end_s = times[start], times[end] if end < 150 else times[-1] + 0.04
    made = cut(path, start_s, end_s)
    assert made.suffix == suffix
    assert made.out_s - made.in_s == pytest.approx(end_s - start_s, abs=1e-6)
    frames, at = decode_video(made.data, made.in_s, made.out_s)
    assert [number_of(frame) for frame in frames] == list(range(start, end))
    np.testing.assert_allclose(at - made.in_s, np.array(times[start:end]) - start_s, atol=6e-4)
    heard = decode_audio(made.data, made.in_s, made.out_s, rate, 1)[0]
    truth = noise_sound(6.0, rate)[0, round(start * 0.04 * rate) :][: len(heard)]
    assert abs(lag_s(truth, heard, rate)) <= 0.001


def test_the_same_bytes_again(source):
    path, _, _ = source
    times = frame_times(path, 0.0, INF)
    assert cut(path, times[30], times[90]).data == cut(path.read_bytes(), times[30], times[90]).data


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffmpeg_sees_the_same_clip(source, tmp_path):
    path, rate, suffix = source
    if suffix != "mp4":
        pytest.skip("Matroska has no edit list: its in point is stored beside the file")
    times = frame_times(path, 0.0, INF)
    made = cut(path, times[37], times[90])
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(made.data)
    entries = "stream=nb_read_frames,start_time,duration"
    command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v", "-show_entries", entries]
    printed = subprocess.run([*command, "-of", "csv=p=0", str(clip)], capture_output=True, text=True, check=True).stdout
    begin, duration, count = printed.strip().rstrip(",").split(",")
    assert int(count) == 53
    assert float(begin) == 0.0
    assert float(duration) == pytest.approx(53 * 0.04, abs=0.002)
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        str(clip),
        "-map",
        "0:a",
        "-ac",
        "1",
        "-ar",
        str(rate),
        "-f",
        "f32le",
        "-",
    ]
    heard = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.float32)
    truth = noise_sound(6.0, rate)[0, round(37 * 0.04 * rate) :][: round(53 * 0.04 * rate)]
    assert abs(lag_s(truth, heard, rate)) <= 0.001


def test_sound_that_begins_inside_the_clip(tmp_path):
    sound = noise_sound(3.0, 48000)
    path = write(tmp_path / "late.mp4", [numbered_frame(k) for k in range(100)], sound, sound_late_s=1.0)
    made = cut(path, 0.4, 3.2)
    heard = decode_audio(made.data, made.in_s, made.out_s, 48000, 1)[0]
    assert np.abs(heard[:27000]).max() < 1e-3
    assert abs(lag_s(sound[0, :105600], heard[28800:], 48000)) <= 0.001


def test_nothing_is_encoded_again(tmp_path):
    path = write(tmp_path / "a.mp4", [numbered_frame(k) for k in range(100)], noise_sound(4.0, 48000), gop=10)
    with open_media(path) as container:
        of_source = {bytes(packet) for packet in container.demux() if packet.size}
    with open_media(cut(path, 1.0, 3.0).data) as container:
        of_clip = [bytes(packet) for packet in container.demux() if packet.size]
    assert of_clip
    assert set(of_clip) <= of_source


def test_a_span_without_packets(tmp_path):
    path = write(tmp_path / "a.mp4", [numbered_frame(k) for k in range(50)], None)
    with pytest.raises(ValueError, match="no packet"):
        cut(Path(path), 900.0, 905.0)
