"""Measure a clip's picture without a model: colours and where they are, brightness, camera, movement, cuts.

Frames are small (about 160 pixels wide, 8 per second): (F, H, W, 3) uint8 RGB. Each frame is divided into blocks, and
phase correlation (Kuglin & Hines 1975) measures how far the content of a block moves between two frames. If most
textured blocks move equally, the camera moved.
"""

import numpy as np

COLOURS = tuple(
    ["black", "grey", "white", "red", "orange", "brown", "beige", "yellow", "green", "cyan", "blue", "purple", "pink"]
)
# (upper limit in degrees, name) of each hue.
_HUES = ((20, "red"), (45, "orange"), (68, "yellow"), (160, "green"), (198, "cyan"), (258, "blue"), (300, "purple"))
_LAG_S = 0.25  # time between compared frames: a shorter one misses a slow pan, a longer one misses a fast pan
_LONG_LAG_S = 2.0  # a picture that has not shifted in this time is static
_BLOCKS = 4  # blocks per side of the picture
_MIN_TEXTURE = 0.02  # standard deviation of the grey level (0 to 1); in a block with less, no shift can be measured
_MIN_CHANGE = 0.06  # change of a pixel's grey level (0 to 1) that counts as movement
_MAX_CUT_CORRELATION = 0.5  # two frames with a lower correlation show different scenes


def describe(frames: np.ndarray, times_s: np.ndarray) -> dict:
    """Measure the picture of a clip.

    Args:
        frames: Frames (F, H, W, 3) uint8 RGB.
        times_s: Their times (F,) in seconds from the clip's start.

    Returns:
        Plain data. colours: {name: share of the picture}, shares of at least 5 %, the largest first; regions: {"upper"
        | "lower" | "left" | "right" | "middle": the colour that fills at least half of it}; black_and_white: bool;
        brightness: mean luma, 0 to 1; camera: "static", "pans left" …, "tilts up" …, or "" if it is not clear;
        movement: mean share of the pixels that change within 0.25 s, or None for too few frames; where: the place of
        the movement, "left", "centre", "right" or ""; path: the direction in which something crosses the picture, "left
        to right", "right to left" or ""; cuts: times in seconds.

    Raises:
        ValueError: There is no frame.
    """
    if len(frames) == 0:
        raise ValueError("no frame could be decoded")
    luma = frames.astype(np.float32) @ np.array([0.2126, 0.7152, 0.0722], np.float32) / 255
    cuts = find_cuts(luma)
    pairs = _pairs(times_s, cuts, _LAG_S)
    camera = "" if cuts else _camera(luma, pairs, _pairs(times_s, cuts, _LONG_LAG_S))
    return {
        **_colours(frames),
        "brightness": round(float(luma.mean()), 3),
        "camera": camera,
        **_movement(luma, pairs, still_camera=camera == "static"),
        "cuts": [round(float(times_s[index]), 2) for index in cuts],
    }


def name_colours(rgb: np.ndarray) -> np.ndarray:
    """Return the colour of each of the RGB pixels (..., 3) uint8, as indices (...) into COLOURS."""
    value = rgb.max(-1).astype(np.float32) / 255
    chroma = value - rgb.min(-1).astype(np.float32) / 255
    saturation = chroma / np.maximum(value, 1e-6)
    hue = _hue(rgb, chroma)
    names = np.full(hue.shape, COLOURS.index("pink"))
    for limit, name in reversed(_HUES):
        names[hue < limit] = COLOURS.index(name)
    names[(hue >= 340) | (hue < 12)] = COLOURS.index("red")
    names[((hue >= 330) | (hue < 20)) & (saturation < 0.5) & (value > 0.7)] = COLOURS.index("pink")
    names[(hue >= 12) & (hue < 45) & (value * saturation < 0.5) & (value < 0.75)] = COLOURS.index("brown")
    names[(hue >= 12) & (hue < 55) & (saturation < 0.45) & (value >= 0.6)] = COLOURS.index("beige")
    # Name weak colours grey. Test chroma in addition to saturation: the hue of a dark pixel is mostly noise.
    neutral = (saturation < 0.18) | (chroma < 0.08)
    names[neutral] = COLOURS.index("grey")
    names[neutral & (value > 0.85)] = COLOURS.index("white")
    names[value < 0.16] = COLOURS.index("black")
    return names


