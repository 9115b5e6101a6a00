"""Previews match the clip: a tone at its frequency, silence as black, frames in order."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.report.previews import contact_sheet, spectrogram, waveform


def _open(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_contact_sheet_shows_first_to_last_frame_in_reading_order() -> None:
    frames = np.zeros((30, 36, 64, 3), dtype=np.uint8)
    frames[..., 0] = np.linspace(0, 255, 30).astype(np.uint8)[:, None, None]
    sheet = _open(contact_sheet(frames, columns=4, rows=2, width=400))
    reds = [sheet[20 + 57 * row, 50 + 101 * column, 0] for row in range(2) for column in range(4)]
    assert reds == sorted(reds)
    assert reds[0] == 0
    assert reds[-1] == 255


def test_few_frames_make_a_smaller_sheet() -> None:
    sheet = _open(contact_sheet(np.full((1, 20, 20, 3), 200, dtype=np.uint8), width=100))
    assert sheet.shape == (100, 100, 3)
    assert (sheet == 200).all()


def test_wrong_frames_are_named() -> None:
    with pytest.raises(ValueError, match="uint8"):
        contact_sheet(np.zeros((2, 8, 8, 3), dtype=np.float32))


@pytest.mark.parametrize("hz", [200.0, 1000.0, 5000.0])
def test_a_tone_is_bright_at_its_frequency_only(hz: float) -> None:
    rate = 16000
    tone = 0.3 * np.sin(2 * np.pi * hz * np.arange(2 * rate) / rate).astype(np.float32)
    picture = _open(spectrogram(np.stack([tone, tone]), rate, width=200, height=160)).sum(axis=-1).mean(axis=1)
    row = 160 - 1 - int(np.argmax(picture))
    mel = lambda f: 2595 * np.log10(1 + f / 700)  # noqa: E731
    expected = (mel(hz) - mel(40)) / (mel(rate / 2) - mel(40)) * 160
    assert abs(row - expected) <= 3


def test_silence_is_black_and_a_short_sound_is_drawn() -> None:
    assert _open(spectrogram(np.zeros((2, 16000), dtype=np.float32), 16000)).max() <= 4
    assert _open(spectrogram(np.sin(np.arange(40, dtype=np.float32)[None] / 2), 16000)).max() > 200


def test_a_noise_floor_looks_darker_than_the_same_noise_aloud() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 16000)).astype(np.float32)
    aloud, floor = (_open(spectrogram(noise * gain, 16000)).astype(int).sum(axis=-1).mean() for gain in (1, 1e-3))
    assert floor < 0.6 * aloud


def test_a_waveform_has_ink_where_the_sound_is() -> None:
    sound = np.zeros((2, 16000), dtype=np.float32)
    sound[:, 8000:] = np.sin(np.arange(8000) / 5)
    picture = _open(waveform(sound, 16000, width=200, height=80))
    dark = (picture[..., 0] < 100).sum(axis=0)
    assert dark[:95].max() <= 2  # the middle line of each channel
    assert dark[105:].min() > 20
