"""The two things that flow through curation: a source segment and, inside it, its clips.

A *segment* is one source, or up to N minutes of a long one. It is the row of every dataflow from listing to commit,
and it never fans out: its clips are a list inside it. A *clip* ends in exactly one verdict.
"""

import hashlib
import json
from collections.abc import Callable
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
    """A span of one source, judged.

    Attributes:
        clip_id: hash of the source's content key and the span; the same in every run.
        start_s, end_s: the span, seconds on the source's own time line.
        verdict: "kept", "dropped" (reason says which gate) or "failed" (reason is the stage, error says what).
        sound_class: "speech", "environment", "music", "mixed", or the uninformative "noise", "silence", "no_audio".
        scores: every raw score that was measured, by name; a threshold can be moved without measuring again.
        tags: sound events with times.
        media: the clip's file (the source's packets with exact in and out points), empty unless kept.
        media_suffix: "mp4", or "mkv" where mp4 cannot hold the codec.
        caption: what `captioning` wrote: {"text": …, "evidence": …}; empty before.
        sample: encoded tensors, one safetensors file; empty before `encode`.
        info: what the index and the report need of the file: width, height, fps, frames, sample_rate, bucket …
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
        return self.verdict == "kept"

    def dropped(self, reason: str) -> "Clip":
        """This clip with the verdict `dropped(reason)`; its media and sample are let go."""
        return replace(self, verdict="dropped", reason=reason, media=b"", sample=b"")

    def failed(self, stage: str, error: BaseException | str) -> "Clip":
        """This clip with the verdict `failed(stage, error)`; its media and sample are let go."""
        return replace(self, verdict="failed", reason=stage, error=describe(error), media=b"", sample=b"")


@dataclass
class Segment:
    """One row of every dataflow.

    Attributes:
        segment_id: hash of the URI, size, span and part; names the shard, the manifest part and the ledger entry.
        uri: where the source is.
        start_s, end_s: the part of the source that this segment holds; `end_s` is inf for "to its end".
        size: bytes of the source.
        part, parts: this is the `part`-th of `parts` equal lengths of that span, from 0; its times are known once the
            source is opened.
        caption: what the list that named the source says of it, "" for nothing.
        content_key: hash of the source's bytes (or of head, tail and size for a large one); "" until it is read.
        clips: empty until cut; at least one afterwards, whatever happened.
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

    def through(self, curate: "Callable[[Segment], Segment | list[Segment]]") -> "Segment":
        """This segment curated; where `curate` gives the spans to be curated instead, with the clips of those, and
        with the times that they found.
        """
        done = curate(self)
        if isinstance(done, Segment):
            return done
        spans = [span.through(curate) for span in done]
        clips = [clip for span in spans for clip in span.clips]
        return replace(spans[0], segment_id=self.segment_id, end_s=spans[-1].end_s, clips=clips)

    def failed(self, stage: str, error: BaseException | str) -> "Segment":
        """This segment as one `failed` clip that spans it: a source that cannot be read still has its verdict."""
        clip = Clip(stable_id(self.segment_id, "failed"), self.start_s, self.end_s)
        return replace(self, clips=[clip.failed(stage, error)])


def stable_id(*parts: object) -> str:
    """A 20-digit hexadecimal id: a function of the parts alone, so that a rerun names the same things the same."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]


def describe(error: BaseException | str) -> str:
    """An error as one line of at most 300 characters."""
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
    """Segments as an Arrow table of the one fixed schema that every stage of a dataflow takes and gives."""
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
    """The inverse of `to_table`."""
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
