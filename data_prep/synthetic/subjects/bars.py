"""A xylophone: a mallet strikes bars, which ring at their pitch. Longer bars are lower, and are on the left."""

import numpy as np

from data_prep.synthetic import sounds
from data_prep.synthetic.backgrounds import camera, room, studio, view
from data_prep.synthetic.canvas import brush, glow, mixed
from data_prep.synthetic.shot import Event, Format, Shot, mixdown

# Semitones of the bars above the lowest one.
_SCALES = ((0, 2, 4, 7, 9, 12, 14, 16), (0, 2, 4, 5, 7, 9, 11, 12), (0, 3, 5, 7, 10, 12, 15, 17))
_NAMES = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
_RAINBOW = (
    (206, 54, 50),
    (232, 120, 40),
    (240, 196, 52),
    (92, 170, 70),
    (40, 160, 168),
    (52, 104, 206),
    (112, 72, 180),
    (206, 88, 150),
)
_LOOKS = {"wooden": ((150, 92, 52), (196, 142, 86)), "metal": ((176, 184, 196), (214, 218, 226))}
_STILL = 0.6  # seconds after which a struck bar no longer moves visibly
_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}


def bars(rng: np.random.Generator, form: Format, frames: int) -> Shot:
    """Make a shot of four to eight wooden or metal bars and a mallet, whose strokes fall exactly on frames."""
    height, width = form.height, form.width
    material = str(rng.choice(["wooden", "metal"]))
    count = int(rng.integers(4, 9))
    notes = np.array(_SCALES[rng.integers(len(_SCALES))][:count])
    base = int(rng.integers(60, 73)) + (12 if material == "metal" else 0)
    span = round(0.14 * width)
    behind = (room, studio)[rng.integers(2)](rng, height, width + span)
    offsets, panned = camera(rng, frames, span, 0.3)

    step = min(width * 0.86 / count, height * 0.22)
    centres = (width + span) / 2 + (np.arange(count) - (count - 1) / 2) * step
    long = height * np.linspace(0.5, 0.3, count)
    middle = height * 0.6
    coloured = rng.random() < 0.6
    low, high = _LOOKS[material]
    paints = [_RAINBOW[k] if coloured else mixed(low, high, k / max(count - 1, 1)) for k in range(count)]
    pixels = behind.pixels
    with brush(pixels, 0, 0, width + span, height) as b:
        _table(rng, b, width + span, height)
        for share in (-0.28, 0.28):  # the two rails that carry the bars
            ends = [(centres[k] + way * step * 0.6, middle + share * long[k]) for k, way in ((0, -1), (-1, 1))]
            b.line([(x, y + height * 0.03) for x, y in ends], height * 0.055, (0, 0, 0, 70))
            b.line(ends, height * 0.05, (70, 50, 40))
        for k in range(count):
            _bar(b, centres[k], middle, step * 0.4, long[k] / 2, paints[k], _STILL)

    hits = _strokes(rng, frames, form.fps, count)
    pictures = np.empty((frames, height, width, 3), np.uint8)

    def shown_x(bar: int, i: int) -> float:
        return float(centres[bar] - offsets[i])

    head = np.array((60, 56, 66) if material == "wooden" else (150, 40, 44))
    for i in range(frames):
        frame = view(behind, float(offsets[i]), width)
        for k in range(count):
            age = min((i - hit for hit, bar in hits if bar == k and hit <= i), default=999) / form.fps
            if age < _STILL:
                x, half = shown_x(k, i), long[k] / 2
                with brush(frame, x - step / 2, middle - half - 4, x + step / 2, middle + half + 4) as b:
                    _bar(b, x, middle, step * 0.4, half, paints[k], age)
        for hit, bar in hits:
            age = (i - hit) / form.fps
            if 0 <= age < 0.5:
                glow(
                    frame,
                    shown_x(bar, i),
                    middle,
                    step * 0.55,
                    long[bar] * 0.34,
                    (255, 252, 230),
                    0.55 * np.exp(-age / 0.12),
                )
        x, lift = _mallet(hits, i, frames, [shown_x(k, i) for k in range(count)])
        glow(frame, x + lift * height * 0.1, middle + 2, height * 0.05, height * 0.035, (0, 0, 0), 0.5 / (1 + 2 * lift))
        y, r = middle - lift * height * 0.3, height * 0.046
        with brush(frame, x - 2 * r, y - 2 * r, x + height * 0.3, y + height * 0.66) as b:
            b.line([(x, y), (x + height * 0.24, y + height * 0.62)], height * 0.022, (206, 172, 124))
            b.ellipse(x, y, r, r, tuple(head))
            b.ellipse(x - r * 0.3, y - r * 0.35, r * 0.35, r * 0.3, mixed(head, (255, 255, 255), 0.45))
        pictures[i] = frame

    samples = form.samples(frames)
    dry = np.zeros((2, samples), np.float32)
    for hit, bar in hits:
        track = np.zeros(samples, np.float32)
        pitch = sounds.midi_hz(base + notes[bar])
        ring = sounds.struck_bar(rng, material, pitch, rng.uniform(0.65, 1.0), form.sample_rate)
        sounds.add(track, ring, form.sample_of(hit))
        dry += sounds.pan(track, (centres[bar] - offsets) / width, form.samples_per_frame)
    audio = mixdown(rng, form, dry, room_s=(0.3, 0.6), wet=(0.12, 0.25), peak=(0.5, 0.85), floor_db=-62)

    dress = "coloured" if coloured else "brown" if material == "wooden" else "grey"
    strokes = f"{_COUNTS.get(len(hits), len(hits))} time{'s' * (len(hits) != 1)}"
    kind = "xylophone" if material == "wooden" else "metallophone"
    seen = f"A mallet strikes a {kind} with {_COUNTS[count]} {dress} bars {strokes}, in front of {behind.what}."
    order = ", ".join(_NAMES[(base + int(notes[bar])) % 12] for _, bar in hits)
    places = {
        "mallet": np.array(
            [
                (x / width, (middle - lift * height * 0.3) / height)
                for i in range(frames)
                for x, lift in [_mallet(hits, i, frames, [shown_x(k, i) for k in range(count)])]
            ]
        )
    }
    return Shot(
        "bars", "music", pictures, audio, seen + f" {panned}" * bool(panned),
        f"The {material} bars ring: {order}." if hits else "",
        events=[
            Event(hit / form.fps, f"bar {bar + 1} of {count} rings {_NAMES[(base + int(notes[bar])) % 12]}",
                  float(shown_x(bar, hit) / width))
            for hit, bar in hits
        ],
        places=places,
    )  # fmt: skip


