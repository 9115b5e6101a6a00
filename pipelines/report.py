"""`report.html`: what came of a set's clips, on one page that opens from disk and needs no network.

The page shows where clips ended and how many hours that is, the scores with the thresholds that judged them, the
classes, and examples of every verdict that can be played. Clips that hold no media in the set (dropped ones; all of an
encoded set) are cut from their source again, while it is still there. Everything is embedded; to keep the page at some
megabytes, a clip that is large or in a codec that browsers do not play is shown as a small copy of its first seconds.
"""

import base64
import io
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from data_prep import storage
from data_prep.clip import describe
from data_prep.index import read_manifest
from data_prep.media import decode_audio, decode_video
from data_prep.shards import read_member
from pipelines.previews import contact_sheet, spectrogram, waveform

NAME = "report.html"

# Examples on the page: of kept clips, and of each reason for which clips were not kept.
KEPT_EXAMPLES, OTHER_EXAMPLES = 9, 3
# A clip's own file is embedded up to this size, bytes; a preview lasts this long, seconds, and is this wide, pixels.
EMBED_BYTES, PREVIEW_S, PREVIEW_WIDTH = 600_000, 5.0, 320
PLAYABLE_CODECS = {"h264", "vp8", "vp9", "av1"}
BINS = 24

# Score → (what it is, its unit, the policy's thresholds on it).
SCORES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "silence_ratio": ("silent share of the clip", "", ("silence_max",)),
    "active_s": ("time with sound", "s", ("active_min_s",)),
    "rms_db": ("mean level", "dBFS", ()),
    "stationarity": ("share of energy that is always there", "", ("stationary_min",)),
    "tone_ratio": ("share of energy in unceasing lines", "", ("tone_min",)),
    "wander": ("unsteadiness, 1 = Gaussian noise", "", ("wander_min",)),
    "bandwidth_hz": ("bandwidth", "Hz", ("bandwidth_min_hz",)),
    "clipped_ratio": ("share of samples at full scale", "", ("clipped_max",)),
    "voice_ratio": ("share of time with a voice", "", ("voice_min", "speech_min")),
    "tag_event": ("strongest sound event", "", ("event_min",)),
    "tag_music": ("music", "", ("music_min",)),
    "tag_noise": ("noise", "", ("noise_tag_min",)),
}


@dataclass
class Example:
    """A clip to look at: data: URIs of its film and pictures, "" where there is none."""

    title: str
    uri: str
    span: str
    sound_class: str
    error: str = ""
    caption: str = ""
    heard: str = ""
    video: str = ""
    is_copy: bool = False
    sheet: str = ""
    wave: str = ""
    spectrogram: str = ""


@dataclass(frozen=True)
class Report:
    """The page, and one kept clip's files (name, bytes) for the tracking run: its film, contact sheet, spectrogram."""

    path: str
    samples: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """A row of the funnel."""

    name: str
    verdict: str
    clips: int
    hours: float
    share: float


def write_report(root: str | Path) -> Report:
    """Write `<root>/report.html` from the committed segments and `summary.json`."""
    rows = read_manifest(root).to_pylist()
    for row in rows:
        row["scores"], row["info"], row["caption"] = (
            dict(row["scores"]),
            json.loads(row["info"]),
            json.loads(row["caption"]),
        )
    summary = json.loads(storage.read(storage.at(root, "summary.json")))
    samples: list[tuple[str, bytes]] = []
    sections = [
        (title, note, [_example(root, row, samples) for row in chosen]) for title, note, chosen in _chosen(rows)
    ]
    environment = Environment(
        loader=PackageLoader("pipelines"), autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        summary=summary,
        funnel=funnel(rows),
        classes=_classes(rows),
        histograms=_histograms(rows, _policy(root)),
        sections=sections,
        settings=storage.read(storage.at(root, "settings.yaml")).decode(),
        folder=str(root).rstrip("/").rsplit("/", 1)[-1],
    )
    path = storage.at(root, NAME)
    storage.put(path, page.encode())
    return Report(path, samples)


