"""The data of every dataflow: a source segment with its clips, and both as rows of an Arrow table.

A *segment* is one source, or up to N minutes of a long one. It is the row of every dataflow from listing to commit,
and it never fans out: its clips are a list inside the row. A *clip* ends in exactly one verdict.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import pyarrow as pa

Verdict = Literal["kept", "dropped", "failed"]


@dataclass(frozen=True)
class Tag:
    """A sound event: AudioSet display name, interval in seconds from the clip's start, score in [0, 1]."""

    label: str
    start_s: float
    end_s: float
    score: float


@dataclass
class Clip:
    """A stretch of one source with its verdict.

    Attributes:
        clip_id: hash of the source's content key, start and end; the same in every run.
        start_s, end_s: seconds on the source's time line.
        verdict: "kept", "dropped" (reason says which gate) or "failed" (reason is the stage, error says what).
        sound_class: "speech", "environment", "music", "mixed", or the uninformative "noise", "silence", "no_audio".
        scores: every raw score that was measured, by name, so that a threshold can change without a new measurement.
        tags: sound events with times.
        media: the clip's file (the source's packets with exact in and out points); empty unless the clip is kept.
        media_suffix: "mp4", or "mkv" where mp4 cannot hold the codec.
        caption: what `captioning` writes: {"text": …, "evidence": …}; empty before.
        sample: the encoded tensors as a safetensors file; empty before `encode`.
        info: what the index and the report need to know of the file: width, height, fps, frames, sample_rate, bucket …
    """

    clip_id: str
    start_s: float
    end_s: float
    verdict: Verdict = "kept"
    reason: str = ""
    error: str = ""
    sound_class: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    tags: list[Tag] = field(default_factory=list)
    media: bytes = b""
    media_suffix: str = "mp4"
    caption: dict[str, Any] = field(default_factory=dict)
    sample: bytes = b""
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether the verdict is "kept"."""
        return self.verdict == "kept"

    def dropped(self, reason: str) -> "Clip":
        """Return the clip with the verdict `dropped(reason)`, without media and sample."""
        return replace(self, verdict="dropped", reason=reason, media=b"", sample=b"")

    def failed(self, stage: str, error: BaseException | str) -> "Clip":
        """Return the clip with the verdict `failed(stage, error)`, without media and sample."""
        return replace(self, verdict="failed", reason=stage, error=describe(error), media=b"", sample=b"")


@dataclass
class Segment:
    """One row of every dataflow.

    Attributes:
        segment_id: hash of the URI, size, times and part; names the shard, the manifest part and the ledger entry.
        uri: where the source is.
        start_s, end_s: the stretch of the source that the segment covers, seconds; `end_s` is inf for "to the end".
        size: of the source, bytes; 0 while it is unknown.
        content_key: hash of the source's bytes (of a large source: of head, tail and size); "" until it is read.
        part, parts: the segment is part `part` (from 0) of that stretch, divided into `parts` equal lengths. Its times
            are known once the source is opened.
        caption: the source's caption in the list that named it; "" for none.
        clips: empty until the segment is curated; at least one afterwards, whatever happened.
    """

    segment_id: str
    uri: str
    start_s: float = 0.0
    end_s: float = float("inf")
    size: int = 0
    content_key: str = ""
    part: int = 0
    parts: int = 1
    caption: str = ""
    clips: list[Clip] = field(default_factory=list)

    def failed(self, stage: str, error: BaseException | str) -> "Segment":
        """Return the segment with one `failed` clip that covers it: an unreadable source has a verdict too."""
        clip = Clip(stable_id(self.segment_id, "failed"), self.start_s, self.end_s)
        return replace(self, clips=[clip.failed(stage, error)])


def stable_id(*parts: object) -> str:
    """Hash the parts to an id of 20 hexadecimal digits; the same parts give the same id in every run."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]


def describe(error: BaseException | str) -> str:
    """Format an error as one line of at most 300 characters."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


TAG = pa.struct([(f.name, pa.string() if f.type is str else pa.float64()) for f in fields(Tag)])
# A clip's span, verdict and scores, as both the rows of a dataflow and the manifest hold them.
VERDICT_COLUMNS = [
    *((name, pa.float64()) for name in ("start_s", "end_s")),
    *((name, pa.string()) for name in ("verdict", "reason", "error", "sound_class")),
    ("scores", pa.map_(pa.string(), pa.float64())),
    ("tags", pa.list_(TAG)),
]
_CLIP = pa.struct(
    [
        ("clip_id", pa.string()),
        *VERDICT_COLUMNS,
        ("media", pa.large_binary()),
        *((name, pa.string()) for name in ("media_suffix", "caption")),
        ("sample", pa.large_binary()),
        ("info", pa.string()),
    ]
)
SEGMENT_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("segment_id", "uri")),
        *((name, pa.float64()) for name in ("start_s", "end_s")),
        ("size", pa.int64()),
        ("content_key", pa.string()),
        *((name, pa.int64()) for name in ("part", "parts")),
        ("caption", pa.string()),
        ("clips", pa.large_list(_CLIP)),
    ]
)


def to_table(segments: list[Segment]) -> pa.Table:
    """Convert segments to an Arrow table of `SEGMENT_SCHEMA`, which every stage of a dataflow takes and returns."""
    rows = []
    for segment in segments:
        row = asdict(segment)
        for clip in row["clips"]:
            clip["scores"] = list(clip["scores"].items())
            clip["caption"] = json.dumps(clip["caption"], sort_keys=True, ensure_ascii=False)
            clip["info"] = json.dumps(clip["info"], sort_keys=True, ensure_ascii=False)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SEGMENT_SCHEMA)


def from_table(table: pa.Table) -> list[Segment]:
    """Convert an Arrow table back to segments; the inverse of `to_table`."""
    segments = []
    for row in table.to_pylist():
        clips = [
            Clip(
                **{
                    **clip,
                    "scores": dict(clip["scores"]),
                    "tags": [Tag(**tag) for tag in clip["tags"]],
                    "caption": json.loads(clip["caption"]),
                    "info": json.loads(clip["info"]),
                }
            )
            for clip in row.pop("clips")
        ]
        segments.append(Segment(**row, clips=clips))
    return segments
