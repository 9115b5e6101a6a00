"""A bird that sings on a branch, and a clock that ticks each time its pendulum turns."""

import numpy as np

from data_prep.synthetic import sounds
from data_prep.synthetic.backgrounds import camera, landscape, room, view
from data_prep.synthetic.canvas import COLOURS, brush, glow, mixed
from data_prep.synthetic.shot import Event, Format, Shot, mixdown, side


def bird(rng: np.random.Generator, form: Format, frames: int) -> Shot:
    """Make a shot of a bird that opens its beak for each note of its song."""
    height, width = form.height, form.width
    span = round(0.3 * width)
    behind = landscape(rng, height, width + span)
    offsets, panned = camera(rng, frames, span * 0.6, 0.4)
    size = height * rng.uniform(0.15, 0.2)
    x, y = rng.uniform(0.25, 0.75) * width + span * 0.3, height * rng.uniform(0.42, 0.58)
    facing = int(rng.choice([-1, 1]))
    name = str(rng.choice(["red", "orange", "yellow", "green", "turquoise", "blue"]))
    _branch(rng, behind.pixels, x, y + size * 0.98, facing, height)

    notes = _song(rng, frames, form.fps)
    track = np.zeros(form.samples(frames), np.float32)
    low = rng.uniform(2400, 3400)
    beak = np.zeros(frames)
    for start, length in notes:
        high = low * rng.uniform(1.25, 1.7)
        syllable = sounds.chirp(rng, low, high, length / form.fps, form.sample_rate) * rng.uniform(0.7, 1.0)
        sounds.add(track, syllable, form.sample_of(start))
        beak[start : start + length] = np.sin(np.pi * (np.arange(length) + 0.7) / (length + 0.4))[: frames - start]
    turned = np.cumsum(rng.random(frames) < 0.02) % 2
    pictures = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        frame = view(behind, float(offsets[i]), width)
        at = x - offsets[i]
        with brush(frame, at - 2.4 * size, y - 1.6 * size, at + 2.4 * size, y + 1.8 * size) as b:
            _bird(b, at, y + 0.03 * size * np.sin(i * 0.35), size, facing, COLOURS[name], beak[i], turned[i])
        pictures[i] = frame
    place = np.stack([(x - offsets + 0.9 * size * facing) / width, np.full(frames, (y - 0.55 * size) / height)], axis=1)
    dry = sounds.pan(track, place[:, 0], form.samples_per_frame)
    audio = mixdown(rng, form, dry, room_s=(0.4, 0.7), wet=0.12, peak=(0.4, 0.7), floor_db=-56)
    article = "An" if name == "orange" else "A"
    where = side(float(place[:, 0].mean()))
    return Shot(
        "bird", "environment", pictures, audio,
        f"{article} {name} bird sits on a branch {where}, in front of {behind.what}, and opens its beak to sing."
        + f" {panned}" * bool(panned),
        "The bird chirps.",
        events=[Event(s / form.fps, "bird chirps", float(place[s, 0])) for s, _ in notes],
        places={"beak": place},
    )  # fmt: skip


def _song(rng, frames: int, fps: float) -> list[tuple[int, int]]:
    """Choose the notes at random: phrases of three to six notes, with rests between them.

    Returns:
        (first frame, number of frames) of each note.
    """
    notes, at = [], int(rng.integers(2, 8))
    while True:
        length, gap = max(2, round(rng.uniform(0.08, 0.18) * fps)), round(rng.uniform(0.05, 0.12) * fps)
        for _ in range(rng.integers(3, 7)):
            if at + length >= frames:
                return notes
            notes.append((at, length))
            at += length + max(gap, 1)
        at += round(rng.uniform(0.2, 0.4) * fps)


def _branch(rng, pixels: np.ndarray, x: float, y: float, facing: int, height: int) -> None:
    """Draw the branch with leaves on which the bird sits at (x, y)."""
    height, width = pixels.shape[:2]
    share = np.linspace(0, 1, 9)
    start = (x - facing * height * 0.95, y + height * 0.16)
    end = (x + facing * height * 0.55, y - height * 0.03)
    way = np.stack([start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share**0.7], 1)
    with brush(pixels, 0, 0, width, height) as b:
        b.line(way, height * 0.045, (74, 52, 38))
        b.line(way - (0, height * 0.008), height * 0.022, (112, 82, 58))
        for _ in range(9):
            point = way[rng.integers(1, 9)] + rng.uniform(-1, 1, 2) * height * 0.06
            leaf = mixed((70, 128, 52), (150, 170, 70), rng.random())
            b.ellipse(
                float(point[0]),
                float(point[1]),
                height * rng.uniform(0.02, 0.04),
                height * rng.uniform(0.012, 0.02),
                leaf,
            )


