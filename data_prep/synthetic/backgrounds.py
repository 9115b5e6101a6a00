"""Backgrounds: rooms, landscapes and plain studio walls, drawn once per shot, wider than the picture to allow a pan."""

from dataclasses import dataclass

import numpy as np

from data_prep.synthetic.canvas import brush, glow, mixed, smooth_noise


@dataclass(frozen=True)
class Background:
    """A picture to draw behind a subject, wider than a frame, so that the camera can pan over it.

    Attributes:
        pixels: (H, at least the width of a frame, 3) uint8.
        floor_y: where things stand on the floor, pixels from the top.
        what: what it shows, in words.
    """

    pixels: np.ndarray
    floor_y: float
    what: str


_WALLS = ((214, 200, 178), (176, 196, 206), (196, 178, 190), (190, 202, 172), (226, 214, 190), (150, 168, 184))
_WOODS = ((150, 102, 62), (178, 130, 84), (110, 74, 50), (196, 152, 104))


def room(rng: np.random.Generator, height: int, width: int, floor_share: float = 0.72) -> Background:
    """Draw a wall with things on it, a skirting board, and a floor in perspective below `floor_share` of the height."""
    pixels = np.empty((height, width, 3), np.float32)
    wall = np.array(_WALLS[rng.integers(len(_WALLS))], np.float32)
    edge = round(height * floor_share)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 1.08 - 0.35 * np.hypot(x / width - rng.uniform(0.1, 0.9), y / height - 0.1)
    paper = rng.integers(3)
    if paper == 1:
        light += 0.035 * np.sign(np.sin(2 * np.pi * x / (height * 0.16)))
    elif paper == 2:
        light += 0.03 * (np.sin(2 * np.pi * x / (height * 0.12)) * np.sin(2 * np.pi * y / (height * 0.12)) > 0.5)
    light += 0.04 * (smooth_noise(rng, height, width, height / 6, 3) - 0.5)
    pixels[:] = wall * light[..., None]
    floor, name = _floor(rng, y[edge:], x[edge:], edge, height, width)
    pixels[edge:] = floor
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    with brush(image, 0, 0, width, edge + height * 0.03) as b:
        b.polygon(
            [(0, edge - height * 0.035), (width, edge - height * 0.035), (width, edge), (0, edge)], (232, 228, 220)
        )
        b.polygon([(0, edge - 1), (width, edge - 1), (width, edge), (0, edge)], (120, 112, 104))
        place = rng.uniform(0.05, 0.2) * width
        while place < width * 0.85:
            place = _on_the_wall(rng, b, place, edge, height) + rng.uniform(0.15, 0.5) * height
    return Background(_vignette(image), height * (floor_share + 0.14), f"a room with {name}")


def _floor(rng, y, x, edge: int, height: int, width: int) -> tuple[np.ndarray, str]:
    """Draw a wooden, tiled or carpeted floor in perspective.

    Args:
        rng: draws the kind and the colours.
        y: (h, W) the row of each pixel of the floor.
        x: (h, W) the column of each pixel.
        edge: row where the wall meets the floor.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        (h, W, 3) float32, and the floor in words.
    """
    horizon = edge - 0.55 * height
    near = (y - horizon) / (height - horizon)
    across = (x - width / 2) / near / height
    depth = 1 / near
    kind = rng.integers(3)
    grain = smooth_noise(rng, y.shape[0], y.shape[1], 4, 2)
    if kind == 0:
        plank = np.floor(across / 0.14)
        tone = 0.88 + 0.2 * ((plank * 0.6180339) % 1) + 0.10 * (grain - 0.5)
        tone -= 0.25 * ((across / 0.14) % 1 < 0.045)
        return np.array(_WOODS[rng.integers(len(_WOODS))], np.float32) * (tone * (0.8 + 0.25 * near))[..., None], (
            "a wooden floor"
        )
    if kind == 1:
        odd = (np.floor(across / 0.22) + np.floor(depth / 0.13)) % 2
        light, dark = np.array((214, 208, 196), np.float32), np.array(_WALLS[rng.integers(len(_WALLS))]) * 0.5
        return (dark + odd[..., None] * (light - dark)) * (0.8 + 0.25 * near)[..., None], "a tiled floor"
    colour = np.array([(132, 66, 60), (72, 88, 120), (86, 104, 76), (140, 128, 110)][rng.integers(4)], np.float32)
    return colour * (0.85 + 0.25 * near + 0.16 * (rng.random(y.shape) - 0.5))[..., None], "a carpet"


