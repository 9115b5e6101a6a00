"""Make sounds whose correct verdict is known: events, speech and music, alone or in noise, and noise alone.

A sound is a function of the seed and its index. An `informative` sound holds speech, music or events: alone, in noise
or hum at −5 … 30 dB, during one second of a long silence, or slightly clipped. The others are coloured noise, hum with
hiss, tones, silence, near-silence, or sound so overdriven that at least a tenth of the samples are at full scale. The
signal-to-noise ratio compares the loudest tenth of the 50 ms frames with the noise, above 100 Hz, where hum and brown
noise are audible.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, sosfilt

from data_prep.synthetic import sounds
from data_prep.synthetic.sentences import sentence
from data_prep.synthetic.speech import MEN, WOMEN, speak

RATE = 32_000  # Hz
FRAME = 1600  # samples: 50 ms
_SCALE = (0, 2, 4, 5, 7, 9, 11, 12)


@dataclass(frozen=True)
class Mixture:
    """A sound and its labels.

    Attributes:
        sound: (2, N) float32 at 32 kHz.
        kind: how it was made, such as "in noise" or "one second".
        about: what it was made of, such as "speech in noise 1/f^1".
        informative: whether it holds speech, music or events.
        sound_class: "speech", "music", "environment", "noise" or "silence".
        snr_db: signal-to-noise ratio of the foreground, dB; inf without noise.
    """

    sound: np.ndarray
    kind: str
    about: str
    informative: bool
    sound_class: str
    snr_db: float = float("inf")


def mixture(seed: int, index: int) -> Mixture:
    """Make sound `index` of the series with this seed. Its kind is entry `index % len(KINDS)` of `KINDS`."""
    rng = np.random.default_rng([seed, index, 0x6D6978])
    kinds = list(KINDS)
    return KINDS[kinds[index % len(kinds)]](rng)


def _speech(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Make (N,) speech of one voice: sentences with pauses."""
    track, at = np.zeros(samples, np.float32), int(rng.uniform(0, 0.3) * RATE)
    voice = str(rng.choice(MEN + WOMEN))
    while at < samples - RATE // 2:
        said = speak(sentence(rng), voice, rng.uniform(0.7, 0.95), rng.uniform(0.9, 1.1))
        times = np.arange(int(said.seconds * RATE)) / RATE
        spoken = np.interp(times, np.arange(len(said.samples)) / said.sample_rate, said.samples)
        sounds.add(track, spoken.astype(np.float32), at)
        at += len(spoken) + int(rng.uniform(0.1, 0.6) * RATE)
    return track


