"""Synthetic sounds, and clips that contain them. The packaged synthesiser speaks."""

import io
import math

import numpy as np
from scipy.signal import resample_poly

from captioning.hear.window import SAMPLE_RATE
from data_prep.clip import Clip, Tag
from data_prep.media.write_mp4 import write_mp4
from data_prep.synthetic.speech import speak


def said(text: str, lead_s: float = 0.5, tail_s: float = 0.5) -> np.ndarray:
    """Speak `text` between pauses of silence: mono (N,) float32 at 16 kHz."""
    spoken = speak(text)
    factor = math.gcd(SAMPLE_RATE, spoken.sample_rate)
    voice = 0.5 * resample_poly(spoken.samples, SAMPLE_RATE // factor, spoken.sample_rate // factor)
    return np.pad(voice, (round(lead_s * SAMPLE_RATE), round(tail_s * SAMPLE_RATE))).astype(np.float32)


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def chord(seconds: float) -> np.ndarray:
    """Play a plucked chord every half second: music without a voice."""
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * pitch * at) for pitch in (220.0, 277.2, 329.6))
    return (0.15 * tones * np.exp(-4 * (at % 0.5))).astype(np.float32)


def clip_of(audio: np.ndarray, tags: list[Tag] | None = None, clip_id: str = "clip", colour=(200, 40, 30)) -> Clip:
    """Make a kept clip of one colour with a mono sound at 16 kHz."""
    frames = np.full((max(2, round(len(audio) / SAMPLE_RATE * 10)), 64, 96, 3), colour, np.uint8)
    file = io.BytesIO()
    write_mp4(file, frames, 10.0, np.stack([audio, audio]), SAMPLE_RATE)
    info = {"in_s": 0.0, "out_s": len(frames) / 10, "width": 96, "height": 64}
    return Clip(clip_id, 0.0, len(frames) / 10, media=file.getvalue(), tags=tags or [], info=info)
