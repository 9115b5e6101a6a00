"""Measure a clip's sound without a model: its level, the trend of the level, its side, its steady background."""

import numpy as np

_FRAME_S = 0.1
_ACTIVE_DB = -60.0  # a quieter frame is silent
_STEADY_DB = -50.0  # a quieter background is not reported
_STEADY_BELOW_DB = 10.0  # a background that is quieter than the clip by more than this is not reported
_BANDS_HZ = {"low": (50.0, 400.0), "middle": (400.0, 3000.0), "high": (3000.0, 8000.0)}
_DOMINANT_SHARE = 0.6  # a band is dominant if it has at least this share of the steady sound's energy


def measure(audio: np.ndarray, sample_rate: int) -> dict:
    """Measure level, trend, side and steady background of a sound.

    Args:
        audio: (channels, N) float32; the first channel is the left one, the last the right one.
        sample_rate: In Hz.

    Returns:
        Plain data. seconds; level_db: RMS level of the frames that are not silent, in dB relative to full scale (None
        if all are silent); sounding: share of frames above -60 dB; course_db: level of the last third minus that of
        the first third (None if either is silent); side_db: level of the right channel minus that of the left one
        (None if silent); travel: "left to right", "right to left" or ""; steady: {level_db, band} of a sound that is
        present nine tenths of the time (band "low", "middle", "high", or "" if none dominates), or None.
    """
    seconds = audio.shape[1] / sample_rate
    size = int(_FRAME_S * sample_rate)
    count = audio.shape[1] // size
    silent = {"seconds": round(seconds, 3), "level_db": None, "sounding": 0.0, "course_db": None, "side_db": None}
    if count == 0:
        return {**silent, "travel": "", "steady": None}
    power = (audio[:, : count * size].reshape(len(audio), count, size).astype(np.float64) ** 2).mean(-1)
    total = power.mean(0)
    active = total > 10 ** (_ACTIVE_DB / 10)
    if not active.any():
        return {**silent, "travel": "", "steady": None}
    left, right = power[0], power[-1]
    return {
        "seconds": round(seconds, 3),
        "level_db": round(_db(total[active].mean()), 1),
        "sounding": round(float(active.mean()), 3),
        "course_db": _course(total),
        "side_db": round(_db(right[active].mean()) - _db(left[active].mean()), 1),
        "travel": _travel(left[active], right[active]),
        "steady": _steady(audio.mean(0)[: count * size].reshape(count, size), sample_rate, _db(total.mean())),
    }


def _steady(frames: np.ndarray, sample_rate: int, level_db: float) -> dict | None:
    """Measure the steady sound: in each band, the level that 90 % of the frames exceed.

    Args:
        frames: Mono (count, samples).
        sample_rate: In Hz.
        level_db: Level of the clip in dB relative to full scale.

    Returns:
        `steady` as in `measure`; None if the steady sound is too quiet.
    """
    hertz = np.fft.rfftfreq(frames.shape[1], 1 / sample_rate)
    power = 2 * np.abs(np.fft.rfft(frames)) ** 2 / frames.shape[1] ** 2  # its sum is the mean square of the frame
    floors = {
        name: float(np.percentile(power[:, (hertz >= low) & (hertz < high)].sum(axis=1), 10))
        for name, (low, high) in _BANDS_HZ.items()
    }
    total = sum(floors.values())
    floor_db = _db(total)
    if floor_db < max(_STEADY_DB, level_db - _STEADY_BELOW_DB):
        return None
    loudest = max(floors, key=lambda name: floors[name])
    return {"level_db": round(floor_db, 1), "band": loudest if floors[loudest] >= _DOMINANT_SHARE * total else ""}


def _db(power: float) -> float:
    """Return a mean square in dB relative to full scale, at least -100."""
    return float(10 * np.log10(max(power, 1e-10)))


def _course(total: np.ndarray) -> float | None:
    """Return `course_db` as in `measure`, from the mean squares (count,) of the frames."""
    third = len(total) // 3
    if third == 0:
        return None
    first, last = _db(total[:third].mean()), _db(total[-third:].mean())
    return None if min(first, last) < _ACTIVE_DB else round(last - first, 1)


def _travel(left: np.ndarray, right: np.ndarray) -> str:
    """Return `travel` as in `measure`, from the mean squares (count,) of the frames of both channels."""
    side = (right - left) / (right + left + 1e-12)
    if len(side) < 10 or np.ptp(side) < 0.4 or side.std() < 0.1:
        return ""
    correlation = np.corrcoef(np.arange(len(side)), side)[0, 1]
    if abs(correlation) < 0.9:
        return ""
    return "left to right" if correlation > 0 else "right to left"