def _hue(rgb: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Return the hue (...) in degrees, 0 to 360, of RGB pixels (..., 3) with their chroma (...), 0 to 1."""
    red, green, blue = (rgb[..., i].astype(np.float32) / 255 for i in range(3))
    top = np.maximum(np.maximum(red, green), blue)
    divisor = np.maximum(chroma, 1e-6)
    sector = np.where(
        top == red,
        ((green - blue) / divisor) % 6,
        np.where(top == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    return 60 * sector


def _colours(frames: np.ndarray) -> dict:
    """Measure `colours`, `regions` and `black_and_white` (see `describe`) on at most 12 of the frames."""
    sample = frames[np.linspace(0, len(frames) - 1, min(12, len(frames))).round().astype(int), ::2, ::2]
    spread = sample.max(-1).astype(int) - sample.min(-1)
    names = name_colours(sample)
    shares = np.bincount(names.ravel(), minlength=len(COLOURS)) / names.size
    order = [index for index in np.argsort(-shares, kind="stable") if shares[index] >= 0.05]
    third_h, third_w = names.shape[1] // 3, names.shape[2] // 3
    parts = {
        "upper": names[:, :third_h],
        "lower": names[:, -third_h:],
        "left": names[:, :, :third_w],
        "right": names[:, :, -third_w:],
        "middle": names[:, third_h:-third_h, third_w:-third_w],
    }
    regions = {}
    for region, part in parts.items():
        counts = np.bincount(part.ravel(), minlength=len(COLOURS))
        if counts.max() >= 0.5 * part.size:
            regions[region] = COLOURS[int(counts.argmax())]
    return {
        "colours": {COLOURS[index]: round(float(shares[index]), 3) for index in order},
        "regions": regions,
        "black_and_white": bool(np.percentile(spread, 98) < 20),
    }


def find_cuts(luma: np.ndarray) -> list[int]:
    """Find the frames of luma (F, H, W) that begin a new shot.

    A cut is between two frames that do not correlate, while the two frames before it correlate, and the two frames
    after it too. So a fade, a flash and a fast camera movement are not cuts.
    """
    if len(luma) < 4:
        return []
    flat = luma.reshape(len(luma), -1)
    flat = flat - flat.mean(1, keepdims=True)
    deviation = flat.std(1)
    scale = np.maximum(deviation[1:] * deviation[:-1], 1e-6)
    like = (flat[1:] * flat[:-1]).mean(1) / scale
    like[np.minimum(deviation[1:], deviation[:-1]) < _MIN_TEXTURE] = 1.0  # a blank frame has no content to compare
    return [
        index + 1
        for index in range(1, len(like) - 1)
        if like[index] < _MAX_CUT_CORRELATION and min(like[index - 1], like[index + 1]) > like[index] + 0.3
    ]


def _pairs(times_s: np.ndarray, cuts: list[int], lag_s: float) -> list[tuple[int, int]]:
    """Return the index pairs of frames that are about `lag_s` seconds apart, with no cut between them."""
    times = np.asarray(times_s)
    later = np.searchsorted(times, times + lag_s - 1e-3)
    return [
        (first, int(second))
        for first, second in enumerate(later)
        if second < len(times) and not any(first < cut <= second for cut in cuts)
    ]


def _camera(luma: np.ndarray, pairs: list[tuple[int, int]], far_pairs: list[tuple[int, int]]) -> str:
    """Return the camera's movement (see `describe`).

    Args:
        luma: (F, H, W), 0 to 1.
        pairs: Index pairs of frames `_LAG_S` apart.
        far_pairs: Index pairs of frames `_LONG_LAG_S` apart.
    """
    shifts = _shifts(luma, pairs, textured=_BLOCKS * _BLOCKS // 3)
    if len(shifts) < 3 or len(shifts) < len(pairs) / 2:
        return ""
    if _is_still(shifts) and _is_still(_shifts(luma, far_pairs, textured=_BLOCKS * _BLOCKS // 3)):
        return "static"
    # An object in front of a plain background also shifts every textured block. So a pan needs texture at the edges.
    if not _reaches_edges(luma):
        return ""
    shifts = _shifts(luma, pairs, textured=_BLOCKS * _BLOCKS * 2 // 3)
    moved = np.array([shift for shift in shifts if shift is not None and np.abs(shift).max() >= 1])
    if len(moved) < 3 or len(moved) < 0.6 * len(pairs):
        return ""
    mean = moved.mean(0)
    if np.hypot(*mean) < 0.8 * np.hypot(*moved.T).mean():
        return ""
    # The picture moves left when the camera pans right.
    dy, dx = mean
    if abs(dx) >= 2 * abs(dy):
        return "pans right" if dx < 0 else "pans left"
    if abs(dy) >= 2 * abs(dx):
        return "tilts down" if dy < 0 else "tilts up"
    return ""


def _shifts(luma: np.ndarray, pairs: list[tuple[int, int]], textured: int) -> list[np.ndarray | None]:
    """Measure how far the picture shifts between the two frames of each pair.

    Returns:
        For each pair with at least `textured` textured blocks, the median shift (rows, columns) of these blocks in
        pixels, or None if too many blocks shift differently. Other pairs are left out.
    """
    height, width = (size // _BLOCKS for size in luma.shape[1:])
    blocks = luma[:, : height * _BLOCKS, : width * _BLOCKS].reshape(len(luma), _BLOCKS, height, _BLOCKS, width)
    blocks = blocks.transpose(0, 1, 3, 2, 4).reshape(len(luma), -1, height, width)
    window = np.outer(np.hanning(height), np.hanning(width))
    shifts = []
    for first, second in pairs:
        a, b = blocks[first], blocks[second]
        shows = (a.std((1, 2)) > _MIN_TEXTURE) & (b.std((1, 2)) > _MIN_TEXTURE)
        if shows.sum() >= textured:
            shift = _phase_shift(a[shows], b[shows], window)
            middle = np.median(shift, axis=0)
            shifts.append(middle if (np.abs(shift - middle).max(1) <= 1.5).mean() >= 0.6 else None)
    return shifts


def _reaches_edges(luma: np.ndarray) -> bool:
    """Return whether most frames have texture along at least three edges of the picture."""
    height, width = (max(2, size // 10) for size in luma.shape[1:])
    strips = (luma[:, :height], luma[:, -height:], luma[:, :, :width], luma[:, :, -width:])
    shows = np.stack([strip.std((1, 2)) > _MIN_TEXTURE for strip in strips])
    return bool((shows.sum(0) >= 3).mean() > 0.5)


def _is_still(shifts: list[np.ndarray | None]) -> bool:
    """Return whether at least 90 % of the shifts are below one pixel."""
    still = sum(shift is not None and np.abs(shift).max() < 1 for shift in shifts)
    return still >= 0.9 * len(shifts)


def _phase_shift(a: np.ndarray, b: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return how far the content of each block (N, h, w) moves from `a` to `b`: (N, 2) integer rows and columns."""
    spectra = [np.fft.rfft2((x - x.mean((1, 2), keepdims=True)) * window) for x in (a, b)]
    cross = spectra[1] * spectra[0].conj()
    surface = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), s=a.shape[1:])
    flat = surface.reshape(len(a), -1).argmax(1)
    rows, columns = np.unravel_index(flat, a.shape[1:])
    signed = [np.where(at > size // 2, at - size, at) for at, size in zip((rows, columns), a.shape[1:], strict=True)]
    return np.stack(signed, axis=1)


def _movement(luma: np.ndarray, pairs: list[tuple[int, int]], *, still_camera: bool) -> dict:
    """Measure `movement`, `where` and `path` (see `describe`); the last two only if the camera is static."""
    if not pairs:
        return {"movement": None, "where": "", "path": ""}
    changed = np.stack([np.abs(luma[second] - luma[first]) > _MIN_CHANGE for first, second in pairs])
    shares = changed.mean((1, 2))
    result = {"movement": round(float(shares.mean()), 4), "where": "", "path": ""}
    moving = shares > 0.002
    if not still_camera or moving.mean() < 0.3:
        return result
    width = changed.shape[2]
    columns = changed[moving].sum(1)
    centres = (columns * (np.arange(width) + 0.5)).sum(1) / columns.sum(1) / width
    if np.std(centres) < 0.1 and _spread(columns, centres) < 0.2:
        mean = float(centres.mean())
        result["where"] = "left" if mean < 0.36 else "right" if mean > 0.64 else "centre"
    steps = np.arange(len(centres))
    if len(centres) >= 6 and np.ptp(centres) > 0.3 and abs(np.corrcoef(steps, centres)[0, 1]) > 0.9:
        result["path"] = "left to right" if centres[-1] > centres[0] else "right to left"
    return result


def _spread(columns: np.ndarray, centres: np.ndarray) -> float:
    """Return how wide the movement is: the standard deviation of the changed pixels around their frame's centre.

    Args:
        columns: (P, W), the number of changed pixels per column.
        centres: (P,), the mean position of these pixels, 0 (left) to 1 (right).

    Returns:
        The standard deviation over all pairs, as a fraction of the picture's width.
    """
    at = (np.arange(columns.shape[1]) + 0.5) / columns.shape[1]
    return float(np.sqrt(((at[None] - centres[:, None]) ** 2 * columns).sum() / columns.sum()))