def funnel(rows: list[dict]) -> list[Step]:
    """Where clips ended, most frequent reason first within a verdict; the counts sum to the clips considered."""
    counts, hours = Counter[tuple[str, str]](), defaultdict[tuple[str, str], float](float)
    for row in rows:
        key = row["verdict"], row["reason"]
        counts[key] += 1
        hours[key] += _hours(row)
    order = {"kept": 0, "dropped": 1, "failed": 2}
    ranked = sorted(counts, key=lambda key: (order[key[0]], -counts[key], key[1]))
    total = max(1, len(rows))
    return [Step(_words(key[1]) or "kept", key[0], counts[key], hours[key], counts[key] / total) for key in ranked]


def funnel_figure(summary: Mapping[str, Any]) -> bytes:
    """The funnel of a summary as a PNG, for the tracking run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [("kept", summary["kept"], "#3f7d58")]
    bars += [(_words(reason), count, "#c58b2a") for reason, count in sorted(summary["dropped"].items(), key=_second)]
    bars += [(f"failed: {stage}", count, "#b4483c") for stage, count in sorted(summary["failed"].items(), key=_second)]
    figure = Figure(figsize=(7, 0.7 + 0.36 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    drawn = axes.barh([name for name, _, _ in bars], [n for _, n, _ in bars], color=[c for _, _, c in bars])
    axes.bar_label(drawn, padding=3)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("clips")
    axes.set_title(
        f"{summary['considered']} clips considered, {summary['kept']} kept "
        f"({60 * summary['hours_kept']:.1f} of {60 * summary['hours_considered']:.1f} min)",
        loc="left",
        fontsize=11,
    )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _second(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _classes(rows: list[dict]) -> list[dict]:
    """Sound classes with clips, kept clips and kept hours; the most frequent first."""
    found: dict[str, dict] = {}
    for row in rows:
        name = row["sound_class"] or "not judged"
        at = found.setdefault(name, {"name": name, "clips": 0, "kept": 0, "hours": 0.0})
        at["clips"] += 1
        if row["verdict"] == "kept":
            at["kept"] += 1
            at["hours"] += _hours(row)
    return sorted(found.values(), key=lambda at: (-at["kept"], -at["clips"], at["name"]))


def _policy(root: str | Path) -> dict[str, Any]:
    """The thresholds that judged this set: its own, or those of the set that it was made from."""
    for _ in range(3):
        path = storage.at(root, "settings.yaml")
        if not storage.exists(path):
            break
        settings = yaml.safe_load(storage.read(path))["settings"]
        if "curate" in settings:
            return settings["curate"]["policy"]
        root = settings.get("input_set", "")
    return {}


def _histograms(rows: list[dict], policy: Mapping[str, Any]) -> list[dict]:
    """A stacked histogram per score that was measured: kept below, not kept above, thresholds as lines."""
    drawn = []
    for name, (meaning, unit, thresholds) in SCORES.items():
        measured = [(row["scores"][name], row["verdict"] == "kept") for row in rows if name in row["scores"]]
        measured = [(value, kept) for value, kept in measured if math.isfinite(value)]
        if not measured:
            continue
        values = np.array([value for value, _ in measured])
        kept = np.array([is_kept for _, is_kept in measured])
        lines = [(key, float(policy[key])) for key in thresholds if key in policy]
        low, high = min([values.min(), *(at for _, at in lines)]), max([values.max(), *(at for _, at in lines)])
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        if high == low:
            low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, BINS + 1)
        below, _ = np.histogram(values[kept], edges)
        above, _ = np.histogram(values[~kept], edges)
        top = max(1, int((below + above).max()))
        drawn.append(
            {
                "name": name,
                "meaning": meaning,
                "unit": unit,
                "low": f"{low:.3g}" if abs(low) < 1000 else f"{low:.0f}",
                "high": f"{high:.3g}" if abs(high) < 1000 else f"{high:.0f}",
                "top": top,
                "bars": [
                    (n, 60 * b / top, 60 * (a + b) / top) for n, (b, a) in enumerate(zip(below, above, strict=True))
                ],
                # Labels of several thresholds stand below each other.
                "lines": [
                    (key, f"{at:g}", 240 * (at - low) / (high - low), 10 * row) for row, (key, at) in enumerate(lines)
                ],
                "count": len(measured),
            }
        )
    return drawn


def _chosen(rows: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """The clips to show: (title, note, rows) for kept ones, then for each reason."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in rows:
        groups[row["verdict"], row["reason"]].append(row)
    sections = []
    for verdict, limit in (("kept", KEPT_EXAMPLES), ("dropped", OTHER_EXAMPLES), ("failed", OTHER_EXAMPLES)):
        for (_, reason), found in sorted((key, v) for key, v in groups.items() if key[0] == verdict):
            title = "Kept" if verdict == "kept" else f"{verdict.capitalize()}: {_words(reason)}"
            shown = _spread(found, limit)
            sections.append((title, f"{len(shown)} of {len(found)}", shown))
    return sections