def _bird(b, x: float, y: float, s: float, way: int, colour, beak: float, turned: int) -> None:
    """Draw a bird with its centre at (x, y).

    Args:
        b: the brush.
        x: pixels.
        y: pixels.
        s: size, pixels.
        way: where it faces, −1 left or 1 right.
        colour: of the body.
        beak: 0 closed to 1 open.
        turned: 1 if it looks further ahead, else 0.
    """
    dark, light = mixed(colour, (20, 20, 30), 0.4), mixed(colour, (255, 244, 220), 0.6)
    b.polygon(
        [
            (x - way * 0.7 * s, y + 0.1 * s),
            (x - way * 1.9 * s, y + 0.75 * s),
            (x - way * 1.75 * s, y + 0.98 * s),
            (x - way * 0.4 * s, y + 0.6 * s),
        ],
        dark,
    )
    for leg in (-0.15, 0.15):
        b.line([(x + leg * s, y + 0.7 * s), (x + leg * s, y + 1.0 * s)], 0.07 * s, (120, 84, 50))
    b.ellipse(x, y + 0.15 * s, 0.85 * s, 0.68 * s, colour)
    b.ellipse(x + way * 0.25 * s, y + 0.35 * s, 0.55 * s, 0.45 * s, light)
    b.ellipse(x - way * 0.25 * s, y + 0.12 * s, 0.55 * s, 0.34 * s, dark)
    head_x, head_y = x + way * 0.5 * s, y - (0.62 + 0.05 * beak) * s
    b.ellipse(head_x, head_y, 0.46 * s, 0.44 * s, colour)
    gape = 0.26 * s * beak
    tip = head_x + way * 0.95 * s
    b.polygon(
        [
            (head_x + way * 0.36 * s, head_y - 0.14 * s),
            (tip, head_y - gape),
            (head_x + way * 0.36 * s, head_y + 0.05 * s),
        ],
        (240, 176, 60),
    )
    b.polygon(
        [
            (head_x + way * 0.36 * s, head_y + 0.02 * s),
            (tip - way * 0.08 * s, head_y + 0.08 * s + gape),
            (head_x + way * 0.34 * s, head_y + 0.18 * s),
        ],
        (216, 144, 44),
    )
    eye = head_x + way * (0.16 + 0.05 * turned) * s
    b.ellipse(eye, head_y - 0.08 * s, 0.1 * s, 0.1 * s, (250, 250, 246))
    b.ellipse(eye + way * 0.02 * s, head_y - 0.08 * s, 0.065 * s, 0.065 * s, (14, 14, 18))


def clock(rng: np.random.Generator, form: Format, frames: int) -> Shot:
    """Make a shot of a pendulum clock on a wall, which ticks each time the pendulum turns."""
    height, width = form.height, form.width
    span = round(0.3 * width)
    behind = room(rng, height, width + span, 0.9)
    offsets, panned = camera(rng, frames, span, 0.4)
    x, top, face = rng.uniform(0.3, 0.7) * width + span / 2, height * 0.26, height * 0.19
    wood = ((112, 66, 40), (84, 52, 44), (150, 104, 62))[rng.integers(3)]
    half = round(rng.uniform(0.33, 0.5) * form.fps)  # number of frames of one swing
    first = int(rng.integers(1, half))
    swing = np.cos(np.pi * (np.arange(frames) - first) / half)
    minute = rng.uniform(0, 2 * np.pi)
    hour = rng.uniform(0, 2 * np.pi)
    glow(behind.pixels, x + 4, top + height * 0.25, face * 1.1, height * 0.3, (0, 0, 0), 0.3)
    with brush(behind.pixels, x - face * 1.5, 0, x + face * 1.5, height) as b:
        b.rounded(x - face * 0.85, top, x + face * 0.85, top + height * 0.62, 3, mixed(wood, (0, 0, 0), 0.2))
        b.rounded(x - face * 0.68, top + face, x + face * 0.68, top + height * 0.6, 2, mixed(wood, (0, 0, 0), 0.65))
        b.ellipse(x, top, face * 1.18, face * 1.18, wood)
        b.ellipse(x, top, face, face, (244, 238, 222))
        for n in range(12):
            a = n * np.pi / 6
            ends = [(x + r * face * np.sin(a), top - r * face * np.cos(a)) for r in (0.8, 0.92)]
            b.line(ends, 1.4 if n % 3 == 0 else 0.8, (50, 44, 40))
    pictures = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        frame = view(behind, float(offsets[i]), width)
        at = x - offsets[i]
        bob = (at + face * 0.42 * swing[i], top + height * 0.5 - 0.03 * height * swing[i] ** 2)
        with brush(frame, at - face * 1.2, top - face * 1.2, at + face * 1.2, height) as b:
            b.line([(at, top + face), bob], 1.4, (216, 190, 120))
            b.ellipse(*bob, face * 0.24, face * 0.24, (160, 120, 50))
            b.ellipse(bob[0] - 1, bob[1] - 1, face * 0.18, face * 0.18, (232, 196, 104))
            for angle, long, thick in ((hour, 0.5, 2.2), (minute + i * 0.002, 0.75, 1.4)):
                b.line(
                    [(at, top), (at + long * face * np.sin(angle), top - long * face * np.cos(angle))],
                    thick,
                    (30, 26, 26),
                )
            b.ellipse(at, top, 2, 2, (30, 26, 26))
        pictures[i] = frame
    ticks = list(range(first, frames, half))
    track = np.zeros(form.samples(frames), np.float32)
    for n, at_frame in enumerate(ticks):
        sounds.add(track, sounds.tick(rng, n % 2 == 0, form.sample_rate), form.sample_of(at_frame))
    place = np.stack([(x - offsets) / width, np.full(frames, top / height)], axis=1)
    dry = sounds.pan(track, place[:, 0], form.samples_per_frame)
    # A microphone near a clock records ticks about 35 dB above a quiet room, and taggers are trained on such sound.
    audio = mixdown(rng, form, dry, room_s=0.2, wet=0.15, peak=(0.22, 0.32), floor_db=-45)
    return Shot(
        "clock", "environment", pictures, audio,
        f"A wooden clock with a swinging pendulum hangs {side(float(place[:, 0].mean()))} on the wall of {behind.what}."
        + f" {panned}" * bool(panned),
        "The clock ticks.",
        events=[Event(t / form.fps, "clock ticks", float(place[t, 0])) for t in ticks],
        places={"clock": place},
    )  # fmt: skip
