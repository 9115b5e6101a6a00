"""Music: a melody with chords, played on a keyboard onto which notes fall, or on the strings of a harp."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.synthetic import sounds
from data_prep.synthetic.backgrounds import Background, room, studio, view
from data_prep.synthetic.canvas import brush, glow, mixed, rectangle, smooth_noise
from data_prep.synthetic.shot import Event, Format, Shot, mixdown

_MAJOR, _MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
# Degrees of the scale on which four successive chords are built.
_PROGRESSIONS = ((0, 5, 3, 4), (0, 3, 4, 0), (0, 4, 5, 3), (0, 3, 0, 4))
_LAST = 4  # number of frames at the end in which no note begins
_KEYS = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
# Colours of the notes of the tune, and of those of the chords.
_PAINTS = (((255, 176, 64), (90, 150, 250)), ((250, 110, 140), (90, 210, 190)), ((150, 230, 110), (180, 130, 250)))


@dataclass(frozen=True)
class Note:
    """One note.

    Attributes:
        frame: on which it is struck.
        end: frame on which it is released.
        pitch: MIDI number.
        tune: whether it belongs to the melody and not to a chord.
    """

    frame: int
    end: int
    pitch: int
    tune: bool


def music(rng: np.random.Generator, form: Format, frames: int) -> Shot:
    """Make a shot of a tune in a major or minor key, played on a keyboard or a harp."""
    beat = round(form.fps * 60 / rng.uniform(96, 150))
    tonic, minor = int(rng.integers(0, 12)), bool(rng.random() < 0.4)
    piece = _compose(rng, frames, beat, tonic, _MINOR if minor else _MAJOR)
    key = f"{_KEYS[tonic]} {'minor' if minor else 'major'}"
    return (_keyboard if rng.random() < 0.55 else _harp)(rng, form, frames, piece, beat, key)


def _compose(rng, frames: int, beat: int, tonic: int, scale) -> list[Note]:
    """Choose the notes of a melody with chords at random. Return them in order of time.

    Args:
        rng: chooses.
        frames: number of frames of the shot.
        beat: number of frames of a beat.
        tonic: pitch class of the key, 0 (C) to 11.
        scale: semitones of the seven degrees above the tonic.
    """

    def pitch(degree: int, octave: int) -> int:
        return 12 * (octave + 1 + degree // 7) + tonic + scale[degree % 7]

    notes: list[Note] = []
    start = int(rng.integers(2, 6))
    progression = _PROGRESSIONS[rng.integers(len(_PROGRESSIONS))]
    bar, degree = 2 * beat, int(rng.choice([0, 2, 4]))
    for n, at in enumerate(range(start, frames - _LAST, bar)):
        root = progression[n % 4]
        for third in (0, 2, 4):
            notes.append(Note(at, min(at + bar - 1, frames), pitch((root + third) % 7, 3 if tonic > 4 else 4), False))
        rhythm = ((1, 1), (1, 0.5, 0.5), (0.5, 0.5, 1), (0.5, 0.5, 0.5, 0.5), (1.5, 0.5))[rng.integers(5)]
        place = float(at)
        for k, share in enumerate(rhythm):
            if k == 0:  # a note of the chord on the strong beat
                degree = (root + int(rng.choice([0, 2, 4]))) % 7
            length = share * beat
            if round(place) < frames - _LAST:
                notes.append(
                    Note(round(place), min(round(place + length), frames), pitch(degree, 5 if tonic <= 4 else 4), True)
                )
            degree = int(np.clip(degree + rng.choice([-2, -1, 1, 2]), 0, 8))
            place += length
    return sorted(notes, key=lambda note: (note.frame, note.pitch))


def _keyboard(rng, form: Format, frames: int, piece: list[Note], beat: int, key: str) -> Shot:
    """Make a shot of coloured notes that fall onto a keyboard; each touches its key on the frame on which it sounds."""
    height, width = form.height, form.width
    low = min(n.pitch for n in piece) // 12 * 12
    octaves = (max(n.pitch for n in piece) - low) // 12 + 1
    whites = [low + 12 * o + s for o in range(octaves) for s in (0, 2, 4, 5, 7, 9, 11)]
    blacks = [low + 12 * o + s for o in range(octaves) for s in (1, 3, 6, 8, 10)]
    key_w = width / len(whites)
    x_of = {p: (k + 0.5) * key_w for k, p in enumerate(whites)} | {p: (whites.index(p - 1) + 1) * key_w for p in blacks}
    top = height * 0.68
    tune, chord = _PAINTS[rng.integers(len(_PAINTS))]
    speed = height * 0.62 / (2.2 * beat)  # of a falling note, pixels per frame
    still = _night(rng, height, width, int(top), low, x_of, beat)
    keys: dict[frozenset, np.ndarray] = {}  # the keyboard changes only when a note begins or ends
    pictures = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        frame = still.copy()
        for note in piece:
            y1, y0 = top - (note.frame - i) * speed, top - (note.end - i) * speed + 2
            if y0 < top and y1 > 0:
                x, half = x_of[note.pitch], key_w * (0.42 if note.pitch in whites else 0.28)
                colour, sounding = (tune if note.tune else chord), note.frame <= i < note.end
                rectangle(frame, x - half, y0, x + half, min(y1, top), mixed(colour, (255, 255, 255), 0.3 * sounding))
                rectangle(frame, x - half, y0, x - half + 1.2, min(y1, top), (255, 255, 255), 0.35)
        lit = {n.pitch: (tune if n.tune else chord) for n in piece if n.frame <= i < n.end}
        above = int(top) - 2
        if (state := frozenset(lit.items())) not in keys:
            painted = still.copy()
            _keys(painted, whites, blacks, x_of, key_w, top, lit)
            keys[state] = painted[above:]
        frame[above:] = keys[state]
        for note in piece:
            age = i - note.frame
            if 0 <= age < 8:
                glow(frame, x_of[note.pitch], top, key_w * 0.6, height * 0.05, (255, 250, 220), 0.8 * (1 - age / 8))
        pictures[i] = frame

    def sound(pitch_hz: float, seconds: float, strength: float) -> np.ndarray:
        return sounds.piano_note(pitch_hz, seconds, strength, form.sample_rate)

    seen = f"Coloured notes fall onto a keyboard of {_octaves(octaves)}, and its keys light up as they are played."
    heard = f"A piano plays a tune with chords in {key}."
    return _shot(rng, form, pictures, piece, x_of, sound, seen, heard, "key")


def _octaves(count: int) -> str:
    return {1: "one octave", 2: "two octaves", 3: "three octaves", 4: "four octaves"}.get(count, f"{count} octaves")


def _night(rng, height: int, width: int, top: int, low: int, x_of, beat: int) -> np.ndarray:
    """Draw the dark space through which the notes fall, (H, W, 3) uint8, with a faint line at each C."""
    hue = np.array(((26, 30, 56), (40, 24, 48), (18, 40, 46))[rng.integers(3)], np.float32)
    shade = np.linspace(0.6, 1.5, height, dtype=np.float32)[:, None] + 0.2 * smooth_noise(
        rng, height, width, height / 3, 2
    )
    still = np.clip(hue * shade[..., None], 0, 255).astype(np.uint8)
    for pitch, x in x_of.items():
        if pitch % 12 == 0:
            rectangle(still, x - (x_of[low] + 0.3), 0, x - x_of[low] + 0.3, top, (255, 255, 255), 0.14)
    return still


def _keys(frame: np.ndarray, whites, blacks, x_of, key_w: float, top: float, lit: dict) -> None:
    """Draw the keyboard below row `top`. `x_of` has the x of each pitch, `lit` the colour of each pitch that sounds."""
    height, width = frame.shape[:2]
    rectangle(frame, 0, top, width, height, (58, 54, 58))
    for pitch in whites:
        x, colour = x_of[pitch], lit.get(pitch)
        paint = mixed((238, 234, 226), colour, 0.75) if colour else (238, 234, 226)
        drop = 2 if colour else 0
        rectangle(frame, x - key_w / 2 + 0.4, top, x + key_w / 2 - 0.4, height - 4 + drop, paint)
        rectangle(
            frame,
            x - key_w / 2 + 0.4,
            height - 6 + drop,
            x + key_w / 2 - 0.4,
            height - 4 + drop,
            mixed(paint, (0, 0, 0), 0.25),
        )
    for pitch in blacks:
        x, colour = x_of[pitch], lit.get(pitch)
        deep = top + (height - top) * 0.6
        rectangle(frame, x - key_w * 0.3 + 1, top, x + key_w * 0.3 + 1, deep + 1, (0, 0, 0), 0.35)
        rectangle(
            frame,
            x - key_w * 0.3,
            top,
            x + key_w * 0.3,
            deep,
            mixed((34, 32, 38), colour, 0.7) if colour else (34, 32, 38),
        )
        rectangle(frame, x - key_w * 0.16, top, x + key_w * 0.1, deep - 3, (255, 255, 255), 0.12)
    rectangle(frame, 0, top - 1.5, width, top + 0.5, (150, 34, 44))


def _harp(rng, form: Format, frames: int, piece: list[Note], beat: int, key: str) -> Shot:
    """Make a shot of a harp with a string for each pitch; a string swings and glows when it is plucked."""
    height, width = form.height, form.width
    pitches = sorted({n.pitch for n in piece})
    behind = (room, studio)[rng.integers(2)](rng, height, width)
    margin = width * 0.2
    x_of = {p: margin + (width - 2 * margin) * (k + 0.5) / len(pitches) for k, p in enumerate(pitches)}
    foot = {p: height * (0.84 - 0.04 * k / len(pitches)) for k, p in enumerate(pitches)}
    head = {p: height * (0.12 + 0.30 * (k / max(len(pitches) - 1, 1)) ** 1.3) for k, p in enumerate(pitches)}
    wood = ((150, 92, 46), (120, 66, 44), (184, 134, 72))[rng.integers(3)]
    tune, chord = _PAINTS[rng.integers(len(_PAINTS))]
    _harp_frame(behind, wood, margin, height, width)
    string = {p: mixed((250, 240, 214), (220, 80, 70), 0.8 if p % 12 == 0 else 0.0) for p in pitches}
    pictures = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        frame = view(behind, 0.0, width)
        struck: dict[int, Note] = {n.pitch: n for n in piece if n.frame <= i}
        with brush(frame, margin, height * 0.06, width - margin, height * 0.92) as b:
            for p in pitches:
                note = struck.get(p)
                age = (i - note.frame) / form.fps if note else 9.0
                swing = height * 0.028 * np.exp(-age / 0.35)
                along = np.linspace(0, 1, 13)
                y = head[p] + (foot[p] - head[p]) * along
                bow = np.sin(np.pi * along)
                if note and swing > 0.15:
                    lit = mixed(string[p], tune if note.tune else chord, float(np.exp(-age / 0.5)))
                    # A string swings too fast for the eye, so draw the area that it covers.
                    left, right = x_of[p] - swing * bow, x_of[p] + swing * bow
                    b.polygon(np.concatenate([np.stack([left, y], 1), np.stack([right, y], 1)[::-1]]), (*lit, 120))
                    b.line(np.stack([x_of[p] + swing * bow * np.cos(2 * np.pi * 11 * age), y], 1), 1.1, lit)
                else:
                    b.line(np.stack([np.full(13, x_of[p]), y], 1), 0.8, string[p])
        for p, note in struck.items():
            age = i - note.frame
            if age < 6:
                glow(
                    frame,
                    x_of[p],
                    (head[p] + foot[p]) / 2,
                    height * 0.03,
                    height * 0.06,
                    tune if note.tune else chord,
                    0.7 * (1 - age / 6),
                )
        pictures[i] = frame

    def sound(pitch_hz: float, _seconds: float, strength: float) -> np.ndarray:
        return sounds.plucked_string(rng, pitch_hz, strength, form.sample_rate)

    seen = f"A harp with {len(pitches)} strings stands in front of {behind.what}; its strings swing when plucked."
    return _shot(rng, form, pictures, piece, x_of, sound, seen, f"It plays a tune with chords in {key}.", "string")


def _harp_frame(behind: Background, wood, margin: float, height: int, width: int) -> None:
    """Draw the wooden frame of the harp onto the background."""
    dark = mixed(wood, (0, 0, 0), 0.35)
    with brush(behind.pixels, 0, 0, width, height) as b:
        b.ellipse(width / 2, height * 0.93, width * 0.36, height * 0.05, (0, 0, 0, 80))
        left, right = margin * 0.7, width - margin * 0.8
        for shares, paint in (((0.84, 0.8, 0.88, 0.93), dark), ((0.83, 0.79, 0.84, 0.88), wood)):
            b.polygon([(x, height * y) for x, y in zip((left, right, right, left), shares, strict=True)], paint)
        b.line([(margin * 0.8, height * 0.88), (margin * 0.8, height * 0.1)], height * 0.06, dark)
        b.line([(margin * 0.78, height * 0.88), (margin * 0.78, height * 0.1)], height * 0.04, wood)
        share = np.linspace(0, 1, 15)
        neck = np.stack([margin * 0.8 + (width - 1.65 * margin) * share, height * (0.09 + 0.31 * share**1.3)], 1)
        b.line(neck, height * 0.06, dark)
        b.line(neck - (0, height * 0.008), height * 0.04, wood)
        b.line([(width - margin * 0.86, height * 0.4), (width - margin * 0.86, height * 0.84)], height * 0.04, dark)
        b.ellipse(margin * 0.78, height * 0.09, height * 0.045, height * 0.045, mixed(wood, (255, 220, 150), 0.35))


_Sound = Callable[[float, float, float], np.ndarray]  # (pitch in Hz, seconds, strength) → mono


def _play(rng, form: Format, frames: int, piece: list[Note], place: dict[int, float], sound: _Sound) -> np.ndarray:
    """Make the sound of the piece, (2, N), with each note panned to `place`: x by pitch, as a share of the width."""
    samples = form.samples(frames)
    dry = np.zeros((2, samples), np.float32)
    for note in piece:
        strength = rng.uniform(0.75, 1.0) if note.tune else rng.uniform(0.35, 0.5)
        mono = sound(sounds.midi_hz(note.pitch), (note.end - note.frame) / form.fps, strength)
        made = sounds.pan(mono, place[note.pitch], 1.0)
        for channel in (0, 1):
            sounds.add(dry[channel], made[channel], form.sample_of(note.frame))
    return mixdown(rng, form, dry, room_s=(0.5, 0.9), wet=(0.1, 0.2), peak=(0.55, 0.85), floor_db=-66)


def _shot(
    rng,
    form: Format,
    pictures,
    piece: list[Note],
    x_of: dict[int, float],
    sound: _Sound,
    seen: str,
    heard: str,
    part: str,
) -> Shot:
    """Make the shot from its pictures: add the sound and the labels.

    `x_of` is the x in pixels of what plays each pitch, and `part` its name: "key" or "string".
    """
    place = {pitch: x / form.width for pitch, x in x_of.items()}
    audio = _play(rng, form, len(pictures), piece, place, sound)
    names = {n.pitch: f"{_KEYS[n.pitch % 12]}{n.pitch // 12 - 1}" for n in piece}
    events = [Event(n.frame / form.fps, f"{part} {names[n.pitch]} sounds", place[n.pitch]) for n in piece]
    return Shot("music", "music", pictures, audio, seen, heard, events=events)
