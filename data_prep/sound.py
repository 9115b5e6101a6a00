"""What a clip's sound is like, as raw scores. Cheap ones first; each function is one stage of the judging.

The sound of a whole segment is decoded once, stereo at 32 kHz; a clip's scores are measured on its span. Levels are
dB relative to full scale, and a frame's level is that of its louder channel, so that channels of opposite sign do not
cancel to silence.

The measure that tells noise floors, hums and tones from everything that happens is *stationarity*: the share of the
energy that is always there, summed over frequency bands. It needs no threshold on loudness or spectrum and knows no
classes: white noise has 0.9, a pure tone 1.0, applause 0.25, speech and music nearly 0.
"""

import numpy as np
from scipy.fft import rfft

from data_prep import tags
from data_prep.clip import Tag
from data_prep.voice_activity import FRAME as VOICE_FRAME
from data_prep.voice_activity import RATE as VOICE_RATE

RATE = 32_000  # Hz, of the sound that is measured
LEVEL_FRAME = 1600  # samples: 50 ms
WINDOW, HOP = 1024, 512  # samples of the spectra: 32 ms every 16 ms
BANDS = 32  # of equal width in octaves
LOW_HZ, HIGH_HZ = 60.0, 15_500.0
BLOCK = 15  # spectra that are averaged, 0.24 s, before asking what is always there
LONG_WINDOW = 8192  # samples: 256 ms, 4 Hz apart, for lines
LINES = 5  # the strongest lines count as a tone or a hum
TAG_HOP_S = 0.96

# AudioSet classes by what they say about a clip. Everything that is in none of these is an event or a scene.
SPEECH = frozenset(["Speech", "Child speech, kid speaking", "Conversation", "Narration, monologue", "Whispering"])
MUSIC = "Music"
SINGING = frozenset(["Singing", "Choir", "Chant", "Child singing", "Rapping", "Yodeling", "A capella"])
NOISE = frozenset(
    [
        *("Noise", "White noise", "Pink noise", "Static", "Hum", "Mains hum", "Buzz", "Sine wave", "Sidetone"),
        *("Distortion", "Throbbing", "Vibration", "Hiss", "Environmental noise", "Wind noise (microphone)"),
    ]
)
# True of a place or a recording and of no event: no evidence that something is to be heard.
VAGUE = frozenset(
    [
        *("Silence", "Harmonic", "Chirp tone", "Sound effect", "Pulse", "Effects unit", "Electronic tuner"),
        *("Inside, small room", "Inside, large room or hall", "Inside, public space", "Outside, urban or manmade"),
        *("Outside, rural or natural", "Reverberation", "Echo", "Field recording", "Television", "Radio"),
        *("Cacophony", "Chorus effect", "Speech synthesizer"),
    ]
)
TAG_LEAST = 0.2  # events and their times are stored from this score on


def level_scores(sound: np.ndarray, silence_db: float) -> dict[str, float]:
    """Levels of (2, N) samples at 32 kHz.

    Gives `peak_db`, `rms_db`; of the 50 ms frames' levels the 10th, 50th and 95th percentile; `active_s`, seconds
    above `silence_db`, and `silence_ratio`, the share below; `digital_silence_ratio`, the share without one bit of
    sound at 16 bits; `clipped_ratio`, the share of samples at full scale; `stereo_width`, the energy of the
    channels' difference over that of both (0 mono, 0.5 unrelated, 1 opposite).
    """
    count = sound.shape[1] // LEVEL_FRAME
    if not count:
        sound = np.pad(sound, ((0, 0), (0, LEVEL_FRAME - sound.shape[1])))
        count = 1
    frames = sound[:, : count * LEVEL_FRAME].reshape(2, count, LEVEL_FRAME)
    power = np.einsum("cnf,cnf->cn", frames, frames).max(axis=0) / LEVEL_FRAME  # without a copy of the sound
    levels = _db(power)
    peaks = np.maximum(frames.max(axis=(0, 2)), -frames.min(axis=(0, 2)))
    middle, side = np.square(sound.mean(axis=0)).mean(), np.square((sound[0] - sound[1]) / 2).mean()
    p10, p50, p95 = np.percentile(levels, [10, 50, 95])
    active = levels > silence_db
    return {
        "peak_db": float(_db(np.square(np.abs(sound).max()))),
        "rms_db": float(_db(np.square(sound).mean(axis=1).max())),
        "level_p10_db": float(p10),
        "level_p50_db": float(p50),
        "level_p95_db": float(p95),
        "active_s": float(active.sum() * LEVEL_FRAME / RATE),
        "silence_ratio": float(1 - active.mean()),
        "digital_silence_ratio": float((peaks < 2**-15).mean()),
        "clipped_ratio": float((np.abs(sound) >= 0.999).mean()),
        "stereo_width": float(side / (middle + side)) if middle + side > 0 else 0.0,
    }


