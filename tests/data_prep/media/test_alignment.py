"""A flash and a beep that coincide in the source coincide in the clip, after decoding, and in the latents.

Sources in four containers show a white frame and make a short noise at the same known times. The curator cuts them
where the picture changes, the reader decodes the clips, and the events are located on the time axes of the latents.
"""

import math

import numpy as np
import pytest

from data_prep.curation.curator import Curator
from data_prep.loading.buckets import MEL_FRAMES_PER_LATENT, Bucket
from data_prep.media.decode import INF, decode_audio, decode_video, frame_times, span
from data_prep.settings import CurateSettings
from data_prep.sources.listing import list_sources
from model.modality import audio_positions, video_positions
from tests.data_prep.media.marked_media import lag_s, write

FPS, RATE, FRAMES = 24, 48000, 192
CUT = 63  # the frame on which the picture changes: between key frames, and inside a packet of sound
FLASHES = (20, 44, 83, 100, 131, 170)
KINDS = {
    "mp4": ("a.mp4", ("libx264", "aac")),
    "ts": ("a.ts", ("libx264", "aac")),
    "mkv": ("a.mkv", ("libx264", "libopus")),
    "webm": ("a.webm", ("libvpx", "libopus")),
}


def _frames() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shots = [np.repeat(np.repeat(rng.integers(0, 200, (8, 16, 3), np.uint8), 8, 0), 8, 1) for _ in range(2)]
    frames = [shots[number >= CUT] for number in range(FRAMES)]
    for number in FLASHES:
        frames[number] = np.full_like(frames[number], 255)
    return frames


def _beep() -> np.ndarray:
    length = RATE // 8
    noise = np.random.default_rng(4).standard_normal(length)
    return 0.3 * noise * np.exp(-np.arange(length) / 2000)


def _sound() -> np.ndarray:
    sound = np.zeros(FRAMES * RATE // FPS + RATE)
    for number in FLASHES:
        begin = number * RATE // FPS
        sound[begin : begin + len(_beep())] += _beep()
    return np.tile(sound[: FRAMES * RATE // FPS], (2, 1)).astype(np.float32)


def _white(frames: np.ndarray) -> list[int]:
    return [index for index, frame in enumerate(frames) if frame.mean() > 230]


@pytest.fixture(scope="module", params=list(KINDS))
def clips(request, tmp_path_factory):
    name, codecs = KINDS[request.param]
    path = tmp_path_factory.mktemp("flash") / name
    # A transport stream stores no pre-skip, so its sound begins late by the encoder's priming unless that is corrected.
    write(path, _frames(), _sound(), codecs=codecs, fps=FPS, rate=RATE, gop=50, options={})
    (segment,) = Curator(CurateSettings())(list_sources([str(path)]))
    assert [clip.verdict for clip in segment.clips] == ["kept", "kept"], [clip.reason for clip in segment.clips]
    return path, segment.clips


def test_clips_begin_at_the_frame_where_the_picture_changes(clips):
    path, (first, second) = clips
    times = frame_times(path, 0.0, INF)
    assert len(times) == FRAMES
    assert (first.start_s, first.end_s) == (round(times[0], 6), round(times[CUT], 6))
    assert second.start_s == round(times[CUT], 6)
    assert [clip.info["frames"] for clip in (first, second)] == [CUT, FRAMES - CUT]


def test_flashes_and_beeps_are_where_they_were(clips):
    for clip, begin, end in zip(clips[1], (0, CUT), (CUT, FRAMES), strict=True):
        mine = [number - begin for number in FLASHES if begin <= number < end]
        frames, _ = decode_video(clip.media, *span(clip))
        assert len(frames) == end - begin
        assert _white(frames) == mine
        heard = decode_audio(clip.media, *span(clip), RATE, 1)[0]
        for number in mine:
            at = number * RATE // FPS
            around = slice(max(0, at - 2400), at + len(_beep()) + 2400)
            truth = np.zeros(len(heard))
            truth[at : at + len(_beep())] = _beep()[: len(heard) - at]
            assert abs(lag_s(truth[around], heard[around], RATE)) <= 0.001


def test_a_flash_and_its_beep_fall_on_the_same_time_of_the_latents(clips):
    _, (_, clip) = clips
    bucket = Bucket(frames=121, height=64, width=128, fps=FPS)
    start_s = span(clip)[0]
    shape = {"fps": bucket.fps, "max_frames": bucket.frames, "size": (64, 128)}
    frames, _ = decode_video(clip.media, start_s, start_s + bucket.duration_s, **shape)
    heard = decode_audio(clip.media, start_s, start_s + bucket.duration_s, 16000, 1)[0]
    count, _, _ = bucket.latent_shape
    pictures = video_positions(count, 1, 1, bucket.fps)[0, 0].numpy()
    sounds = audio_positions(bucket.audio_tokens)[0, 0].numpy()
    expected = [number - CUT for number in FLASHES if 0 <= number - CUT < bucket.frames]
    assert _white(frames) == expected
    for number in expected:
        latent = math.ceil(number / 8)  # the first latent holds one frame, every other eight
        begin_s, end_s = pictures[latent]
        assert begin_s - 1e-6 <= number / FPS < end_s
        onset = int(np.flatnonzero(np.abs(heard[: (number + 4) * 16000 // FPS]) > 0.05)[-1])
        onset = next(at for at in range(onset) if at >= number * 16000 / FPS - 160 and abs(heard[at]) > 0.05)
        assert abs(onset / 16000 - number / FPS) <= 0.001
        mel = onset // 160
        token = math.ceil((mel - (MEL_FRAMES_PER_LATENT - 1)) / MEL_FRAMES_PER_LATENT) if mel > 0 else 0
        low_s, high_s = sounds[max(0, token)]
        assert low_s - 0.0401 <= onset / 16000 < high_s + 0.0401
        # The sound token and the video token that hold the event overlap in time.
        assert low_s < end_s
        assert high_s > begin_s