def _table(rng, b, width: int, height: int) -> None:
    """Draw a table seen from slightly above, with boards that run away from the viewer."""
    wood = ((126, 92, 66), (104, 74, 58), (150, 116, 82), (92, 84, 80))[rng.integers(4)]
    edge = height * 0.4
    b.polygon([(0, edge), (width, edge), (width, height), (0, height)], wood)
    for k in range(-14, 15):
        x = width / 2 + k * height * 0.15
        b.line([(x, edge), (x + k * height * 0.06, height)], 0.8, mixed(wood, (0, 0, 0), 0.22))
    b.polygon([(0, edge), (width, edge), (width, edge + 1.6), (0, edge + 1.6)], mixed(wood, (255, 240, 220), 0.35))


def _strokes(rng, frames: int, fps: float, count: int) -> list[tuple[int, int]]:
    """Choose the strokes at random: on a regular beat, some left out, moving up and down among the `count` bars.

    Returns:
        (frame, bar) of each stroke.
    """
    beat = round(rng.uniform(0.24, 0.42) * fps)
    bar, hits = int(rng.integers(count)), []
    for frame in range(int(rng.integers(3, max(4, beat))), frames - 3, beat):
        if hits and rng.random() < 0.12:
            continue
        hits.append((frame, bar))
        step = int(rng.choice([-2, -1, -1, 1, 1, 2]))
        bar = bar + step if 0 <= bar + step < count else bar - step
        bar = int(np.clip(bar, 0, count - 1))
    return hits


def _bar(b, x: float, y: float, half: float, long: float, colour, age: float) -> None:
    """Draw a bar with its centre at (x, y), 2 · half × 2 · long pixels, `age` seconds after it was struck."""
    swing = 0.9 * np.exp(-age / 0.15) * np.cos(2 * np.pi * 9 * age) if age < _STILL else 0.0
    b.rounded(x - half + 1.5, y - long + 2, x + half + 1.5, y + long + 2, half * 0.35, (0, 0, 0, 90))
    y = y + swing
    b.rounded(x - half, y - long, x + half, y + long, half * 0.35, mixed(colour, (0, 0, 0), 0.28))
    b.rounded(x - half, y - long, x + half * 0.75, y + long - 1.2, half * 0.35, colour)
    b.rounded(
        x - half * 0.72, y - long + 2, x - half * 0.3, y + long - 4, half * 0.2, mixed(colour, (255, 255, 255), 0.35)
    )
    for end in (-0.56, 0.56):
        b.ellipse(x, y + end * long, half * 0.18, half * 0.18, (40, 34, 32))


def _mallet(hits: list[tuple[int, int]], i: int, frames: int, places: list[float]) -> tuple[float, float]:
    """Compute where the mallet is on frame i.

    Args:
        hits: (frame, bar) of each stroke.
        i: the frame.
        frames: unused.
        places: x of each bar, pixels.

    Returns:
        Its x in pixels, and its height from 0 (on the bar, only on the frame of a stroke) to 1.
    """
    before = [h for h in hits if h[0] <= i]
    after = [h for h in hits if h[0] > i]
    if not hits:
        return places[0], 1.0
    if not before:
        wait = after[0][0] - i
        return places[after[0][1]], min(1.0, (wait / 6) ** 0.7)
    if not after:
        return places[before[-1][1]], min(0.8, ((i - before[-1][0]) / 8) ** 0.6)
    (start, a), (end, z) = before[-1], after[0]
    s = (i - start) / (end - start)
    smooth = s * s * (3 - 2 * s)
    return places[a] + smooth * (places[z] - places[a]), (4 * s * (1 - s)) ** 0.6 * min(1.0, (end - start) / 8)
