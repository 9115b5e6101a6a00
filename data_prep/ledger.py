"""Which segments of a set are committed. A segment's entry is the last file written for it.

`ledger/{segment_id}.json` says that the segment's shard and manifest part are whole. Resume is "segments without an
entry"; readers of a set follow the entries and never list the other folders.
"""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_prep import storage


@dataclass(frozen=True)
class Entry:
    """One committed segment.

    Attributes:
        segment_id, uri, content_key, start_s, end_s, size: as in `data_prep.clip.Segment` (`end_s` None for inf).
        shard: the tar's path inside the set, "" when no clip was kept.
        shard_size: bytes of the tar.
        considered, kept: clips.
        dropped, failed: clips by reason (for `failed`, the stage).
        kept_s: seconds of the kept clips.
        considered_s: seconds of all clips.
    """

    segment_id: str
    uri: str
    content_key: str
    start_s: float
    end_s: float | None
    size: int
    shard: str
    shard_size: int
    considered: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    considered_s: float = 0.0
    kept_s: float = 0.0

    def check(self) -> None:
        """The conservation law: clips considered = kept + dropped + failed, and there is at least one."""
        total = self.kept + sum(self.dropped.values()) + sum(self.failed.values())
        where = f"segment {self.segment_id} ({self.uri})"
        assert self.considered == total, f"{where}: {self.considered} clips considered, {total} with a verdict"
        assert total > 0, f"{where}: no clip"


class Ledger:
    """The ledger of the set at `root`."""

    def __init__(self, root: str | Path) -> None:
        self.folder = storage.local(root) / "ledger"

    def done(self) -> set[str]:
        """Ids of the committed segments."""
        try:
            with os.scandir(self.folder) as files:
                names = [file.name for file in files]
        except FileNotFoundError:
            return set()
        return {name.removesuffix(".json") for name in names if name.endswith(".json") and name[0] != "."}

    def commit(self, entry: Entry) -> None:
        """Write a segment's entry. Its shard and manifest part must stand before."""
        entry.check()
        text = json.dumps(asdict(entry), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
        with storage.whole(self.folder / f"{entry.segment_id}.json") as out:
            out.write(text.encode())

    def entry(self, segment_id: str) -> Entry:
        """The entry of a committed segment.

        Raises:
            ValueError: the segment is not committed.
        """
        try:
            text = (self.folder / f"{segment_id}.json").read_bytes()
        except FileNotFoundError:
            raise ValueError(f"segment {segment_id} is not committed in {self.folder.parent}") from None
        return Entry(**json.loads(text))

    def entries(self) -> list[Entry]:
        """Every committed segment, ordered by id."""
        return [self.entry(segment_id) for segment_id in sorted(self.done())]


def totals(entries: list[Entry]) -> dict:
    """The set's clip funnel, of which the conservation law holds by each entry's own check.

    Gives `segments`, `considered`, `kept`, `considered_s`, `kept_s`, and `dropped` and `failed` by reason.
    """
    dropped, failed = Counter[str](), Counter[str]()
    for entry in entries:
        entry.check()
        dropped.update(entry.dropped)
        failed.update(entry.failed)
    return {
        "segments": len(entries),
        "considered": sum(entry.considered for entry in entries),
        "kept": sum(entry.kept for entry in entries),
        "dropped": dict(sorted(dropped.items())),
        "failed": dict(sorted(failed.items())),
        "considered_s": round(sum(entry.considered_s for entry in entries), 3),
        "kept_s": round(sum(entry.kept_s for entry in entries), 3),
    }
