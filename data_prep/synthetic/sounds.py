"""The sounds of the synthetic corpus, made of damped partials and shaped noise.

Functions return mono float32 unless they say otherwise. `rate` is samples per second; `strength`, in (0, 1], is the
loudest sample. A struck sound begins on its first sample: added at sample n, it is audible from exactly n on.

A struck body is made by modal synthesis: x(t) = Σ aᵢ sin(2π fᵢ t) · 10^(−3 t / Tᵢ), where Tᵢ (T60) is the time in which
partial i falls by 60 dB.
"""

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

# For each material of a ball: partials in Hz, their levels, their T60 in s. And the noise of its contact with the
# ground: (level, T60 in s, from Hz, to Hz).
IMPACTS = {
    "wooden": ((120, 215, 330, 505, 790, 1230), (1.0, 0.9, 0.8, 0.5, 0.3, 0.15), (0.10, 0.09, 0.07, 0.05, 0.04, 0.03)),
    "rubber": ((70, 110, 165, 410, 620, 905), (1.0, 0.9, 0.5, 0.25, 0.2, 0.12), (0.12, 0.10, 0.09, 0.08, 0.12, 0.16)),
    "glass": ((2150, 3480, 5230, 7010, 9300), (1.0, 0.8, 0.6, 0.4, 0.3), (0.35, 0.30, 0.22, 0.16, 0.12)),
}
_CONTACTS = {"wooden": (1.2, 0.03, 150, 3000), "rubber": (1.2, 0.05, 60, 1500), "glass": (0.35, 0.012, 1500, 12000)}

# Partials of a struck bar relative to its pitch, their levels, and their T60 relative to that of the lowest partial.
BARS = {
    # A marimba's bar is cut so that its second mode is two octaves up; wood damps the upper modes.
    "wooden": ((1.0, 3.98, 9.6, 16.8), (1.0, 0.35, 0.12, 0.05), (1.0, 0.45, 0.22, 0.12)),
    # A metal bar of constant thickness, free at both ends, has the modes of a free beam.
    "metal": ((1.0, 2.756, 5.404, 8.933), (1.0, 0.55, 0.35, 0.15), (1.0, 0.6, 0.35, 0.22)),
}


def midi_hz(pitch: float) -> float:
    """Return the frequency of a MIDI pitch in Hz; 69 is 440 Hz."""
    return 440 * 2 ** ((pitch - 69) / 12)


def impact(rng: np.random.Generator, material: str, size: float, strength: float, rate: int) -> np.ndarray:
    """Make the sound of a ball that hits the ground.

    Args:
        rng: draws small deviations of the partials, and the noise.
        material: a name in `IMPACTS`.
        size: 1 is usual; a larger ball sounds lower.
        strength: peak of the sound, in (0, 1].
        rate: samples per second.
    """
    ratios, levels, decays = IMPACTS[material]
    jitter = rng.uniform(0.97, 1.03, len(ratios))
    body = _modes(np.array(ratios) * jitter / size, np.array(levels), np.array(decays), rate)
    level, decay, low, high = _CONTACTS[material]
    contact = _burst(rng, len(body), decay, low, high, rate)
    return (strength * _normalised(body + level * contact * np.abs(body).max())).astype(np.float32)


def struck_bar(rng: np.random.Generator, material: str, pitch_hz: float, strength: float, rate: int) -> np.ndarray:
    """Make the sound of a struck xylophone bar: inharmonic partials above its pitch, and the knock of the mallet."""
    ratios, levels, decays = BARS[material]
    lowest = {"wooden": 0.9, "metal": 2.6}[material] * (440 / pitch_hz) ** 0.4
    body = _modes(pitch_hz * np.array(ratios), np.array(levels), lowest * np.array(decays), rate)
    mallet = _burst(rng, len(body), 0.02, 300, 5000, rate)
    return (strength * _normalised(body + 0.12 * mallet)).astype(np.float32)