def _music(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Make (N,) music of a piano or of plucked strings."""
    track, at, degree = np.zeros(samples, np.float32), 0, 3
    tonic, beat, plucked = int(rng.integers(48, 60)), rng.uniform(0.3, 0.6), rng.random() < 0.5
    while at < samples - RATE // 4:
        degree = int(np.clip(degree + rng.integers(-2, 3), 0, 7))
        chord = (degree, degree + 2, degree + 4) if rng.random() < 0.3 else (degree,)
        for step in chord:
            pitch = sounds.midi_hz(tonic + 12 * (step // 7) + _SCALE[step % 7] + 12)
            strength = float(rng.uniform(0.5, 1.0))
            note = (
                sounds.plucked_string(rng, pitch, strength, RATE)
                if plucked
                else sounds.piano_note(pitch, beat, strength, RATE)
            )
            sounds.add(track, note, at)
        at += int(beat * RATE * rng.choice([0.5, 1.0, 1.0, 2.0]))
    return track


def _events(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Make (N,) repeated sounds of one kind: impacts, struck bars or a bird."""
    track, at = np.zeros(samples, np.float32), int(rng.uniform(0.1, 0.6) * RATE)
    make = [
        lambda: sounds.impact(rng, str(rng.choice(list(sounds.IMPACTS))), rng.uniform(0.7, 1.4), 1.0, RATE),
        lambda: sounds.struck_bar(rng, str(rng.choice(["wooden", "metal"])), rng.uniform(250, 1200), 1.0, RATE),
        lambda: np.tile(sounds.chirp(rng, 2500, rng.uniform(3200, 5000), rng.uniform(0.1, 0.25), RATE), 2),
    ][rng.integers(3)]
    while at < samples - RATE // 8:
        sounds.add(track, make() * np.float32(rng.uniform(0.6, 1.0)), at)
        at += int(rng.uniform(0.4, 1.1) * RATE)
    return track


_Maker = Callable[[np.random.Generator, int], np.ndarray]  # (rng, N) → (N,) mono
_FOREGROUNDS: dict[str, tuple[str, _Maker]] = {
    "speech": ("speech", _speech),
    "music": ("music", _music),
    "events": ("environment", _events),
}


def _foreground(rng: np.random.Generator, samples: int) -> tuple[str, str, np.ndarray]:
    """Make speech, music or events, panned and in a room. Return the name, the sound class, and (2, N) samples."""
    name = str(rng.choice(list(_FOREGROUNDS)))
    sound_class, make = _FOREGROUNDS[name]
    dry = make(rng, samples)
    wet = rng.uniform(0.0, 0.4) * sounds.room(dry, rng, rng.uniform(0.2, 0.9), RATE)
    return name, sound_class, sounds.pan(dry, rng.uniform(0.3, 0.7), 1.0) + wet


def _noise(rng: np.random.Generator, samples: int) -> tuple[str, np.ndarray]:
    """Make coloured noise with equal or different channels, whose level drifts by up to 1 dB.

    Returns:
        Its description, and (2, N) float32.
    """
    colour = float(rng.choice([0.0, 0.5, 1.0, 1.5, 2.0]))
    one = sounds.noise(rng, samples, colour)
    two = one if rng.random() < 0.3 else sounds.noise(rng, samples, colour)
    drift = np.interp(np.arange(samples), np.linspace(0, samples, 6), rng.uniform(-1, 1, 6))
    return f"noise 1/f^{colour:g}", (np.stack([one, two]) * 10 ** (drift / 20)).astype(np.float32)


def _hum(rng: np.random.Generator, samples: int) -> tuple[str, np.ndarray]:
    """Make mains hum with hiss. Return its description, and (2, N) float32."""
    mains = float(rng.choice([50.0, 60.0]))
    hiss = 10 ** (rng.uniform(-50, -15) / 20) * np.stack([sounds.noise(rng, samples) for _ in range(2)])
    return f"hum {mains:g} Hz", (np.tile(sounds.hum(rng, samples, mains, RATE), (2, 1)) + hiss).astype(np.float32)


def _levelled(sound: np.ndarray, low_db: float, high_db: float, rng: np.random.Generator) -> np.ndarray:
    """Scale a sound to a random RMS level, `low_db` to `high_db` dBFS; to less if a sample would exceed full scale."""
    level = 10 ** (rng.uniform(low_db, high_db) / 20)
    sound = sound * (level / max(float(np.sqrt(np.square(sound).mean())), 1e-9))
    return (sound / max(1.0, float(np.abs(sound).max()) / 0.98)).astype(np.float32)


def _heard_db(sound: np.ndarray, percent: float) -> float:
    """Return percentile `percent` of the power of a sound (2, N) in 50 ms frames, above 100 Hz, in dBFS."""
    above = np.asarray(sosfilt(_AUDIBLE, sound.mean(axis=0)))
    frames = above[: len(above) // FRAME * FRAME].reshape(-1, FRAME)
    return float(10 * np.log10(np.percentile(np.square(frames).mean(axis=1), percent) + 1e-12))


_AUDIBLE = butter(2, 100.0, "highpass", fs=RATE, output="sos")


def _mixed(background: Callable) -> Callable[[np.random.Generator], Mixture]:
    """Return a function that makes a foreground in this background, with a signal-to-noise ratio of −5 to 30 dB."""

    def make(rng: np.random.Generator) -> Mixture:
        samples = int(rng.uniform(4, 10) * RATE)
        name, sound_class, sound = _foreground(rng, samples)
        behind, noise = background(rng, samples)
        snr_db = float(rng.uniform(-5, 30))
        gain = 10 ** ((_heard_db(sound, 90) - _heard_db(noise, 50) - snr_db) / 20)
        whole = _levelled(sound + gain * noise, -40, -14, rng)
        return Mixture(whole, f"in {behind.split()[0]}", f"{name} in {behind}", True, sound_class, snr_db)

    return make


def _alone(rng: np.random.Generator) -> Mixture:
    """Make a foreground without noise."""
    name, sound_class, sound = _foreground(rng, int(rng.uniform(3, 10) * RATE))
    return Mixture(_levelled(sound, -45, -14, rng), "alone", name, True, sound_class)


def _one_second(rng: np.random.Generator) -> Mixture:
    """Make 8 to 30 seconds of silence or near-silence, with one second of foreground in it."""
    samples = int(rng.uniform(8, 30) * RATE)
    name, sound_class, sound = _foreground(rng, RATE)
    floor = 10 ** (rng.uniform(-75, -50) / 20) if rng.random() < 0.6 else 0.0
    whole = floor * np.stack([sounds.noise(rng, samples, 1.0) for _ in range(2)])
    at = int(rng.uniform(0.05, 0.85) * (samples - RATE))
    whole[:, at : at + RATE] += sound / np.abs(sound).max() * rng.uniform(0.1, 0.8)
    return Mixture(whole.astype(np.float32), "one second", name, True, sound_class)


def _clipped_a_little(rng: np.random.Generator) -> Mixture:
    """Make a foreground whose loudest 0.2 to 3 % of samples are clipped to full scale."""
    name, sound_class, sound = _foreground(rng, int(rng.uniform(4, 8) * RATE))
    ceiling = np.quantile(np.abs(sound), 1 - rng.uniform(0.002, 0.03))
    return Mixture(np.clip(sound / ceiling, -1, 1).astype(np.float32), "clipped a little", name, True, sound_class)


def _overdriven(rng: np.random.Generator) -> Mixture:
    """Make a foreground whose loudest 20 to 60 % of samples are clipped to full scale."""
    name, _, sound = _foreground(rng, int(rng.uniform(4, 8) * RATE))
    ceiling = np.quantile(np.abs(sound), 1 - rng.uniform(0.2, 0.6))
    sound = np.clip(sound / max(float(ceiling), 1e-6), -1, 1).astype(np.float32)
    return Mixture(sound, "overdriven", name, False, "noise")


def _only(background: Callable) -> Callable[[np.random.Generator], Mixture]:
    """Return a function that makes this background without a foreground."""

    def make(rng: np.random.Generator) -> Mixture:
        name, sound = background(rng, int(rng.uniform(3, 12) * RATE))
        return Mixture(_levelled(sound, -45, -12, rng), name.split()[0], name, False, "noise")

    return make


def _tones(rng: np.random.Generator, samples: int) -> tuple[str, np.ndarray]:
    """Make one to three steady tones with noise. Return their description, and (2, N) float32."""
    time = np.arange(samples) / RATE
    pitches = rng.uniform(120, 6000, rng.integers(1, 4))
    tone = np.sum([np.sin(2 * np.pi * (pitch * time + rng.random())) for pitch in pitches], axis=0)
    floor = 10 ** (rng.uniform(-60, -25) / 20) * np.stack([sounds.noise(rng, samples, 1.0) for _ in range(2)])
    return f"tones {np.round(pitches)}", (np.tile(tone, (2, 1)) + floor).astype(np.float32)


def _near_silence(rng: np.random.Generator) -> Mixture:
    """Make noise at −85 to −62 dBFS."""
    samples = int(rng.uniform(3, 30) * RATE)
    faint = np.stack([sounds.noise(rng, samples, float(rng.choice([0.0, 1.0]))) for _ in range(2)])
    return Mixture(
        (10 ** (rng.uniform(-85, -62) / 20) * faint).astype(np.float32), "near-silence", "", False, "silence"
    )


def _silence(rng: np.random.Generator) -> Mixture:
    return Mixture(np.zeros((2, int(rng.uniform(2, 12) * RATE)), np.float32), "silence", "", False, "silence")


# In the order in which `mixture` takes them: ten informative, nine not.
KINDS: dict[str, Callable[[np.random.Generator], Mixture]] = {
    "noise and more 1": _mixed(_noise),
    "noise": _only(_noise),
    "alone": _alone,
    "hum": _only(_hum),
    "noise and more 2": _mixed(_noise),
    "tones": _only(_tones),
    "one second 1": _one_second,
    "near-silence": _near_silence,
    "hum and more 1": _mixed(_hum),
    "overdriven": _overdriven,
    "noise and more 3": _mixed(_noise),
    "noise again": _only(_noise),
    "clipped a little": _clipped_a_little,
    "silence": _silence,
    "noise and more 4": _mixed(_noise),
    "hum again": _only(_hum),
    "one second 2": _one_second,
    "tones again": _only(_tones),
    "hum and more 2": _mixed(_hum),
}
