"""Refine the times when a tagged sound begins and ends, since the tagger's windows of 0.96 s give only coarse times.

An onset is a sudden rise of at least four bands of the spectrum together (spectral flux, as in Bello et al. 2005, "A
Tutorial on Onset Detection in Music Signals", §III-A, on a logarithmic scale). Within the window in which the tagger
first hears a sound, the sound begins at the first onset that leads to about the window's level. If there is no onset,
the tagger's time is kept. The tagger's grid of windows can miss the first of several knocks. So the tagger is run again
on windows that start at the earlier onsets; if it hears the same sound there, the sound begins there.

The tagger often cannot tell which object knocks: it gives low scores to a hammer, a door and a wood block at once. But
together, these scores can make it certain that one of them sounds. Such onsets get the tag "Generic impact sounds", the
class above these labels in AudioSet's ontology.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.fft import rfft

from captioning.write.vocabulary import IMPACT, KNOCKS
from data_prep.clip import Tag
from data_prep.scores.audio_tags import HOP, PATCH, Tagger, log_mel

RATE = 16_000  # Hz
_WINDOW, _HOP = 512, 160  # samples: 32 ms every 10 ms
# First bin of each band; a bin is 31 Hz. Bands are 3 bins wide up to 500 Hz, then a sixth of their frequency, up to
# 7.5 kHz.
_EDGES = np.array([4, 7, 10, 13, 16, 19, 23, 27, 32, 37, 43, 50, 58, 68, 79, 92, 107, 125, 146, 170, 199, 240])
_SILENCE = 1e-8  # energy floor of a band: -80 dB
_BEFORE, _GAP, _AFTER = 8, 2, 4  # compare the frames from 8 to 2 before a frame with that frame and the next 3
_TOGETHER = 4  # how many bands, those that rise most, are averaged
_RISE_DB = 8.0  # smallest rise of an onset
_LOUD_DB = 15.0  # a sound's onset must lead to a level at most this far below the window's loudest frame
_FADED_DB = 25.0  # a sound ends when it falls this far below its loudest frame
_PATCH_S = 0.96  # the tagger's window
_LEAD_S = 0.1  # a window for the second run starts this long before its onset
_STEP_S = 1.2  # longest time between the onsets of one repeated sound
_HALF_HEARD = 0.08  # at an earlier onset this low score is sufficient, since the sound has a high score soon after
_IMPACTS = 2  # fewest certain knocks for a tag
_EARLY_S = 0.1  # an onset this long before the window still belongs to it


def refine_tags(tags: Sequence[Tag], audio: np.ndarray, tagger: Tagger, min_score: float) -> tuple[Tag, ...]:
    """Refine the times of a clip's tags to a few hundredths of a second, and add a tag for certain knocks.

    Args:
        tags: The tags from curation.
        audio: Mono (N,) float32 at 16 kHz.
        tagger: The network that gave the tags.
        min_score: Tags below this score are left out.

    Returns:
        The remaining tags with their new times, and the tag of the knocks, if any.
    """
    power = band_energies(audio)
    levels, begins = _db(power.max(axis=1)), onsets(power)
    scores = tagger.scores(_windows_at(audio, begins))
    by_class = dict(zip(tagger.names, scores.T, strict=True))
    knocks = 1 - np.prod([1 - by_class[name] for name in KNOCKS if name in by_class] or [np.ones(len(begins))], axis=0)
    by_class |= dict.fromkeys((*KNOCKS, IMPACT), knocks)
    found = []
    for tag in (
        *(tag for tag in tags if tag.score >= min_score),
        *_impacts(begins, knocks, min_score, len(audio) / RATE),
    ):
        loudest = levels[_frame(tag.start_s) : _frame(min(tag.end_s, tag.start_s + _PATCH_S)) + 1].max(initial=-np.inf)
        loud = np.array([levels[frame : frame + _BEFORE].max() >= loudest - _LOUD_DB for frame in begins], bool)
        start_s = _start_of(tag, begins[loud])
        if tag.label in by_class:
            start_s = _first_repetition(start_s, begins[loud], by_class[tag.label][loud])
        end_s = _end_of(tag, start_s, levels)
        found.append(replace(tag, start_s=round(float(start_s), 2), end_s=round(float(end_s), 2)))
    return tuple(found)


def _impacts(begins: np.ndarray, knocks: np.ndarray, min_score: float, seconds: float) -> list[Tag]:
    """Return a tag from the first to the last certain knock, [] for fewer than two: a single one may be a mistake.

    Args:
        begins: (K,), the frames of the onsets.
        knocks: (K,), the probability that the onset is a knock.
        min_score: The probability of a certain knock.
        seconds: Length of the clip.
    """
    sure = np.flatnonzero(knocks >= min_score)
    if len(sure) < _IMPACTS:
        return []
    first_s, last_s = _seconds(int(begins[sure[0]])), _seconds(int(begins[sure[-1]]))
    end_s = min(seconds, last_s + _PATCH_S - _LEAD_S)
    return [Tag(IMPACT, first_s, end_s, round(float(knocks[sure].mean()), 4))]


def _windows_at(audio: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Return the tagger's input (K, 96, 64): one window for each onset, which starts `_LEAD_S` before it.

    `begins` (K,) are the frames of the onsets.
    """
    mel = log_mel(audio)
    first = np.clip(np.round((begins * _HOP / RATE - _LEAD_S) * RATE / HOP).astype(int), 0, len(mel) - PATCH)
    return mel[first[:, None] + np.arange(PATCH)]