def piano_note(pitch_hz: float, seconds: float, strength: float, rate: int) -> np.ndarray:
    """Make the sound of a piano string, struck, and damped when the key is released after `seconds`.

    Its partials are a little higher than the harmonics, and the upper ones decay faster.
    """
    count = int(min(18, 9000 / pitch_hz))
    n = np.arange(1, count + 1)
    partials = pitch_hz * n * np.sqrt(1 + 4e-4 * n**2)
    hammer = np.abs(np.sin(np.pi * n / 8)) + 0.05  # struck at an eighth of its length
    levels = hammer * n**-1.1 * strength ** (n / 12)
    body = _modes(partials, levels, 5.0 * (220 / pitch_hz) ** 0.5 / (1 + 0.18 * n), rate, seconds + 0.25)
    time = np.arange(len(body)) / rate
    damper = np.where(time < seconds, 1.0, np.exp(-(time - seconds) / 0.06))
    rise = np.minimum(1, time / 0.002)
    return (strength * _normalised(body) * damper * rise).astype(np.float32)


def plucked_string(rng: np.random.Generator, pitch_hz: float, strength: float, rate: int) -> np.ndarray:
    """Make the sound of a string plucked at a fifth of its length, with the noise of the finger."""
    count = int(min(24, 10000 / pitch_hz))
    n = np.arange(1, count + 1)
    levels = np.abs(np.sin(np.pi * n / 5)) / n**1.3 + 0.004
    body = _modes(pitch_hz * n * np.sqrt(1 + 6e-5 * n**2), levels, 3.2 * (220 / pitch_hz) ** 0.5 / n**0.7, rate, 1.8)
    finger = _burst(rng, len(body), 0.015, 800, 6000, rate)
    return (strength * _normalised(_normalised(body) + 0.1 * finger)).astype(np.float32)


def chirp(rng: np.random.Generator, low_hz: float, high_hz: float, seconds: float, rate: int) -> np.ndarray:
    """Make a syllable of a songbird: a fast sweep between two frequencies, with a trill and a weak second harmonic."""
    t = np.linspace(0, 1, int(seconds * rate), endpoint=False)
    sweep = low_hz + (high_hz - low_hz) * (np.sin(np.pi * t) if rng.random() < 0.5 else 1 - t)
    trill = 1 + 0.05 * np.sin(2 * np.pi * rng.uniform(30, 60) * t * seconds)
    phase = 2 * np.pi * np.cumsum(sweep * trill) / rate
    shape = np.sin(np.pi * t) ** 0.6
    return (shape * (np.sin(phase) + 0.12 * np.sin(2 * phase))).astype(np.float32)


def tick(rng: np.random.Generator, high: bool, rate: int) -> np.ndarray:
    """Make the short click of a clock. With `high` it is a tick, else a tock, which is a little lower."""
    modes = np.array([3350, 4900, 6600, 9600]) * (1.0 if high else 0.85)
    body = _modes(modes, np.ones(4), np.full(4, 0.012), rate, 0.1)
    return _normalised(_normalised(body) + _burst(rng, len(body), 0.008, 2000, 12000, rate)).astype(np.float32)


