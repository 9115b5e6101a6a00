"""Speak sentences and return the time of every word, with the small network (8 MB) in the `hibari-tts` package.

For every 12.5 ms Hibari predicts how strong and how periodic each frequency is; the package's signal processing turns
this into sound. The network has one voice. The other voices are made from it: the pitch is multiplied, and the spectrum
is stretched as by a longer or shorter vocal tract. Men's pitch is about half of women's, and their resonances are about
a sixth lower (Peterson and Barney 1952). The times of the words come from a tensor inside the network: the duration of
each phoneme.
"""

import json
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from data_prep.onnx_session import opened

# (pitch, length of the vocal tract) of each voice, relative to the network's voice.
VOICES: dict[str, tuple[float, float]] = {
    "woman 1": (1.0, 1.0),
    "woman 2": (0.88, 1.0),
    "woman 3": (1.12, 0.96),
    "woman 4": (0.94, 0.96),
    "man 1": (0.58, 1.14),
    "man 2": (0.66, 1.1),
    "man 3": (0.54, 1.18),
    "man 4": (0.62, 1.06),
}
WOMEN = tuple(name for name in VOICES if name.startswith("woman"))
MEN = tuple(name for name in VOICES if name.startswith("man"))

_FRAME_S = 0.025
_LAG_S = 3 * _FRAME_S  # delay of the durations behind the sound, as in Kokoro (kokoro.pipeline, join_timestamps)
_FRAMES_OF_PHONEMES = "/Clip_output_0"  # name of the network's tensor (L,) of durations: frames of each phoneme
_MARKS = "ˈˌː"  # stress and length
_SILENCE = "·"  # not a phoneme: the network needs it at both ends
_HEARD = 0.01  # quieter samples are silence, relative to the loudest sample
_MARGIN_S = 0.02  # silence kept before and after the sound, seconds


@dataclass(frozen=True)
class Word:
    """One spoken word.

    Attributes:
        word: without punctuation.
        start_s, end_s: seconds from the start of the clip.
    """

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Utterance:
    """One spoken text.

    Attributes:
        text: the text.
        samples: (N,) float32 mono, peak 1.
        sample_rate: Hz.
        words: in order; times from the first sample.
        phonemes: (time in seconds, IPA character), in order; capitals are diphthongs (A as in day, I eye, O oh, W ow).
    """

    text: str
    samples: np.ndarray
    sample_rate: int
    words: tuple[Word, ...]
    phonemes: tuple[tuple[float, str], ...]

    @property
    def seconds(self) -> float:
        """Length of the sound, seconds."""
        return len(self.samples) / self.sample_rate


def speak(text: str, voice: str = WOMEN[0], speed: float = 0.85, pitch: float = 1.0) -> Utterance:
    """Make speech of a text, with the time of each word and phoneme.

    Args:
        text: plain English words, with commas and full stops.
        voice: a name in `VOICES`.
        speed: 0.5 to 2; 1 is about 250 words per minute.
        pitch: factor on the pitch of the voice.

    Raises:
        ValueError: the package is missing, there is no such voice, or the text holds more than words.
    """
    if voice not in VOICES:
        raise ValueError(f"no voice {voice!r}; there are: {', '.join(VOICES)}")
    tts = _synthesizer()
    spoken = text.split()
    phonemes = tts.phonemes(text)
    if len(phonemes.split()) != len(spoken):
        raise ValueError(f"{text!r} is not spoken word for word; write numbers and signs as words")
    symbols = [_SILENCE, *phonemes, _SILENCE]
    ids = [tts.numbers.get(symbol, 0) for symbol in symbols]
    given = {"ids": np.array([ids], np.int64), "speed": np.array([speed], np.float32)}
    *bands, f0, frames = tts.network.run(None, given)
    own_pitch, tract = VOICES[voice]
    stretched = [_stretched(band[0], tract) for band in bands]
    rng = np.random.default_rng(0)  # for the breath in the voice
    sound = tts.dsp.synth(*stretched, f0[0] * np.float32(own_pitch * pitch), rng)
    sound /= max(float(np.abs(sound).max()), 1e-6)
    heard_s = np.flatnonzero(np.abs(sound) > _HEARD) / tts.dsp.SR
    begin_s = max(0.0, heard_s[0] - _MARGIN_S)
    begin, end = (round(at * tts.dsp.SR) for at in (begin_s, heard_s[-1] + _MARGIN_S))
    starts_s = np.concatenate([[0], np.cumsum(frames.ravel())]) * _FRAME_S - _LAG_S
    timed = [(symbol, float(at - begin_s)) for symbol, at in zip(symbols, starts_s, strict=False)]
    return Utterance(
        text,
        sound[begin:end],
        tts.dsp.SR,
        _words(spoken, timed, heard_s - begin_s),
        tuple((at, symbol) for symbol, at in timed if symbol.isalpha() and symbol not in _MARKS),
    )


