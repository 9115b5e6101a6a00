"""Sound and frames are decoded at their exact times, whatever the container does to them."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError

from data_prep.curation.scenes import read_packet_index
from data_prep.media.container import choose_streams, last_timestamp, open_for_sound, open_media
from data_prep.media.decode import INF, decode_audio, decode_video, distinct, frame_times, read_sound, resample
from data_prep.media.timestamps import runs
from data_prep.scores.sound import level_scores
from tests.data_prep.media.marked_media import lag_s, noise_sound, number_of, numbered_frame, write

SHARED = Path(__file__).parents[3].parent / "shared"
needs_clips = pytest.mark.skipif(not (SHARED / "media" / "clips").is_dir(), reason="shared/media is not here")

KINDS = {
    "mp4": ("a.mp4", ("libx264", "aac")),
    "ts": ("a.ts", ("libx264", "aac")),
    "mkv": ("a.mkv", ("libx264", "aac")),
    "webm": ("a.webm", ("libvpx", "libopus")),
}
OTHERS = {"avi": ("a.avi", ("mpeg4", "libmp3lame")), "flv": ("a.flv", ("libx264", "aac"))}


@pytest.fixture(scope="module", params=list(KINDS))
def marked(request, tmp_path_factory):
    name, codecs = KINDS[request.param]
    folder = tmp_path_factory.mktemp("marked")
    sound = noise_sound(6.0, 48000)
    path = write(folder / name, [numbered_frame(k) for k in range(150)], sound, codecs=codecs)
    return path, sound


@pytest.mark.parametrize(("start", "end"), [(0, 20), (37, 90), (61, 62), (100, 150)])
def test_frames_are_exact(marked, start, end):
    path, _ = marked
    times = frame_times(path, 0.0, INF)
    assert len(times) == 150
    last = times[end] if end < 150 else INF
    frames, at = decode_video(path, times[start], last)
    assert [number_of(frame) for frame in frames] == list(range(start, end))
    np.testing.assert_allclose(at, times[start:end], atol=1e-9)


@pytest.mark.parametrize("start_s", [0.0, 1.48, 3.333])
def test_sound_is_on_time(marked, start_s):
    path, sound = marked
    origin = frame_times(path, 0.0, INF)[0]  # a transport stream begins at 1.4 s
    heard = decode_audio(path, origin + start_s, origin + start_s + 2.0, 48000, 1)
    assert heard.shape == (1, 96000)
    first = round(start_s * 48000)
    assert abs(lag_s(sound[0, first : first + 96000], heard[0], 48000)) <= 0.001


def test_a_constant_rate_shows_what_is_on_display(tmp_path):
    times = [Fraction(k * k, 100) for k in range(12)]  # each frame stays longer than the one before
    path = write(tmp_path / "vfr.mp4", [numbered_frame(k) for k in range(12)], None, times=times)
    frames, at = decode_video(path, 0.0, 1.2, fps=50)
    shown = [max(k for k in range(12) if times[k] <= Fraction(n, 50)) for n in range(60)]
    assert [number_of(frame) for frame in frames] == shown
    np.testing.assert_allclose(at, np.arange(60) / 50)
    # A span that starts between two frames shows the earlier one first.
    frames, _ = decode_video(path, 0.3, 0.5, fps=20)
    assert [number_of(frame) for frame in frames] == [5, 5, 6, 6]


def test_rates_of_a_millisecond_time_base_do_not_slip(tmp_path):
    path = write(tmp_path / "a.mkv", [numbered_frame(k) for k in range(90)], None, fps=30)
    frames, _ = decode_video(path, 0.0, 3.0, fps=30)
    assert [number_of(frame) for frame in frames] == list(range(90))


def test_at_most_so_many_frames_spread_evenly(marked):
    path, _ = marked
    origin = frame_times(path, 0.0, INF)[0]
    frames, _ = decode_video(path, origin, INF, max_frames=4, size=(32, 64))
    assert frames.shape == (4, 32, 64, 3)
    numbers = [number_of(frame) for frame in frames]
    assert numbers[0] == 0
    assert numbers[-1] == 149
    assert np.ptp(np.diff(numbers)) <= 1


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_late_sound_is_padded(tmp_path, suffix):
    sound = noise_sound(2.0, 48000)
    path = write(tmp_path / f"late.{suffix}", [numbered_frame(k) for k in range(75)], sound, sound_late_s=0.5)
    heard = decode_audio(path, 0.0, 3.0, 48000, 2)
    assert heard.shape == (2, 144000)
    assert np.abs(heard[:, :23000]).max() < 1e-3
    assert abs(lag_s(sound[0], heard[0, 24000:], 48000)) <= 0.001
    track = read_sound(path, 0.0, INF, 48000, 2)
    assert track is not None
    assert track.first_s == pytest.approx(0.5, abs=0.03)


def test_no_sound_is_silence(tmp_path):
    path = write(tmp_path / "mute.mp4", [numbered_frame(k) for k in range(10)], None)
    assert read_sound(path, 0.0, INF, 16000, 1) is None
    assert not decode_audio(path, 0.0, 0.4, 16000, 1).any()


def test_bytes_read_as_files_do(marked):
    path, _ = marked
    from_bytes = decode_audio(path.read_bytes(), 2.0, 4.0, 16000, 1)
    np.testing.assert_array_equal(from_bytes, decode_audio(path, 2.0, 4.0, 16000, 1))


def _adts(rate: int, layout: str, hertz: float) -> bytes:
    """Two seconds of a sine as AAC without a container."""
    out = io.BytesIO()
    sine = (0.3 * np.sin(2 * np.pi * hertz * np.arange(2 * rate) / rate)).astype(np.float32)
    with av.open(out, "w", format="adts") as output:
        stream = output.add_stream("aac", rate=rate, layout=layout)
        for start in range(0, len(sine) - 1023, 1024):
            block = np.tile(sine[start : start + 1024], (1 if layout == "mono" else 2, 1))
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(("rate", "layout"), [(44100, "mono"), (22050, "mono"), (22050, "stereo")])
def test_sound_that_changes_its_form_on_the_way(rate, layout):
    found = read_sound(_adts(44100, "stereo", 440.0) + _adts(rate, layout, 880.0), 0.0, 5.0, 32000, 2)
    assert found is not None
    assert found.last_s == pytest.approx(4.03, abs=0.03)
    for start_s, hertz in ((0.5, 440), (2.5, 880)):
        second = found.between(start_s, start_s + 1.0)
        assert np.abs(np.fft.rfft(second[1])).argmax() == hertz
        assert second.std(axis=1) == pytest.approx(0.3 / np.sqrt(2), rel=0.03)


def test_equal_channels_are_kept_once_and_handed_out_as_two(tmp_path):
    frames = [numbered_frame(k) for k in range(25)]
    alike, unlike = noise_sound(1.0, 48000), np.stack([noise_sound(1.0, 48000, seed)[0] for seed in (1, 2)])
    for sound, rows in ((alike, 1), (unlike, 2)):
        path = write(tmp_path / f"{rows}.mkv", frames, sound, codecs=("libx264", "pcm_s16le"))
        track = read_sound(path, 0.0, INF, 32000, 2)
        assert track is not None
        assert len(track.samples) == rows
        measured, given = track.between(0.0, 1.5), decode_audio(path, 0.0, 1.5, 32000, 2)
        assert len(distinct(measured)) == rows
        np.testing.assert_array_equal(measured, given)
        assert level_scores(measured, -55.0) == level_scores(given, -55.0)
        before = given[1].copy()
        given[0] = 0.0
        np.testing.assert_array_equal(given[1], before)


def test_resampling_keeps_time_zero():
    click = np.zeros((1, 48000), np.float32)
    click[0, 24000] = 1.0
    out = resample(click, 48000, 16000)
    assert int(np.abs(out[0]).argmax()) == 8000
    assert abs(out.shape[1] - 16000) <= 1


def test_runs_ignore_jitter_and_outliers_and_find_holes():
    lengths = [1024] * 40
    true = np.arange(40) * 1024 / 48000
    rounded = np.round(true + 0.25, 3)
    (run,) = runs(rounded, lengths, 48000)
    assert run.begin_s == pytest.approx(0.25, abs=2e-4)
    outlier = rounded.copy()
    outlier[7] += 0.01
    (run,) = runs(outlier, lengths, 48000)
    assert run.begin_s == pytest.approx(0.25, abs=2e-4)
    holed = rounded + 0.5 * (np.arange(40) >= 20)
    first, second = runs(holed, lengths, 48000)
    assert (first.first, first.last, second.first, second.last) == (0, 20, 20, 40)
    assert second.begin_s == pytest.approx(0.75 + true[20], abs=3e-4)


@needs_clips
def test_rotation_is_honoured():
    path = SHARED / "media" / "broken" / "decord__video_90.mov"
    frames, _ = decode_video(path, 0.0, INF)
    assert frames.shape[1:] == (568, 320, 3)


@needs_clips
def test_the_best_of_several_streams():
    with open_media(SHARED / "media" / "clips" / "speech_en_nasa_jwst_multistream.mp4") as container:
        streams = choose_streams(container)
        assert streams.video is not None
        assert streams.audio is not None
        assert (streams.video.width, streams.audio.sample_rate) == (480, 16000)
        assert streams.record["video_streams"] == 2


def test_headers_are_not_believed(marked, tmp_path):
    path, _ = marked
    assert last_timestamp(str(path)) == pytest.approx(frame_times(path, 0, INF)[-1], abs=0.001)
    (tmp_path / "none.mp4").write_bytes(b"")
    assert last_timestamp(str(tmp_path / "none.mp4")) == 0.0


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_an_open_container_is_read_again_from_its_start(tmp_path, kind):
    name, codecs = (KINDS | OTHERS)[kind]
    path = write(tmp_path / name, [numbered_frame(k) for k in range(150)], noise_sound(6.0, 48000), codecs=codecs)
    with open_media(path) as container:
        first = frame_times(container, 0.0, INF)
        sound = decode_audio(container, 0.0, 2.0, 16000, 1)
        assert frame_times(container, first[70], INF) == first[70:]
        assert frame_times(container, 0.0, INF) == first == frame_times(path, 0.0, INF)
        again = decode_audio(container, 0.0, 2.0, 16000, 1)
    # Only a newly opened container leaves out the encoder's priming before the first sample.
    for other in (again, decode_audio(path, 0.0, 2.0, 16000, 1)):
        assert abs(lag_s(sound[0], other[0], 16000)) < 1e-4


def _heard(path: Path, opening) -> tuple:
    """The video packets, streams and sound of a file that is opened this way, or the error."""
    try:
        with opening(str(path)) as container:
            track = read_packet_index(container, 0.0, INF)
            heard = read_sound(container, 0.0, INF, 32000, 2)
            shown = None if track is None else (track.times.tolist(), track.key.tolist(), track.sizes.tolist())
            sound = None if heard is None else (heard.samples.tobytes(), heard.first_s, heard.last_s, heard.errors)
            return shown, sound, choose_streams(container).record
    except (FFmpegError, OSError) as error:
        return (type(error),)


def test_opening_for_sound_alone_hears_the_same(marked):
    path, _ = marked
    assert _heard(path, open_for_sound) == _heard(path, open_media)


@needs_clips
def test_opening_for_sound_alone_hears_the_same_in_real_and_broken_files():
    files = [path for name in ("clips", "broken") for path in sorted((SHARED / "media" / name).iterdir())]
    assert len(files) > 26
    for path in files:
        assert _heard(path, open_for_sound) == _heard(path, open_media), path.name
