"""The kinds of clip that curation must drop: usual pictures, with noise or a tone that they do not cause, or silent."""

from collections.abc import Callable

import numpy as np

from data_prep.synthetic import sounds
from data_prep.synthetic.backgrounds import camera, landscape, room, view
from data_prep.synthetic.shot import Format, Kind, Shot
from data_prep.synthetic.subjects.ball import ball
from data_prep.synthetic.subjects.nature import clock


def scene(rng: np.random.Generator, form: Format, frames: int) -> Shot:
    """Make a shot of a landscape or a room, with or without a pan; no sound."""
    span = round(0.6 * form.width)
    behind = (landscape, landscape, room)[rng.integers(3)](rng, form.height, form.width + span)
    offsets, panned = camera(rng, frames, span, 0.7)
    pictures = np.stack([view(behind, float(offset), form.width) for offset in offsets])
    return Shot(
        "scene", "silence", pictures, None, f"A view of {behind.what}. {panned or 'The camera stands still.'}", ""
    )


def _silence(rng, form: Format, samples: int) -> tuple[np.ndarray, str]:
    return np.zeros((2, samples), np.float32), "There is no sound."


def _near_silent(rng, form: Format, samples: int) -> tuple[np.ndarray, str]:
    level = 10 ** (rng.uniform(-78, -68) / 20)
    faint = np.stack([sounds.noise(rng, samples, 1.0) for _ in range(2)])
    return level * faint, "There is next to no sound, only a room's faint noise."


def _hiss(rng, form: Format, samples: int) -> tuple[np.ndarray, str]:
    level, colour = 10 ** (rng.uniform(-38, -24) / 20), float(rng.choice([0.0, 0.5, 1.0]))
    return level * np.stack([sounds.noise(rng, samples, colour) for _ in range(2)]), "There is a steady hiss."


def _hum(rng, form: Format, samples: int) -> tuple[np.ndarray, str]:
    mains = float(rng.choice([50.0, 60.0]))
    level = 10 ** (rng.uniform(-32, -22) / 20)
    both = np.tile(sounds.hum(rng, samples, mains, form.sample_rate), (2, 1))
    hiss = np.stack([sounds.noise(rng, samples) for _ in range(2)])
    return level * (both + 0.02 * hiss), f"There is a steady electric hum at {mains:.0f} hertz."


def _tone(rng, form: Format, samples: int) -> tuple[np.ndarray, str]:
    hertz, level = round(float(rng.uniform(300, 1500))), 10 ** (rng.uniform(-26, -14) / 20)
    one = level * np.sin(2 * np.pi * hertz * np.arange(samples) / form.sample_rate)
    return np.tile(one, (2, 1)), f"There is a steady tone of {hertz} hertz."


# (rng, format, number of samples N) → (2, N) sound, and a sentence about it
_Sound = Callable[[np.random.Generator, Format, int], tuple[np.ndarray, str]]
_SOUNDS: dict[str, tuple[str, _Sound]] = {
    "silence": ("silence", _silence),
    "near_silent": ("silence", _near_silent),
    "hiss": ("noise", _hiss),
    "hum": ("noise", _hum),
    "tone": ("noise", _tone),
}


def quiet(kind: str) -> Kind:
    """Return the function that makes shots of a kind: "silence", "near_silent", "hiss", "hum", "tone" or "no_audio"."""

    def make(rng: np.random.Generator, form: Format, frames: int) -> Shot:
        shot = (scene, scene, scene, ball, clock)[rng.integers(5)](rng, form, frames)
        shot.kind = kind
        if kind == "no_audio":
            shot.sound_class, shot.audio, shot.heard = "no_audio", None, "There is no sound track."
        else:
            shot.sound_class, make_sound = _SOUNDS[kind]
            audio, shot.heard = make_sound(rng, form, form.samples(frames))
            shot.audio = np.clip(audio, -0.99, 0.99).astype(np.float32)
        shot.events = []  # the visible events make no sound
        return shot

    return make
