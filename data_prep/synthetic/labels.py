"""The labels of each clip: one row of `labels.parquet`. Times are seconds from the start of the clip.

`clip` is the path of the file relative to the corpus. `verdict` is the correct verdict of curation, "keep" or "drop".
`shots` are the parts between hard cuts; `cuts_s` are the times of the first frame of each new shot. `positions` gives
the centre of each tracked object on each frame, as shares of the picture's width and height, (0, 0) at the upper left.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.synthetic.shot import Format, Shot

INFORMATIVE = frozenset({"speech", "environment", "music", "mixed"})

_TRACK = [(name, pa.list_(pa.float32())) for name in ("time_s", "x", "y")]
_SPAN = [("start_s", pa.float64()), ("end_s", pa.float64())]
SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("index", pa.int64()),
        *((name, pa.string()) for name in ("kind", "sound_class", "verdict")),
        ("duration_s", pa.float64()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        *((name, pa.int64()) for name in ("width", "height", "sample_rate")),
        ("has_audio", pa.bool_()),
        *((name, pa.string()) for name in ("caption", "transcript")),
        ("words", pa.list_(pa.struct([("word", pa.string()), *_SPAN]))),
        ("events", pa.list_(pa.struct([("time_s", pa.float64()), ("what", pa.string()), ("x", pa.float64())]))),
        ("cuts_s", pa.list_(pa.float64())),
        ("shots", pa.list_(pa.struct([*_SPAN, ("kind", pa.string()), ("sound_class", pa.string())]))),
        ("positions", pa.list_(pa.struct([("object", pa.string()), *_TRACK]))),
    ]
)


def truth(clip: str, index: int, kind: str, shots: list[Shot], form: Format) -> dict[str, Any]:
    """Return the row (`SCHEMA`) of a clip that consists of these shots in order. `clip` is the path of its file."""
    starts = np.cumsum([0, *(len(shot.frames) for shot in shots)]) / form.fps
    classes = {shot.sound_class for shot in shots}
    sound_class = classes.pop() if len(classes) == 1 else "mixed"
    return {
        "clip": clip,
        "index": index,
        "kind": kind,
        "sound_class": sound_class,
        "verdict": "keep" if sound_class in INFORMATIVE else "drop",
        "duration_s": float(starts[-1]),
        "frames": sum(len(shot.frames) for shot in shots),
        "fps": form.fps,
        "width": form.width,
        "height": form.height,
        "sample_rate": form.sample_rate,
        "has_audio": all(shot.audio is not None for shot in shots),
        "caption": _caption(shots),
        "transcript": " ".join(shot.transcript for shot in shots if shot.transcript),
        "words": [
            {"word": word.word, "start_s": word.start_s + start, "end_s": word.end_s + start}
            for shot, start in zip(shots, starts, strict=False)
            for word in shot.words
        ],
        "events": [
            {"time_s": event.time_s + start, "what": event.what, "x": event.x}
            for shot, start in zip(shots, starts, strict=False)
            for event in shot.events
        ],
        "cuts_s": [float(start) for start in starts[1:-1]],
        "shots": [
            {"start_s": float(starts[k]), "end_s": float(starts[k + 1]), "kind": s.kind, "sound_class": s.sound_class}
            for k, s in enumerate(shots)
        ],
        "positions": [
            {
                "object": name,
                "time_s": [round(float(start + i / form.fps), 6) for i in range(len(places))],
                "x": [round(float(x), 5) for x in places[:, 0]],
                "y": [round(float(y), 5) for y in places[:, 1]],
            }
            for shot, start in zip(shots, starts, strict=False)
            for name, places in shot.places.items()
        ],
    }


def _caption(shots: list[Shot]) -> str:
    """Return the caption: what is seen and heard in each shot, with a sentence about the cut between two shots."""
    said = [" ".join(part for part in (shot.seen, shot.heard) if part) for shot in shots]
    return " Then the picture cuts. ".join(said)
