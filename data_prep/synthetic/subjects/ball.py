"""A ball that bounces and knocks.

Each flight between two impacts lasts an integer number n of frames and is a parabola of height g (n / fps)² / 8. So the
ball touches the ground exactly on a frame, and the knock begins on the sample of that frame.
"""

import numpy as np

from data_prep.synthetic import sounds
from data_prep.synthetic.backgrounds import camera, landscape, room, studio, view
from data_prep.synthetic.canvas import COLOURS, glow, sphere
from data_prep.synthetic.shot import Event, Format, Shot, mixdown

_HEARD = {"wooden": "a hard knock", "rubber": "a dull thud", "glass": "a bright clink"}
_FLASH = 5  # number of frames for which an impact is shown on the ground


def ball(rng: np.random.Generator, form: Format, frames: int) -> Shot:
    """Make a shot of a wooden, rubber or glass ball in a room, a landscape or a studio."""
    height, width = form.height, form.width
    material = str(rng.choice(list(sounds.IMPACTS)))
    span = round(0.35 * width)
    behind = (room, room, landscape, studio)[rng.integers(4)](rng, height, width + span)
    offsets, panned = camera(rng, frames, span)
    radius = height * rng.uniform(0.085, 0.135)
    hits, lift, squash = _bounces(rng, frames, form.fps)
    x = _walk(rng, frames, hits, form.fps, radius / width)
    floor = behind.floor_y - radius
    drop = (floor - radius - 0.06 * height) * rng.uniform(0.75, 1.0)
    y = floor - drop * lift

    name, colour = list(COLOURS.items())[rng.integers(len(COLOURS))]
    second = list(COLOURS.values())[rng.integers(len(COLOURS))] if name == "white" else (240, 238, 230)
    pattern = "plain" if material == "glass" else str(rng.choice(["plain", "stripe", "quarters", "seams"]))
    if pattern == "seams":
        second = (60, 36, 26)
    roll = np.cumsum(np.gradient(x * width + offsets)) / radius
    pictures = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        frame = view(behind, float(offsets[i]), width)
        at, up = x[i] * width, (floor - y[i]) / radius
        near = 1 / (1 + 0.35 * up)
        glow(
            frame,
            at + 0.25 * up * radius * 0.3,
            behind.floor_y,
            radius * (0.75 + 0.1 * up),
            radius * 0.22,
            (24, 20, 24),
            0.62 * near,
        )
        for hit in hits:
            if 0 <= i - hit < _FLASH:
                age = (i - hit) / _FLASH
                spread = radius * (0.9 + 1.6 * age)
                for way in (-1, 1):
                    glow(
                        frame,
                        x[hit] * width + offsets[hit] - offsets[i] + way * spread,
                        behind.floor_y,
                        radius * 0.3,
                        radius * 0.12,
                        (255, 250, 236),
                        0.75 * (1 - age),
                    )
        rx, ry = radius * (1 + 0.5 * squash[i]), radius * (1 - squash[i])
        clear = 0.5 if material == "glass" else 0.0
        sphere(frame, at, y[i] + radius - ry, rx, ry, colour, second, pattern, float(roll[i]), clear)
        pictures[i] = frame

    size = float(np.interp(radius / height, (0.085, 0.135), (0.85, 1.2)))
    track = np.zeros(form.samples(frames), np.float32)
    for hit in hits:
        before = lift[max(0, hit - 2)]  # the height just before the impact gives its speed, and that the loudness
        strength = float(np.clip(0.35 + 1.6 * np.sqrt(before), 0.35, 1.0))
        sounds.add(track, sounds.impact(rng, material, size, strength, form.sample_rate), form.sample_of(hit))
    dry = sounds.pan(track, x, form.samples_per_frame)
    audio = mixdown(rng, form, dry, room_s=(0.25, 0.45), wet=(0.15, 0.3), peak=(0.5, 0.9), floor_db=-60)

    kind = {"plain": "", "stripe": " with a stripe", "quarters": " with quarters", "seams": " with dark seams"}[pattern]
    way = x[-1] - x[0]
    path = " from left to right" if way > 0.2 else " from right to left" if way < -0.2 else ""
    looks = f"A {name} {material} ball{kind}" if name != "orange" else f"An orange {material} ball{kind}"
    count = f"{len(hits)} times" if len(hits) != 1 else "once"
    seen = f"{looks} bounces {count}{path} in front of {behind.what}." + f" {panned}" * bool(panned)
    return Shot(
        "ball",
        "environment",
        pictures,
        audio,
        seen,
        f"Each bounce makes {_HEARD[material]}.",
        events=[Event(hit / form.fps, f"{material} ball hits the ground", float(x[hit])) for hit in hits],
        places={"ball": np.stack([x, y / height], axis=1)},
    )


def _bounces(rng, frames: int, fps: float) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Choose at random when and how high the ball bounces.

    Returns:
        The frames of the impacts; the height of the ball on each frame, (frames,), relative to the top of the longest
        flight; and how much the ball is flattened on each frame, (frames,), as a share of its radius.
    """
    longest = rng.uniform(0.5, 0.75) * fps
    flight, loss = longest, rng.uniform(0.9, 0.97)
    hit = -int(rng.integers(0, int(longest * 0.6)))  # the clip starts somewhere in the first flight
    lift, squash, hits = np.zeros(frames), np.zeros(frames), []
    while hit < frames:
        length = max(round(flight), 4)
        inside = np.arange(max(hit, 0), min(hit + length, frames))
        s = (inside - hit) / length
        lift[inside] = 4 * s * (1 - s) * (length / longest) ** 2
        hit += length
        flight = flight * loss if flight * loss > 0.3 * fps else longest * 0.85
        if 0 < hit < frames:
            hits.append(hit)
    lift = np.minimum(lift, 1.0)
    for at in hits:
        squash[at] = 0.22
        if at + 1 < frames:
            squash[at + 1] = 0.06
    return hits, lift, squash


def _walk(rng, frames: int, hits: list[int], fps: float, margin: float) -> np.ndarray:
    """Choose at random how the ball moves sideways: at constant speed between impacts. It turns at the picture's sides.

    Returns:
        (frames,) its x as a share of the picture's width.
    """
    low, high = margin + 0.03, 0.97 - margin
    x = np.empty(frames)
    at, speed = rng.uniform(low, high), rng.choice([-1, 1]) * rng.uniform(0.08, 0.32) / fps
    previous = 0
    for hit in [*hits, frames]:
        length = hit - previous
        if not low <= at + speed * length <= high:
            speed = -speed
        speed = float(np.clip(speed, (low - at) / max(length, 1), (high - at) / max(length, 1)))
        x[previous:hit] = at + speed * np.arange(length)
        at, previous = at + speed * length, hit
    return x
