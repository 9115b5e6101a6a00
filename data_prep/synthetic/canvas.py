"""Draw on uint8 RGB frames (H, W, 3) in pixel coordinates, with every edge anti-aliased.

Pillow draws shapes on an enlarged copy of a part of the frame, which is then reduced: each pixel becomes the mean of
SAMPLES² samples. For rectangles along the axes and shaded spheres, the share of each pixel that the shape covers is
computed instead.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageDraw

SAMPLES = 4  # of a pixel, in each direction

Colour = Sequence[int]  # red, green, blue and optionally alpha, 0 to 255

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (206, 48, 44),
    "orange": (236, 132, 36),
    "yellow": (240, 200, 52),
    "green": (58, 158, 76),
    "turquoise": (38, 168, 170),
    "blue": (46, 100, 204),
    "purple": (128, 70, 180),
    "pink": (230, 110, 160),
    "white": (238, 236, 228),
}


class Brush:
    """The tool that draws shapes on the part of a frame that `brush` opened. Coordinates are pixels of the frame."""

    def __init__(self, image: Image.Image, left: int, top: int) -> None:
        self._draw = ImageDraw.Draw(image, "RGBA")
        self._origin = np.array([left, top], np.float64)

    def _points(self, points) -> list[tuple[float, float]]:
        """Convert points (x, y) of the frame to points of the enlarged copy."""
        return [tuple(p) for p in (np.asarray(points, np.float64).reshape(-1, 2) - self._origin) * SAMPLES]

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fill an ellipse with its centre at (x, y) and the radii rx and ry."""
        if rx > 0 and ry > 0:
            self._draw.ellipse(self._points([(x - rx, y - ry), (x + rx, y + ry)]), fill=tuple(colour))

    def chord(self, x: float, y: float, rx: float, ry: float, start: float, end: float, colour: Colour) -> None:
        """Fill the part of an ellipse between two angles (degrees, 0 = right, clockwise) and the chord between them."""
        self._draw.chord(self._points([(x - rx, y - ry), (x + rx, y + ry)]), start, end, fill=tuple(colour))

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, colour: Colour) -> None:
        """Draw the outline of an ellipse, `width` pixels thick."""
        box = self._points([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.ellipse(box, outline=tuple(colour), width=max(1, round(width * SAMPLES)))

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float, colour: Colour
    ) -> None:
        """Draw the outline of an ellipse between two angles (degrees, 0 = right, clockwise), `width` pixels thick."""
        box = self._points([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.arc(box, start, end, fill=tuple(colour), width=max(1, round(width * SAMPLES)))

    def polygon(self, points, colour: Colour) -> None:
        """Fill the polygon with corners `points`, (x, y) each."""
        self._draw.polygon(self._points(points), fill=tuple(colour))

    def line(self, points, width: float, colour: Colour) -> None:
        """Draw a line through `points`, (x, y) each, `width` pixels thick, with round ends."""
        through = self._points(points)
        self._draw.line(through, fill=tuple(colour), width=max(1, round(width * SAMPLES)), joint="curve")
        r = width * SAMPLES / 2
        for x, y in (through[0], through[-1]):
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(colour))

    def rounded(self, x0: float, y0: float, x1: float, y1: float, radius: float, colour: Colour) -> None:
        """Fill a rectangle with round corners of radius `radius`."""
        box = self._points([(x0, y0), (x1, y1)])
        self._draw.rounded_rectangle(box, radius * SAMPLES, fill=tuple(colour))


@contextmanager
def brush(frame: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> Iterator[Brush]:
    """Open the part of a frame inside (x0, y0)–(x1, y1) and yield a `Brush` for it. Pixels outside do not change."""
    height, width = frame.shape[:2]
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    right, bottom = min(width, int(np.ceil(x1))), min(height, int(np.ceil(y1)))
    if left >= right or top >= bottom:  # completely outside the picture
        yield Brush(Image.new("RGB", (1, 1)), left, top)
        return
    part = Image.fromarray(np.ascontiguousarray(frame[top:bottom, left:right]))
    large = part.resize((part.width * SAMPLES, part.height * SAMPLES), Image.Resampling.NEAREST)
    yield Brush(large, left, top)
    frame[top:bottom, left:right] = np.asarray(large.reduce(SAMPLES))


def rectangle(frame: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour, alpha: float = 1.0) -> None:
    """Fill a rectangle along the axes. Its opacity is `alpha`, and less where it covers only a part of a pixel."""
    height, width = frame.shape[:2]
    left, right = max(0, int(np.floor(x0))), min(width, int(np.ceil(x1)))
    top, bottom = max(0, int(np.floor(y0))), min(height, int(np.ceil(y1)))
    if left >= right or top >= bottom:
        return
    across = np.clip(np.minimum(np.arange(left, right) + 1, x1) - np.maximum(np.arange(left, right), x0), 0, 1)
    down = np.clip(np.minimum(np.arange(top, bottom) + 1, y1) - np.maximum(np.arange(top, bottom), y0), 0, 1)
    _blend(frame[top:bottom, left:right], np.asarray(colour, np.float32), alpha * np.outer(down, across))


def glow(frame: np.ndarray, x: float, y: float, rx: float, ry: float, colour, alpha: float) -> None:
    """Draw a soft spot: opacity `alpha` at its centre, falling as a Gaussian with standard deviations `rx` and `ry`."""
    height, width = frame.shape[:2]
    left, right = max(0, int(x - 3 * rx)), min(width, int(x + 3 * rx) + 2)
    top, bottom = max(0, int(y - 3 * ry)), min(height, int(y + 3 * ry) + 2)
    if left >= right or top >= bottom:
        return
    across = np.exp(-0.5 * ((np.arange(left, right) + 0.5 - x) / rx) ** 2)
    down = np.exp(-0.5 * ((np.arange(top, bottom) + 0.5 - y) / ry) ** 2)
    _blend(frame[top:bottom, left:right], np.asarray(colour, np.float32), alpha * np.outer(down, across))


def sphere(
    frame: np.ndarray, x: float, y: float, rx: float, ry: float, colour, second, pattern: str, turn: float, clear: float
) -> None:
    """Draw a lit ball.

    Args:
        frame: to draw on.
        x: of the centre, pixels.
        y: of the centre, pixels.
        rx: horizontal radius, pixels.
        ry: vertical radius, pixels; smaller than `rx` for a squashed ball.
        colour: of the ball.
        second: colour of the pattern.
        pattern: "plain", "stripe", "quarters" or "seams".
        turn: angle by which it has rolled, radians.
        clear: 0 for an opaque ball, up to 1 for glass.
    """
    height, width = frame.shape[:2]
    left, right = max(0, int(x - rx - 1)), min(width, int(x + rx) + 2)
    top, bottom = max(0, int(y - ry - 1)), min(height, int(y + ry) + 2)
    if left >= right or top >= bottom:
        return
    u = ((np.arange(left, right, dtype=np.float32) + 0.5 - x) / rx)[None, :]
    v = ((np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / ry)[:, None]
    far = np.sqrt(u * u + v * v)
    toward = np.sqrt(np.maximum(0, 1 - far * far))
    cover = np.clip((1 - far) * min(rx, ry) + 0.5, 0, 1)
    a, b = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    edge = 1.2 / min(rx, ry)
    if pattern == "stripe":
        marked = np.clip((0.30 - np.abs(b)) / edge + 0.5, 0, 1)
    elif pattern == "quarters":
        marked = np.clip(a * b * 2 / edge + 0.5, 0, 1)
    elif pattern == "seams":
        curve = np.minimum(np.abs(a), np.minimum(np.abs(b), np.abs(np.abs(a) - 0.35 - 0.45 * b * b)))
        marked = np.clip((0.05 - curve) / edge + 0.5, 0, 1)
    else:
        marked = np.zeros_like(far)
    paint = np.asarray(colour, np.float32) + marked[..., None] * (np.asarray(second, np.float32) - colour)
    lit = np.maximum(0, -0.42 * u - 0.62 * v + 0.66 * toward)
    shine = np.maximum(0, -0.25 * u - 0.37 * v + 0.895 * toward) ** (60 if clear else 28)
    shaded = paint * (0.36 + 0.72 * lit)[..., None] + (200 if clear else 120) * shine[..., None]
    if clear:
        cover = cover * np.clip(1 - clear * toward**1.5 + shine, 0, 1)
    _blend(frame[top:bottom, left:right], np.minimum(shaded, 255), cover)


def _blend(part: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    """Paint `colour`, (3,) or (H, W, 3), over (H, W, 3) pixels in place, with opacity `alpha` (H, W), 0 to 1."""
    mixed = part + alpha[..., None].astype(np.float32) * (colour - part)
    part[...] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def mixed(a, b, share: float) -> tuple[int, int, int]:
    """Return a mixture of two RGB colours: `share` 0 gives a, 1 gives b."""
    red, green, blue = (round(p + share * (q - p)) for p, q in zip(a[:3], b[:3], strict=True))
    return red, green, blue


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float, octaves: int = 1) -> np.ndarray:
    """Make smooth noise: a random grid with a value every `cell` pixels, interpolated, plus `octaves` − 1 finer grids.

    Each further grid is twice as fine and has half the weight.

    Returns:
        (H, W) float32, about in [0, 1].
    """
    total, level, weight = np.zeros((height, width), np.float32), 1.0, 0.0
    for _ in range(octaves):
        grid = rng.random((max(2, round(height / cell) + 2), max(2, round(width / cell) + 2)), dtype=np.float32)
        large = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += level * np.asarray(large)
        weight += level
        level, cell = level / 2, max(1.0, cell / 2)
    return total / weight