def noise(rng: np.random.Generator, samples: int, colour: float = 0.0) -> np.ndarray:
    """Make Gaussian noise of RMS 1 whose power falls with frequency^colour: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    if colour:
        spectrum[1:] *= np.arange(1, len(spectrum)) ** (-colour / 2)
        spectrum[0] = 0
    shaped = np.fft.irfft(spectrum, samples)
    return (shaped / max(float(shaped.std()), 1e-9)).astype(np.float32)


def hum(rng: np.random.Generator, samples: int, mains_hz: float, rate: int) -> np.ndarray:
    """Make mains hum of RMS 1: the mains frequency and its harmonics, with random phases.

    The second harmonic is about as strong as the first.
    """
    time = np.arange(samples) / rate
    total = np.zeros(samples)
    for n in range(1, 13):
        level = (1.0 if n in (1, 2) else 0.6 / n) * rng.uniform(0.7, 1.3)
        total += level * np.sin(2 * np.pi * (mains_hz * n * time + rng.random()))
    return (total / total.std()).astype(np.float32)


def room(mono: np.ndarray, rng: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """Make the reverberation of a sound in a room, without the direct sound: from all sides, and with less treble.

    Args:
        mono: (N,) the sound.
        rng: draws the impulse response, which has unit power.
        seconds: reverberation time T60.
        rate: samples per second.

    Returns:
        (2, N) float32.
    """
    time = np.arange(int(seconds * rate)) / rate
    tail = rng.standard_normal((2, len(time))) * 10 ** (-3 * time / seconds)
    tail = np.asarray(sosfilt(butter(1, 4500, fs=rate, output="sos"), tail))
    tail *= np.minimum(1, time / 0.008)  # the nearest wall reflects first
    tail /= np.sqrt(np.sum(tail**2, axis=1, keepdims=True))
    return fftconvolve(mono[None], tail, axes=1)[:, : len(mono)].astype(np.float32)


def add(track: np.ndarray, sound: np.ndarray, sample: int) -> None:
    """Add a sound to a track (N,) in place, from index `sample` on. What exceeds the end of the track is dropped."""
    end = min(len(track), sample + len(sound))
    if end > sample >= 0:
        track[sample:end] += sound[: end - sample]


def pan(mono: np.ndarray, x: np.ndarray | float, samples_per_frame: float) -> np.ndarray:
    """Make stereo sound that comes from position x, with constant power: left cos θ, right sin θ, θ = x π/2.

    Args:
        mono: (N,) the sound.
        x: position of the source, 0 at the left edge and 1 at the right; one number, or one per frame, interpolated
            linearly.
        samples_per_frame: of the shot.

    Returns:
        (2, N) float32.
    """
    angle = np.clip(x, 0.0, 1.0) * (np.pi / 2)
    gains = np.stack([np.cos(angle), np.sin(angle)])
    if gains.ndim == 1:
        return (gains[:, None] * mono).astype(np.float32)
    at = np.arange(len(mono)) / samples_per_frame
    return np.stack([mono * np.interp(at, np.arange(gains.shape[1]), gain) for gain in gains]).astype(np.float32)


_BLOCK = 512  # samples that `_modes` computes together
_LN_1000 = 6.9078  # ln 1000: an amplitude falls by 60 dB


def _modes(
    hertz: np.ndarray, levels: np.ndarray, decays: np.ndarray, rate: int, seconds: float | None = None
) -> np.ndarray:
    """Make a sum of damped partials (see the module's docstring) without those above 0.45 · rate.

    Args:
        hertz: (K,) frequencies.
        levels: (K,) amplitudes.
        decays: (K,) T60, seconds.
        rate: samples per second.
        seconds: length; None for the longest T60.

    Returns:
        (N,) float64.
    """
    heard = hertz < 0.45 * rate
    hertz, levels, decays = hertz[heard], levels[heard], decays[heard]
    count = int((seconds or float(decays.max(initial=0.05))) * rate)
    body = np.zeros(-(-count // _BLOCK) * _BLOCK)
    for f, level, decay in zip(hertz, levels, decays, strict=True):
        # The partial is Im(wⁿ). With n = block · B + rest, wⁿ is an outer product of two short lists of powers. This is
        # ten times faster than a sine and an exponential for every sample.
        log_w = (-_LN_1000 / decay + 2j * np.pi * f) / rate
        blocks = -(-min(count, int(1.2 * decay * rate)) // _BLOCK)
        coarse = level * np.exp(log_w * _BLOCK * np.arange(blocks))[:, None]
        fine = np.exp(log_w * np.arange(_BLOCK))
        body[: blocks * _BLOCK] += (coarse.real * fine.imag + coarse.imag * fine.real).ravel()
    body = body[:count]
    body[-64:] *= np.linspace(1, 0, len(body[-64:]))
    return body


def _burst(rng: np.random.Generator, samples: int, decay: float, low: float, high: float, rate: int) -> np.ndarray:
    """Make noise, (samples,), between `low` and `high` Hz, with peak 1, that falls by 60 dB in `decay` seconds."""
    time = np.arange(samples) / rate
    shaped = rng.standard_normal(samples) * np.exp(-_LN_1000 / decay * time)
    shaped = np.asarray(sosfilt(butter(1, (low, min(high, 0.45 * rate)), "bandpass", fs=rate, output="sos"), shaped))
    return shaped / max(float(np.abs(shaped).max()), 1e-9)


def _normalised(sound: np.ndarray) -> np.ndarray:
    """Scale a sound to peak 1."""
    return sound / max(float(np.abs(sound).max()), 1e-9)