def _on_the_wall(rng, b, x: float, edge: int, height: int) -> float:
    """Draw a window, a picture or a shelf with its left side at x. Return the x of its right side."""
    kind = rng.integers(3)
    top = height * rng.uniform(0.08, 0.16)
    if kind == 0:
        w, h = height * 0.34, height * 0.38
        b.rounded(x - 2, top - 2, x + w + 2, top + h + 2, 1, (240, 236, 228))
        sky = mixed((120, 176, 226), (196, 214, 226), rng.random())
        b.polygon([(x, top), (x + w, top), (x + w, top + h), (x, top + h)], sky)
        b.chord(x + w * 0.4, top + h, w * 0.4, h * 0.3, 180, 360, (92, 140, 84))
        b.line([(x + w / 2, top), (x + w / 2, top + h)], 1.6, (240, 236, 228))
        b.line([(x, top + h / 2), (x + w, top + h / 2)], 1.6, (240, 236, 228))
        b.polygon(
            [(x - 4, top + h + 1), (x + w + 4, top + h + 1), (x + w + 4, top + h + 4), (x - 4, top + h + 4)],
            (222, 216, 204),
        )
        return x + w
    if kind == 1:
        w, h = height * rng.uniform(0.2, 0.3), height * rng.uniform(0.2, 0.28)
        b.rounded(x + 2, top + 2, x + w + 2, top + h + 2, 1, (0, 0, 0, 50))
        b.rounded(x, top, x + w, top + h, 1, _WOODS[rng.integers(len(_WOODS))])
        b.polygon(
            [(x + 3, top + 3), (x + w - 3, top + 3), (x + w - 3, top + h - 3), (x + 3, top + h - 3)], (236, 230, 214)
        )
        hue = tuple(int(c) for c in rng.integers(60, 210, 3))
        b.polygon(
            [
                (x + 4, top + h - 4),
                (x + w * 0.4, top + h * 0.4),
                (x + w * 0.6, top + h * 0.6),
                (x + w * 0.75, top + h * 0.45),
                (x + w - 4, top + h - 4),
            ],
            hue,
        )
        b.ellipse(x + w * 0.72, top + h * 0.3, h * 0.09, h * 0.09, (226, 170, 70))
        return x + w
    w, y = height * rng.uniform(0.35, 0.5), top + height * 0.24
    left = x + 3
    while left < x + w - 6:
        thick, tall = height * rng.uniform(0.025, 0.045), height * rng.uniform(0.13, 0.2)
        b.rounded(left, y - tall, left + thick, y, 0.6, tuple(int(c) for c in rng.integers(50, 200, 3)))
        left += thick + 0.6
    b.polygon([(x, y), (x + w, y), (x + w, y + 3), (x, y + 3)], _WOODS[rng.integers(len(_WOODS))])
    b.polygon([(x, y + 3), (x + w, y + 3), (x + w, y + 6), (x, y + 6)], (0, 0, 0, 40))
    return x + w


def landscape(rng: np.random.Generator, height: int, width: int) -> Background:
    """Draw a sky with clouds, hills that are greener the nearer they are, a meadow, and some trees."""
    hour = rng.integers(3)
    zenith, horizon, name = (
        ((70, 130, 206), (190, 218, 236), "under a blue sky"),
        ((92, 78, 138), (246, 178, 122), "at dusk"),
        ((128, 148, 166), (206, 212, 214), "under a grey sky"),
    )[hour]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    sky = np.array(zenith, np.float32) + np.minimum(1, y / 0.6) * (np.array(horizon, np.float32) - zenith)
    sky = np.broadcast_to(sky, (height, width, 3)).copy()
    cloud = np.clip(smooth_noise(rng, height, width, height / 2.5, 4) * 2.6 - 1.25, 0, 1)
    cloud *= np.linspace(1.1, 0.2, height, dtype=np.float32)[:, None]
    sky += np.clip(cloud, 0, 1)[..., None] * (np.array((250, 246, 240), np.float32) - sky) * 0.85
    pixels = np.clip(sky, 0, 255).astype(np.uint8)
    if hour < 2:
        sun = (rng.uniform(0.15, 0.85) * width, height * rng.uniform(0.12, 0.3))
        glow(pixels, sun[0], sun[1], height * 0.1, height * 0.1, (255, 240, 200), 0.6)
        with brush(pixels, sun[0] - 20, sun[1] - 20, sun[0] + 20, sun[1] + 20) as b:
            b.ellipse(sun[0], sun[1], height * 0.055, height * 0.055, (255, 246, 214))
    ground = np.array([(88, 140, 66), (112, 122, 58), (84, 122, 84)][hour], np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None]
    for k, share in enumerate((0.45, 0.56, 0.68)):
        ridge = smooth_noise(rng, 2, width, height * (0.9 - 0.2 * k), 3)[0] * height * 0.24 * (1.2 - 0.3 * k)
        line = height * (share + 0.08) - ridge
        cover = np.clip(rows - line[None, :] + 0.5, 0, 1)[..., None]
        far = np.array(horizon, np.float32)
        colour = far + (0.35 + 0.3 * k) * (ground - far)
        texture = 1 + 0.10 * k * (smooth_noise(rng, height, width, 5, 2)[..., None] - 0.5)
        mixed_in = pixels + cover * (colour * texture - pixels)
        pixels = np.clip(mixed_in, 0, 255).astype(np.uint8)
    with brush(pixels, 0, 0, width, height) as b:
        for _ in range(rng.integers(2, 6)):
            _tree(rng, b, rng.uniform(0, width), height * rng.uniform(0.7, 0.82), height * rng.uniform(0.14, 0.3))
    return Background(_vignette(pixels), height * 0.86, f"hills and trees {name}")


