"""The data that every dataflow processes: segments with their clips, and their conversion to Arrow tables.

A *segment* is one source, or up to N minutes of a long one. It stays one row of a dataflow from listing to commit: its
clips are a list inside the row, and never rows of their own. A *clip* ends with exactly one verdict.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import pyarrow as pa

Verdict = Literal["kept", "dropped", "failed"]


@dataclass(frozen=True)
class Tag:
    """A sound event: its AudioSet display name, start and end in seconds from the clip's start, and score in [0, 1]."""

    label: str
    start_s: float
    end_s: float
    score: float


@dataclass
class Clip:
    """One time interval of a source, with its verdict and everything that is known of it.

    Attributes:
        clip_id: hash of the source's content key and the clip's start and end; the same in every run.
        start_s, end_s: seconds on the source's time line.
        verdict: "kept", "dropped" or "failed".
        reason: why a clip was dropped, for example "silence"; for a failed clip, the stage that failed; "" if kept.
        error: the message of a failed clip, one line; "" for the others.
        sound_class: "speech", "environment", "music", "mixed", or the uninformative "noise", "silence", "no_audio".
        scores: every score that was measured, by name. A new threshold needs no new measurement.
        tags: the sound events that the tagger found.
        media: bytes of the clip's file (packets copied from the source); empty unless the clip is kept.
        media_suffix: "mp4", or "mkv" where mp4 does not support the codec.
        caption: what `captioning` adds: {"text": …, "evidence": …}; empty until then.
        sample: bytes of a safetensors file with the encoded tensors; empty until `encode`.
        info: facts about the file that the index and the report need: width, height, fps, frames, bucket, …
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
        """Return whether the verdict is "kept"."""
        return self.verdict == "kept"

    def dropped(self, reason: str) -> "Clip":
        """Return a copy with the verdict "dropped" and this reason, and without media and sample."""
        return replace(self, verdict="dropped", reason=reason, media=b"", sample=b"")

    def failed(self, stage: str, error: BaseException | str) -> "Clip":
        """Return a copy with the verdict "failed", this stage and the error's message, and without media and sample."""
        return replace(self, verdict="failed", reason=stage, error=describe(error), media=b"", sample=b"")


@dataclass
class Segment:
    """One source, or one part of a long source, with its clips: the row of every dataflow.

    Attributes:
        segment_id: hash of the URI, size, times and part; the name of its shard, manifest file and ledger entry.
        uri: address of the source: a path, a URI of an object store, or a member of a tar (`tar_members`).
        start_s, end_s: the interval of the source that the segment covers, seconds; `end_s` is inf for "to the end".
        size: size of the source, bytes; 0 while it is unknown.
        content_key: hash of the source's bytes (of a large source: of head, tail and size); "" until it is read.
        part, parts: the segment is part number `part` (from 0) of `parts` equal parts of that interval. The times of
            the part are computed when the source is opened, because its length is not known before.
        caption: the source's caption in the list that named it; "" for none.
        clips: empty until the segment is curated; then at least one, because also a failure is recorded as a clip.
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
        """Return a copy whose only clip covers the segment and has the verdict "failed" with this stage and error."""
        clip = Clip(stable_id(self.segment_id, "failed"), self.start_s, self.end_s)
        return replace(self, clips=[clip.failed(stage, error)])


def stable_id(*parts: object) -> str:
    """Return an id of 20 hexadecimal digits: a hash of the parts as text, the same in every run."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]


def describe(error: BaseException | str) -> str:
    """Return an error as text: its type and message on one line, at most 300 characters."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


TAG = pa.struct([(f.name, pa.string() if f.type is str else pa.float64()) for f in fields(Tag)])
# Columns for a clip's times, verdict and scores: the same in `SEGMENT_SCHEMA` and in the manifest.
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
    """Return segments as an Arrow table of `SEGMENT_SCHEMA`, one row each, which every stage takes and returns."""
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
    """Return the segments of an Arrow table of `SEGMENT_SCHEMA`; the inverse of `to_table`."""
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