@dataclass(frozen=True)
class _Synthesizer:
    """The speech network, the converter of text to phonemes, and the signal processing that makes sound (`dsp`)."""

    network: Any  # ids, speed → five (1, 601, F) parts of the spectrum, f0 (1, F), frames of each phoneme (L,)
    phonemes: Any  # text → IPA, words separated by spaces
    numbers: dict[str, int]  # symbol → its id
    dsp: Any


@cache
def _synthesizer() -> _Synthesizer:
    """Load the network, with the durations of the phonemes as an additional output; once per process.

    Raises:
        ValueError: the package is missing.
    """
    try:
        from hibari import dsp, tts
        from hibari.g2p import G2P
    except ImportError:
        raise ValueError(
            "speech clips need the package hibari-tts; install kinotone[demo], or set the speech and cuts shares of "
            "the mix to 0"
        ) from None
    assets = Path(tts.ASSETS)
    model = onnx.load(str(assets / "hibari.onnx"))
    model.graph.output.append(onnx.ValueInfoProto(name=_FRAMES_OF_PHONEMES))
    numbers = json.loads((assets / "vocab.json").read_text(encoding="utf-8"))
    return _Synthesizer(opened(model.SerializeToString()), G2P(), numbers, dsp)


def _stretched(band: np.ndarray, tract: float) -> np.ndarray:
    """Divide the frequencies in a part of the spectrum, (601, F), by `tract`, as a longer vocal tract does.

    Each bin takes the value of the bin nearest to `tract` times its frequency.
    """
    bins = np.minimum(np.round(np.arange(len(band)) * tract).astype(int), len(band) - 1)
    return np.ascontiguousarray(band[bins])


def _words(spoken: list[str], timed: list[tuple[str, float]], heard_s: np.ndarray) -> tuple[Word, ...]:
    """Compute when each word begins and ends, and remove its punctuation.

    Args:
        spoken: the words of the text.
        timed: (symbol, start in seconds) of each phoneme, mark and space.
        heard_s: times of the samples that are not silent, seconds.

    Two words meet in the middle of the space between them, as in Kokoro. A word after a comma begins with its own
    sound, and a word ends earlier if its sound has died away.
    """
    edges = [timed[1][1]]  # times between the words, and at both ends
    for (before, _), (symbol, at_s), (_, until_s) in zip(timed, timed[1:], timed[2:], strict=False):
        if symbol == " ":
            edges.append((at_s + until_s) / 2 if before.isalpha() else until_s)
    edges.append(timed[-1][1])
    words = []
    for word, (start_s, until_s) in zip(spoken, pairwise(edges), strict=True):
        start_s = max(0.0, start_s)
        sounding = heard_s[(heard_s > start_s) & (heard_s < until_s)]
        end_s = float(sounding[-1]) if len(sounding) else until_s
        words.append(Word(word.strip(",."), start_s, end_s))
    return tuple(words)
