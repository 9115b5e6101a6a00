"""Spoken sentences with the time of every word, from the espeak-ng library that the `espeakng_loader` package carries.

The library runs in this process, in its synchronous mode: it hands over blocks of 16-bit samples at 22 050 Hz, and with
them the events (word and phoneme starts) of each block. It keeps oscillator and noise state in global variables, which
its own restart does not clear, so the same sentence would differ from call to call. It is therefore loaded for each
utterance and unloaded after it (about 10 ms), which makes the samples a function of the arguments alone.
"""

import _ctypes
import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

MEN = ("en-us", "en-us+m3", "en-us+m7", "en-gb-scotland+m1", "en-gb-x-rp+m3", "en+m1")
# The variants f2, f3, f5, Alicia and whisper are left out: their samples differ from process to process (measured).
WOMEN = ("en-us+f4", "en+f1", "en-gb-x-rp+f1", "en-us+aunty", "en-us+linda", "en-gb-scotland+f4")

_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8, _AT_CHARACTER = 2, 1, 1, 1
_RATE, _PITCH = 1, 3
_END_OF_LIST, _WORD, _PHONEME = 0, 1, 7


@dataclass(frozen=True)
class Word:
    """One spoken word; seconds from the start of the clip."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Utterance:
    """One spoken text.

    Attributes:
        text: what was to be said.
        samples: (N,) float32 mono, peak 1.
        sample_rate: Hz.
        words: in order, times from the first sample.
        phonemes: (time in seconds, espeak's name), in order.
    """

    text: str
    samples: np.ndarray
    sample_rate: int
    words: tuple[Word, ...]
    phonemes: tuple[tuple[float, str], ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_lock = threading.Lock()  # the library is one global machine


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, bytes]]:
    """The library with its globals as the file has them, and the folder of its data."""
    try:
        import espeakng_loader
    except ImportError:
        raise ValueError(
            "speech clips need the package espeakng-loader; install kinotone[demo], or set the speech and cuts "
            "shares of the mix to 0"
        ) from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        yield library, espeakng_loader.get_data_path().encode()
    finally:
        _ctypes.dlclose(library._handle)


def speak(text: str, voice: str = MEN[0], words_per_minute: int = 165, pitch: int = 50) -> Utterance:
    """Speak a text.

    Args:
        text: plain English, ASCII.
        voice: espeak-ng's language and variant, such as "en-us+f2".
        words_per_minute: 80 to 450.
        pitch: 0 to 100; 50 is the voice's own.

    Raises:
        ValueError: the package is missing, or it does not know the voice.
    """
    blocks: list[np.ndarray] = []
    starts: list[tuple[int, int, int]] = []  # sample, position and length in the text
    phonemes: list[tuple[int, str]] = []

    def receive(samples, count, events) -> int:
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _END_OF_LIST:
            event = events[index]
            if event.type == _WORD:
                starts.append((event.sample, event.text_position - 1, event.length))
            elif event.type == _PHONEME:
                phonemes.append((event.sample, event.id.string.decode("utf8", "replace")))
            index += 1
        return 0

    callback = _CALLBACK(receive)
    encoded = text.encode()
    with _lock, _library() as (library, data):
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS)
        assert rate > 0, "espeak-ng does not start"
        try:
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"espeak-ng knows no voice {voice!r}; such as: {', '.join(MEN + WOMEN)}")
            library.espeak_SetParameter(_RATE, words_per_minute, 0)
            library.espeak_SetParameter(_PITCH, pitch, 0)
            library.espeak_Synth(encoded, len(encoded) + 1, 0, _AT_CHARACTER, 0, _UTF8, None, None)
        finally:
            library.espeak_Terminate()
    samples = np.concatenate(blocks).astype(np.float32) / 32768
    return Utterance(
        text,
        samples / max(float(np.abs(samples).max()), 1e-6),
        rate,
        _words(text, starts, samples, rate),
        tuple((sample / rate, name) for sample, name in phonemes),
    )


def _words(text: str, starts: list[tuple[int, int, int]], samples: np.ndarray, rate: int) -> tuple[Word, ...]:
    """Words with their ends: where the next word starts, or earlier, where the sound before it has died away.

    espeak gives starts only, and a word before a comma or the end of a sentence would otherwise hold the pause.
    """
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    words = []
    for index, (sample, position, length) in enumerate(starts):
        until = starts[index + 1][0] if index + 1 < len(starts) else len(samples)
        inside = loud[(loud >= sample) & (loud < until)]
        end = int(inside[-1]) + 1 if len(inside) else until
        words.append(Word(text[position : position + length], sample / rate, end / rate))
    return tuple(words)