def _tree(rng, b, x: float, foot: float, tall: float) -> None:
    """Draw a conifer or a broad-leaved tree, `tall` pixels high, that stands at (x, foot)."""
    green = mixed((50, 98, 48), (104, 130, 52), rng.random())
    b.ellipse(x + tall * 0.1, foot, tall * 0.35, tall * 0.05, (0, 0, 0, 50))
    b.polygon(
        [
            (x - tall * 0.05, foot),
            (x + tall * 0.05, foot),
            (x + tall * 0.03, foot - tall * 0.5),
            (x - tall * 0.03, foot - tall * 0.5),
        ],
        (92, 66, 46),
    )
    if rng.random() < 0.5:
        for k in range(3):
            half, top = tall * (0.3 - 0.07 * k), foot - tall * (0.5 + 0.2 * k)
            b.polygon(
                [(x - half, top + tall * 0.25), (x + half, top + tall * 0.25), (x, top - tall * 0.1)],
                mixed(green, (30, 60, 40), 0.35 - 0.1 * k),
            )
    else:
        for dx, dy, r in ((0.14, -0.55, 0.2), (-0.14, -0.58, 0.2), (0, -0.75, 0.22)):
            shade = mixed(green, (240, 240, 150), 0.12 if dx <= 0 else 0)
            b.ellipse(x + dx * tall, foot + dy * tall, r * tall, r * tall, shade)


def studio(rng: np.random.Generator, height: int, width: int) -> Background:
    """Draw a plain coloured wall, lit from one side, with a faint texture."""
    name = ("blue", "green", "grey", "violet", "ochre", "rose")[index := int(rng.integers(6))]
    base = np.array(
        ((84, 118, 160), (92, 138, 112), (132, 136, 142), (122, 98, 152), (184, 142, 82), (178, 112, 118))[index],
        np.float32,
    )
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 1.25 - 0.75 * np.hypot(x / width - rng.uniform(0.25, 0.75), y / height - rng.uniform(0.15, 0.5))
    light += 0.08 * (smooth_noise(rng, height, width, height / 5, 3) - 0.5)
    # The wall curves into the floor, and the curve is brighter.
    light += 0.16 / (1 + np.exp(-(y / height - 0.74) / 0.018)) - 0.10 * np.exp(-(((y / height - 0.72) / 0.03) ** 2))
    return Background(np.clip(base * light[..., None], 0, 255).astype(np.uint8), height * 0.86, f"a plain {name} wall")


def camera(rng: np.random.Generator, frames: int, most: float, chance: float = 0.45) -> tuple[np.ndarray, str]:
    """Choose a camera pan.

    Args:
        rng: draws whether the camera pans, and to which side.
        frames: number of frames F.
        most: the largest offset, pixels.
        chance: probability of a pan.

    Returns:
        The offset of each frame from the left edge of the background, (F,) pixels in [0, most], and the pan in words,
        "" if the camera stands still.
    """
    if rng.random() > chance or most < 4:
        return np.full(frames, most / 2), ""
    share = 0.5 - 0.5 * np.cos(np.pi * np.linspace(0.08, 0.92, frames))
    if rng.random() < 0.5:
        return share * most, "The camera pans to the right."
    return (1 - share) * most, "The camera pans to the left."


def view(background: Background, offset: float, width: int) -> np.ndarray:
    """Return the part of a background, (H, width, 3) uint8, that starts `offset` pixels from its left edge."""
    first = int(offset)
    share = round((offset - first) * 256)
    if share == 0:
        return background.pixels[:, first : first + width].copy()
    left = background.pixels[:, first : first + width].astype(np.uint16)
    right = background.pixels[:, first + 1 : first + 1 + width].astype(np.uint16)
    return ((left * (256 - share) + right * share + 128) >> 8).astype(np.uint8)


def _vignette(pixels: np.ndarray) -> np.ndarray:
    """Return the picture, darkened towards its corners."""
    height, width = pixels.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    shade = 1 - 0.16 * (0.5 * x * x + y * y)
    return np.clip(pixels * shade[..., None], 0, 255).astype(np.uint8)