def _first_repetition(start_s: float, begins: np.ndarray, scores: np.ndarray) -> float:
    """Return when a repeated sound first begins, in seconds: `start_s`, or an earlier onset.

    Go back from onset to onset where the tagger hears the same sound, in steps of at most `_STEP_S`.

    Args:
        start_s: The start that is known so far.
        begins: (K,), the frames of the onsets.
        scores: (K,), the tagger's score of the sound at each onset.
    """
    for frame, score in zip(begins[::-1], scores[::-1], strict=True):
        at_s = _seconds(frame)
        if at_s < start_s:
            if start_s - at_s > _STEP_S:
                break
            if score >= _HALF_HEARD:
                start_s = at_s
    return start_s


def onsets(power: np.ndarray) -> np.ndarray:
    """Return the frames (K,) at which a sound begins, from band energies (T, B).

    A sound that is already there at the first frame has its onset there.
    """
    total = np.concatenate([np.zeros((1, power.shape[1])), np.cumsum(power, axis=0, dtype=np.float64)])
    frames = np.arange(len(power))
    first, last = np.maximum(frames - _BEFORE, 0), np.maximum(frames - _GAP, 0)
    ends = np.minimum(frames + _AFTER, len(power))
    before = (total[last] - total[first]) / np.maximum(last - first, 1)[:, None]
    after = (total[ends] - total[frames]) / (ends - frames)[:, None]
    before[: _GAP + 1] = after[: _GAP + 1]
    before[0] = _SILENCE
    rise = np.sort(_db(after) - _db(before), axis=1)[:, -_TOGETHER:].mean(axis=1)
    padded = np.concatenate([[0.0], rise, [0.0]])
    return np.flatnonzero((rise >= _RISE_DB) & (rise > padded[:-2]) & (rise >= padded[2:]))


def _start_of(tag: Tag, begins: np.ndarray) -> float:
    """Return the time (seconds) of the first of the onsets (frames) in the tag's first 0.96 s, else the tag's start."""
    first_s, last_s = tag.start_s - _EARLY_S, min(tag.end_s, tag.start_s + _PATCH_S)
    return next((at_s for at_s in map(_seconds, begins) if first_s <= at_s <= last_s), tag.start_s)


def _end_of(tag: Tag, start_s: float, levels: np.ndarray) -> float:
    """Return when the sound of a tag ends, in seconds, from the level (T,) of each frame in dB.

    It is the last frame of the tag's last 0.96 s that is at most `_FADED_DB` below the loudest of them.
    """
    first, last = _frame(max(start_s, tag.end_s - _PATCH_S)), _frame(tag.end_s)
    part = levels[first : last + 1]
    if not len(part):
        return tag.end_s
    heard = np.flatnonzero(part >= part.max() - _FADED_DB)
    end_s = _seconds(first + int(heard[-1])) if first + heard[-1] < len(levels) - 1 else tag.end_s
    return max(end_s, min(start_s + 0.1, tag.end_s))


def _frame(at_s: float) -> int:
    """Return the frame whose middle is nearest to a time in seconds."""
    return max(0, round((at_s * RATE - _WINDOW / 2) / _HOP))


def _seconds(frame: int) -> float:
    """Return the time of a frame: its middle, but 0 for the first frame."""
    return 0.0 if frame == 0 else (frame * _HOP + _WINDOW / 2) / RATE


def band_energies(audio: np.ndarray) -> np.ndarray:
    """Return band energies (T, B) of audio (N,) at 16 kHz, relative to full scale, at least `_SILENCE`."""
    if len(audio) < _WINDOW:
        audio = np.pad(audio, (0, _WINDOW - len(audio)))
    frames = np.lib.stride_tricks.sliding_window_view(audio, _WINDOW)[::_HOP] * np.hanning(_WINDOW).astype(np.float32)
    spectra = np.asarray(rfft(frames), np.complex64)
    power = np.square(spectra.real) + np.square(spectra.imag)
    bands = np.add.reduceat(power, _EDGES, axis=1)[:, :-1] / (_WINDOW / 4) ** 2
    return np.maximum(bands, _SILENCE)


def _db(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, _SILENCE))