def spectral_scores(sound: np.ndarray) -> dict[str, float]:
    """Spectra of (2, N) samples at 32 kHz.

    Gives `stationarity` in [0, 1] (see above); `tone_ratio`, the share of the energy in the five strongest lines
    that never cease (a sine or a mains hum 1, a chord that changes 0); `wander`, how much the bands' levels vary
    between blocks over what they would in stationary Gaussian noise (1 for synthetic noise); `flatness`, geometric
    over arithmetic mean of the long-term spectrum; `bandwidth_hz`, the highest frequency within 60 dB of the
    strongest; `onsets_per_s`, sudden rises of the spectrum.
    """
    mono = louder_mix(sound)
    if len(mono) < LONG_WINDOW:
        mono = np.pad(mono, (0, LONG_WINDOW - len(mono)))
    bands, widths = _band_energies(mono)
    blocks = bands[: len(bands) // BLOCK * BLOCK].reshape(-1, BLOCK, BANDS).mean(axis=1)
    mean = blocks.mean(axis=0)
    total = float(mean.sum())
    if total <= 0:
        names = ("stationarity", "tone_ratio", "wander", "flatness", "bandwidth_hz", "onsets_per_s")
        return dict.fromkeys(names, 0.0)
    heard = mean > mean.max() * 1e-5
    # Averages of Gaussian noise over n independent values vary by 1/√n; overlapping Hann windows make n this small.
    expected = 1 / np.sqrt(np.maximum(widths * BLOCK * _INDEPENDENT, 1.0))
    measured = blocks.std(axis=0) / np.maximum(mean, 1e-20)
    lines, flatness, bandwidth = _line_scores(mono)
    return {
        "stationarity": float(np.percentile(blocks, 10, axis=0).sum() / total),
        "tone_ratio": lines,
        "wander": float(np.median((measured / expected)[heard])),
        "flatness": flatness,
        "bandwidth_hz": bandwidth,
        "onsets_per_s": _onsets(bands) / (len(mono) / RATE),
    }


def voice_scores(probability: np.ndarray) -> dict[str, float]:
    """From the probability of speech per 32 ms: `voice_ratio`, the share of the time somebody speaks, and `voice_s`."""
    voiced = probability > 0.5
    ratio = float(voiced.mean()) if len(voiced) else 0.0
    return {"voice_ratio": ratio, "voice_s": float(voiced.sum()) * VOICE_FRAME / VOICE_RATE}


def tag_scores(mono: np.ndarray, tagger: tags.Tagger) -> tuple[dict[str, float], list[Tag]]:
    """AudioSet classes of (N,) samples at 16 kHz.

    Gives the mean over time of `tag_speech`, `tag_music`, `tag_singing`, `tag_noise`, `tag_silence` (of several
    classes, the strongest) and `tag_event`, the strongest class that is none of those and is not vague;
    `tag_event_max`, the same at its best moment. And the events, with times from the sound's start.
    """
    patches, begins_s = tags.patches(mono, TAG_HOP_S)
    scores = tagger.scores(patches)
    mean, best = scores.mean(axis=0), scores.max(axis=0)
    index = {name: place for place, name in enumerate(tagger.names)}

    def strongest(names, values=mean) -> float:
        return max((float(values[index[name]]) for name in names if name in index), default=0.0)

    first, last = index[MUSIC], index["Scary music"]
    music = set(tagger.names[first : last + 1])
    events = [name for name in tagger.names if name not in SPEECH | SINGING | NOISE | VAGUE | music]
    found = {
        "tag_speech": strongest(SPEECH),
        "tag_music": strongest([MUSIC]),
        "tag_singing": strongest(SINGING),
        "tag_noise": strongest(NOISE),
        "tag_silence": strongest(["Silence"]),
        "tag_event": strongest(events),
        "tag_event_max": strongest(events, best),
    }
    return found, tags.events(tagger.names, scores, begins_s, len(mono) / tags.RATE, TAG_LEAST)


_INDEPENDENT = 0.56  # independent values per spectrum and bin; calibrated on white noise, where `wander` is 1


def _db(power):
    return 10 * np.log10(np.maximum(power, 1e-14))


def louder_mix(sound: np.ndarray) -> np.ndarray:
    """(2, N) → (N,): the mean of the channels, or their difference where that is the louder."""
    middle, side = (sound[0] + sound[1]) / 2, (sound[0] - sound[1]) / 2
    return side if np.square(side).sum() > np.square(middle).sum() else middle


def _spectra(mono: np.ndarray, window: int, hop: int) -> np.ndarray:
    frames = np.lib.stride_tricks.sliding_window_view(mono, window)[::hop]
    shape = np.hanning(window).astype(np.float32)
    blocks = [
        np.asarray(rfft(frames[start : start + 1024] * shape), np.complex64) for start in range(0, len(frames), 1024)
    ]
    return np.concatenate([np.square(block.real) + np.square(block.imag) for block in blocks])


def _band_energies(mono: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy per spectrum and band (T, 32), and how many bins each band holds (32,)."""
    hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    edges = np.geomspace(LOW_HZ, HIGH_HZ, BANDS + 1)
    place = np.searchsorted(edges, hertz) - 1
    inside = (place >= 0) & (place < BANDS)
    member = np.zeros((len(hertz), BANDS), np.float32)
    member[np.flatnonzero(inside), place[inside]] = 1.0
    return _spectra(mono, WINDOW, HOP) @ member, member.sum(axis=0)


def _line_scores(mono: np.ndarray) -> tuple[float, float, float]:
    """Share of the energy in steady lines, flatness, bandwidth in Hz."""
    spectra = _spectra(mono, LONG_WINDOW, LONG_WINDOW // 2)
    hertz = np.fft.rfftfreq(LONG_WINDOW, 1 / RATE)
    spectra[:, hertz < 20] = 0.0
    mean, always = spectra.mean(axis=0), np.percentile(spectra, 10, axis=0)
    total = float(mean.sum())
    if total <= 0:
        return 0.0, 0.0, 0.0
    left, steady = always.copy(), 0.0
    for _ in range(LINES):
        peak = int(left.argmax())
        around = slice(max(0, peak - 3), peak + 4)
        steady += float(left[around].sum())
        left[around] = 0.0
    inside = mean[(hertz > 50) & (hertz < HIGH_HZ)] + 1e-14
    flatness = float(np.exp(np.log(inside).mean()) / inside.mean())
    smooth = np.convolve(mean, np.full(9, 1 / 9), "same")
    bandwidth = float(hertz[np.flatnonzero(smooth > smooth.max() * 1e-6)[-1]])
    return min(1.0, steady / total), flatness, bandwidth


def _onsets(bands: np.ndarray) -> int:
    """Peaks of the mean rise of the bands' log energies over 48 ms, at least 0.6 nepers high."""
    log = np.log(bands + bands.mean(axis=0) * 1e-3 + 1e-12)
    rise = np.maximum(0.0, log[3:] - log[:-3]).mean(axis=1)
    if len(rise) < 3:
        return 0
    peak = (rise[1:-1] > rise[:-2]) & (rise[1:-1] >= rise[2:]) & (rise[1:-1] > 0.6)
    return int(peak.sum())
