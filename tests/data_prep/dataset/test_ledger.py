"""A large ledger: a resume reads names only, and the entries are read from few files."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.clip import stable_id
from data_prep.dataset.compaction import SEGMENTS_PER_FILE
from data_prep.dataset.ledger import Entry, Ledger, totals

ROOT = Path(__file__).parents[3]


def _entry(number: int) -> Entry:
    uri, kept = f"s3://corpus/{number % 1000:03}/film{number:09}.mp4", number % 3
    dropped, failed = {"silence": 2}, {"read": 1} if number % 7 == 0 else {}
    considered = kept + 2 + len(failed)
    name = stable_id(uri, 1 << 20, 0.0, math.inf, 0, 1)
    shard = f"shards/{name}.tar" if kept else ""
    return Entry(name, uri, name[::-1], 0.0, None, 1 << 20, shard, 9, considered, kept, dropped, failed)


def _files(root: Path, entries: list[Entry]) -> None:
    """Write entries as files, without the flush to the disk that a real commit waits for."""
    (root / "ledger").mkdir(parents=True, exist_ok=True)
    for entry in entries:
        (root / "ledger" / f"{entry.segment_id}.json").write_bytes(entry.to_json())


def test_parts_say_what_the_entries_say(tmp_path):
    entries = [_entry(n) for n in range(30)]
    _files(tmp_path, entries)
    ledger = Ledger(tmp_path)
    ordered = sorted(entries, key=lambda entry: entry.segment_id)
    assert list(ledger.entries()) == ordered
    ledger.compact(entries[:10])
    ledger.compact(entries[10:20])
    assert list(ledger.entries()) == ordered
    ledger.tidy()
    assert list(ledger.entries()) == ordered
    assert totals(ledger.entries())["kept"] == sum(entry.kept for entry in entries)
    # Do not open the small files from here on: their names are enough.
    for entry in entries:
        (tmp_path / "ledger" / f"{entry.segment_id}.json").write_bytes(b"")
    assert list(ledger.entries()) == ordered


def test_the_small_files_are_the_truth(tmp_path):
    entries = [_entry(n) for n in range(6)]
    _files(tmp_path, entries)
    ledger = Ledger(tmp_path)
    ledger.compact(entries[:4])
    (tmp_path / "ledger" / f"{entries[0].segment_id}.json").unlink()
    assert {entry.segment_id for entry in ledger.entries()} == {entry.segment_id for entry in entries[1:]}
    again = Entry(**{**json.loads(entries[0].to_json()), "kept_s": 99.0})  # commit it again with another entry
    _files(tmp_path, [again])
    ledger.compact([again])
    for _ in range(2):
        assert [entry.kept_s for entry in ledger.entries() if entry.segment_id == again.segment_id] == [99.0]
        assert len(list(ledger.entries())) == 6
        ledger.tidy()


def test_an_entry_is_not_committed_twice_and_differently(tmp_path):
    ledger, entry = Ledger(tmp_path), _entry(1)
    ledger.commit(entry)
    ledger.commit(entry)
    with pytest.raises(FileExistsError, match="other bytes"):
        ledger.commit(Entry(**{**json.loads(entry.to_json()), "kept_s": 99.0}))
    assert ledger.entry(entry.segment_id) == entry


# ru_maxrss would include the test process that started this one; VmHWM counts this process only.
_RESUME = """
import json, re, sys, time
from data_prep.dataset.ledger import Ledger, totals
from data_prep.sources.listing import each_source
from pipelines.dataflow.prepare import _waves
began = time.monotonic()
ledger = Ledger(sys.argv[1])
left = total = 0
for wave, total in _waves(each_source([sys.argv[2]]), ledger.done()):
    left += len(wave)
known = time.monotonic() - began
counts = totals(ledger.entries())
print(json.dumps({"left": left, "total": total, "known_s": known, "totals_s": time.monotonic() - began - known,
    "rss": int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) << 10,
    "segments": counts["segments"]}))
"""


@pytest.mark.parametrize("count", [5_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_resume_knows_what_is_left(count, tmp_path):
    """`count` committed sources and a hundredth more listed ones; every tenth entry is in no compacted file yet."""
    ledger, listed = Ledger(tmp_path), tmp_path / "sources.jsonl"
    with listed.open("w") as out:
        for start in range(0, count, SEGMENTS_PER_FILE):
            entries = [_entry(n) for n in range(start, min(count, start + SEGMENTS_PER_FILE))]
            _files(tmp_path, entries)
            if start % (10 * SEGMENTS_PER_FILE):
                ledger.compact(entries)
            out.writelines(json.dumps({"uri": entry.uri, "size": entry.size}) + "\n" for entry in entries)
        for n in range(count, count + count // 100):
            out.write(json.dumps({"uri": _entry(n).uri, "size": 1 << 20}) + "\n")
    command = [sys.executable, "-c", _RESUME, str(tmp_path), str(listed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ))
    found = json.loads(done.stdout)
    print(found)
    assert (found["left"], found["total"], found["segments"]) == (count // 100, count + count // 100, count)
    assert found["known_s"] < 60
    assert found["rss"] < 2 << 30
