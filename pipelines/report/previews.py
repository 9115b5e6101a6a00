"""Pictures of a clip as PNG bytes: a contact sheet of its frames, and its sound as a spectrogram and a waveform.

They are drawn with Pillow and numpy only, so that a picture takes milliseconds and its bytes depend on the clip alone.
"""

import io

import numpy as np
from PIL import Image, ImageDraw

# From quiet to loud: dark blue, violet, orange, pale yellow (samples of matplotlib's "inferno", public domain).
_COLOUR_MAP = np.array(
    [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10],
     [249, 201, 50], [252, 255, 164]],
    dtype=np.float32,
)  # fmt: skip
_INK = (47, 93, 138)
_PAPER = (250, 250, 248)
# The spectrogram spans this range below its loudest point, dB. The top of the range is at least the level of a tone of
# −28 dBFS, so that a noise floor looks dark.
_RANGE_DB, _MIN_TOP_DB = 80.0, -10.0


def contact_sheet(frames: np.ndarray, columns: int = 4, rows: int = 2, width: int = 640) -> bytes:
    """Draw `columns × rows` frames, evenly spaced from the first to the last.

    Args:
        frames: uint8 (F, H, W, 3).
        columns: frames side by side.
        rows: frames one below another.
        width: of the picture, pixels.

    Returns:
        A PNG.

    Raises:
        ValueError: there is no frame, or `frames` is not uint8 (F, H, W, 3).
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 (F ≥ 1, H, W, 3), not {frames.dtype} {frames.shape}")
    count = min(columns * rows, len(frames))
    columns = min(columns, count)
    rows = -(-count // columns)
    gap = 4
    tile_w = (width - gap * (columns - 1)) // columns
    tile_h = max(1, round(tile_w * frames.shape[1] / frames.shape[2]))
    sheet = Image.new("RGB", (width, rows * tile_h + gap * (rows - 1)), _PAPER)
    for position, index in enumerate(np.linspace(0, len(frames) - 1, count).round().astype(int)):
        tile = Image.fromarray(frames[index]).resize((tile_w, tile_h), Image.Resampling.LANCZOS)
        row, column = divmod(position, columns)
        sheet.paste(tile, (column * (tile_w + gap), row * (tile_h + gap)))
    return _png(sheet)


def spectrogram(audio: np.ndarray, sample_rate: int, width: int = 640, height: int = 160) -> bytes:
    """Draw the spectrogram of a sound: its level over time (left to right) and frequency (bottom to top).

    Colours span 80 dB below the loudest point, or below the level of a tone of −28 dBFS if nothing is as loud.

    Args:
        audio: float (channels, N), averaged to mono.
        sample_rate: samples per second.
        width: of the picture, pixels; time.
        height: of the picture, pixels; frequency on the mel scale from 40 Hz to half the sample rate.

    Returns:
        A PNG.
    """
    mono = _mono(audio)
    window = 1024
    if len(mono) < window:
        missing = window - len(mono)
        mono = np.pad(mono, (missing // 2, missing - missing // 2))
    starts = np.linspace(0, len(mono) - window, width).astype(int)
    frames = mono[starts[:, None] + np.arange(window)] * np.hanning(window).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2 / window
    top = sample_rate / 2
    edges_hz = _from_mel(np.linspace(_to_mel(40.0), _to_mel(top), height + 1))
    edges = np.clip(edges_hz / top * (window // 2), 0, window // 2)
    # Mean power between two edges. The cumulative sum works for bands narrower than an FFT bin and for wide ones.
    cumulative = np.concatenate([np.zeros((width, 1)), np.cumsum(power, axis=1)], axis=1)
    sums = np.stack([np.interp(edges, np.arange(cumulative.shape[1]), row) for row in cumulative])
    bands = np.diff(sums, axis=1) / np.maximum(np.diff(edges), 1e-6)
    level = 10 * np.log10(bands + 1e-12)
    shade = np.clip((level - max(level.max(), _MIN_TOP_DB)) / _RANGE_DB + 1, 0, 1)
    image = _to_colours(shade.T[::-1])
    return _png(Image.fromarray(image))


def waveform(audio: np.ndarray, sample_rate: int, width: int = 640, height: int = 80) -> bytes:
    """Draw the peak and RMS level of a sound over time, each channel in a strip of its own.

    Args:
        audio: float (channels, N) in [-1, 1]; the first two channels are drawn.
        sample_rate: samples per second.
        width: of the picture, pixels.
        height: of the picture, pixels.

    Returns:
        A PNG.
    """
    audio = np.atleast_2d(np.asarray(audio, dtype=np.float32))[:2]
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    band = height / len(audio)
    for channel, samples in enumerate(audio):
        middle = (channel + 0.5) * band
        draw.line([(0, middle), (width, middle)], fill=(205, 210, 216))
        for x, part in enumerate(np.array_split(samples, width)):
            if len(part) == 0:
                continue
            half = band / 2 - 2
            low, high = float(np.clip(part.min(), -1, 1)), float(np.clip(part.max(), -1, 1))
            rms = float(min(1.0, np.sqrt(np.mean(part**2))))
            draw.line([(x, middle - high * half), (x, middle - low * half)], fill=(157, 186, 214))
            draw.line([(x, middle - rms * half), (x, middle + rms * half)], fill=_INK)
    return _png(picture)


def _mono(audio: np.ndarray) -> np.ndarray:
    """Return the mean of the channels, float32 (N,)."""
    return np.atleast_2d(np.asarray(audio, dtype=np.float32)).mean(axis=0)


def _to_mel(hz: float | np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hz) / 700)


def _from_mel(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)


def _to_colours(shade: np.ndarray) -> np.ndarray:
    """Map values in [0, 1], of any shape, to colours of `_COLOUR_MAP`, uint8 (…, 3)."""
    at = shade * (len(_COLOUR_MAP) - 1)
    channels = [np.interp(at, np.arange(len(_COLOUR_MAP)), _COLOUR_MAP[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()