def _spread(rows: list[dict], limit: int) -> list[dict]:
    """Up to `limit` rows, taking turns among the sound classes."""
    by_class: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        by_class[row["sound_class"]].append(row)
    queues = [by_class[name] for name in sorted(by_class)]
    turns = [queue[at] for at in range(max(map(len, queues))) for queue in queues if at < len(queue)]
    return turns[:limit]


def _example(root: str | Path, row: dict, samples: list[tuple[str, bytes]]) -> Example:
    example = Example(
        title=os.path.basename(row["uri"]),
        uri=row["uri"],
        span=_span(row["start_s"], row["end_s"]),
        sound_class=row["sound_class"],
        error=row["error"],
        caption=row["caption"].get("text", ""),
        heard=", ".join(_heard(row["tags"])),
    )
    if row["verdict"] == "failed" and not row["caption"]:
        return example
    try:
        _fill(example, root, row, samples)
    except Exception as error:  # the page is about the set; a picture that cannot be drawn is said on it
        example.error = example.error or f"no preview: {describe(error)}"
    return example


def _fill(example: Example, root: str | Path, row: dict, samples: list[tuple[str, bytes]]) -> None:
    """The example's film and pictures."""
    from data_prep.mp4 import write_mp4

    info = row["info"]
    media: bytes | str
    if row["media_size"]:
        media = read_member(root, row["shard"], row["media_offset"], row["media_size"])
        start_s, end_s = info["in_s"], info["out_s"]
    else:
        media, start_s, end_s = row["uri"], row["start_s"], row["end_s"]
    end_s = min(end_s, start_s + PREVIEW_S)
    width, height = info.get("width", 0), info.get("height", 0)
    size = None
    if width and height:
        scale = min(1.0, PREVIEW_WIDTH / width)
        size = 2 * round(height * scale / 2), 2 * round(width * scale / 2)
    frames, _ = decode_video(media, start_s, end_s, fps=12, size=size)
    sound = decode_audio(media, start_s, end_s, 24000, 2)
    wave_png, spectrum_png = waveform(sound, 24000), spectrogram(sound, 24000)
    example.wave, example.spectrogram = _data("image/png", wave_png), _data("image/png", spectrum_png)
    if not len(frames):
        return
    sheet = contact_sheet(frames, columns=4, rows=1)
    example.sheet = _data("image/png", sheet)
    own = isinstance(media, bytes) and len(media) <= EMBED_BYTES
    if own and row["media_suffix"] == "mp4" and info.get("video_codec") in PLAYABLE_CODECS:
        assert isinstance(media, bytes)
        film = media
    else:
        copy = io.BytesIO()
        even = _small(frames)
        write_mp4(copy, even, 12, sound, 24000, crf=26)
        film, example.is_copy = copy.getvalue(), True
    example.video = _data("video/mp4", film)
    if row["verdict"] == "kept" and not samples:
        samples += [("clip.mp4", film), ("contact_sheet.png", sheet), ("spectrogram.png", spectrum_png)]


def _small(frames: np.ndarray) -> np.ndarray:
    """Frames at most `PREVIEW_WIDTH` wide, by leaving pixels out, with even sides."""
    step = -(-frames.shape[2] // PREVIEW_WIDTH)
    frames = frames[:, ::step, ::step]
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def _heard(tags: list[dict]) -> list[str]:
    """The four best-scored sound events, by name."""
    best: dict[str, float] = {}
    for tag in tags:
        best[tag["label"]] = max(best.get(tag["label"], 0.0), tag["score"])
    return [f"{label} {score:.2f}" for label, score in sorted(best.items(), key=lambda item: -item[1])[:4]]


def _hours(row: dict) -> float:
    length = row["end_s"] - row["start_s"]
    return length / 3600 if math.isfinite(length) else 0.0


def _span(start_s: float, end_s: float) -> str:
    return f"{start_s:.1f} – {end_s:.1f} s" if math.isfinite(end_s) else f"from {start_s:.1f} s"


def _words(reason: str) -> str:
    return reason.replace("_", " ")


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
