"""The commit of a segment: its bytes, the order of the files, byte ranges, and what a crash leaves."""

import hashlib
import io
import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from webdataset.compat import WebDataset

from data_prep.clip import Clip, Segment, Tag
from data_prep.dataset import shards, storage
from data_prep.dataset.index import build_index, read_index, read_manifest
from data_prep.dataset.ledger import Entry, Ledger, totals


def _segment(name: str = "s1") -> Segment:
    clips = [
        Clip("b" * 20, 5.0, 9.0, scores={"rms_db": -20.0}, tags=[Tag("Dog", 0.5, 1.0, 0.9)], media=b"second" * 99),
        Clip("a" * 20, 0.0, 5.0, media=b"first", info={"fps": 24.0}, caption={"text": "Ein Hund bellt, grün."}),
        Clip("c" * 20, 9.0, 12.0).dropped("silence"),
        Clip("d" * 20, 12.0, 13.0).failed("tags", ValueError("no sound")),
    ]
    return Segment(name, f"/media/{name}.mp4", size=10, content_key="k", clips=clips)


def _digests(root) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_segment_comes_back_as_it_was_committed(tmp_path):
    segment = _segment()
    entry = shards.commit_segment(tmp_path, segment).entry
    assert (entry.considered, entry.kept, entry.dropped, entry.failed) == (4, 2, {"silence": 1}, {"tags": 1})
    assert entry.kept_s == 9.0
    back = shards.read_segment(tmp_path, "s1")
    assert back == replace(segment, clips=sorted(segment.clips, key=lambda clip: clip.start_s))
    assert math.isinf(back.end_s)
    assert all(clip.media == b"" for clip in shards.read_segment(tmp_path, "s1", media=False).clips)


def test_the_tar_is_a_webdataset_with_sorted_members_and_no_clock(tmp_path):
    shards.commit_segment(tmp_path, _segment())
    with tarfile.open(tmp_path / "shards/s1.tar") as tar:
        names = tar.getnames()
        assert names == sorted(names)
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar.getmembers()} == {(0, 0, 0, 0o644)}
    samples = list(WebDataset(str(tmp_path / "shards/s1.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["a" * 20, "b" * 20]
    assert samples[0]["mp4"] == b"first"
    assert json.loads(samples[0]["caption.json"])["text"] == "Ein Hund bellt, grün."
    assert "caption.json" not in samples[1]


def test_bytes_are_a_function_of_the_clips(tmp_path):
    shards.commit_segment(tmp_path / "one", _segment())
    shuffled = _segment()
    shuffled.clips.reverse()
    shards.commit_segment(tmp_path / "two", shuffled)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    before = _digests(tmp_path / "one")
    shards.commit_segment(tmp_path / "one", _segment())
    assert _digests(tmp_path / "one") == before


def test_nothing_kept_needs_no_tar(tmp_path):
    entry = shards.commit_segment(tmp_path, Segment("s2", "/media/x.mp4").failed("read", "truncated")).entry
    assert entry.shard == ""
    assert not (tmp_path / "shards").exists()
    (clip,) = shards.read_segment(tmp_path, "s2").clips
    assert (clip.verdict, clip.reason, clip.error, clip.media) == ("failed", "read", "truncated", b"")


def test_members_are_read_by_byte_range(tmp_path):
    shards.commit_segment(tmp_path, _segment())
    for row in read_manifest(tmp_path).to_pylist():
        data = shards.read_member(tmp_path, row["shard"], row["media_offset"], row["media_size"])
        assert data == {"a": b"first", "b": b"second" * 99}.get(row["clip_id"][0], b"")
    with pytest.raises(ValueError, match="damaged"):
        shards.read_member(tmp_path, "shards/s1.tar", 1 << 20, 5)
    with pytest.raises(ValueError, match="missing"):
        shards.read_member(tmp_path, "shards/nothing.tar", 0, 5)


def test_a_segment_without_its_verdicts_is_not_committed(tmp_path):
    for broken in (
        replace(_segment(), clips=[]),
        replace(_segment(), clips=[Clip("a" * 20, 0, 1)]),
        replace(_segment(), clips=[Clip("a" * 20, 0, 1, verdict="dropped")]),
        replace(_segment(), clips=[Clip("a" * 20, 0, 1, media=b"x"), Clip("a" * 20, 1, 2, media=b"x")]),
    ):
        with pytest.raises(AssertionError):
            shards.commit_segment(tmp_path, broken)
    assert Ledger(tmp_path).done() == set()


def test_the_ledger_is_written_last(tmp_path, monkeypatch):
    written = []
    real = storage.atomic_write

    def watched(path):
        written.append(Path(path).parent.name)
        return real(path)

    monkeypatch.setattr(storage, "atomic_write", watched)
    shards.commit_segment(tmp_path, _segment())
    assert written == ["shards", "manifest", "ledger"]


def test_a_half_written_file_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), storage.atomic_write(tmp_path / "a.bin") as out:  # noqa: PT012
        out.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_tar_has_whole_records():
    out = io.BytesIO()
    ranges = shards.write_tar(out, [("b.x", b"12345"), ("a.x", b"")])
    assert len(out.getvalue()) % tarfile.RECORDSIZE == 0
    offset, size = ranges["b.x"]
    assert out.getvalue()[offset : offset + size] == b"12345"


def test_conservation_is_checked_at_commit(tmp_path):
    entry = Entry("s", "u", "", 0.0, None, 0, "", 0, considered=3, kept=1, dropped={"silence": 1})
    with pytest.raises(AssertionError, match="3 clips considered, 2 with a verdict"):
        Ledger(tmp_path).commit(entry)
    assert Ledger(tmp_path).done() == set()


def test_the_funnel_of_a_set(tmp_path):
    for name in ("s1", "s2"):
        shards.commit_segment(tmp_path, replace(_segment(name), segment_id=name))
    (tmp_path / "ledger" / ".s3.json.tmp").write_text("leftover")
    ledger = Ledger(tmp_path)
    assert ledger.done() == {"s1", "s2"}
    funnel = totals(ledger.entries())
    assert funnel["considered"] == 8 == funnel["kept"] + 2 + 2
    assert funnel["dropped"] == {"silence": 2}
    assert funnel["considered_s"] == 26.0
    with pytest.raises(ValueError, match="not committed"):
        ledger.entry("s9")


def test_manifest_and_index_follow_the_ledger(tmp_path):
    with pytest.raises(ValueError, match="no committed segment"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="kinotone encode"):
        read_index(tmp_path)
    shards.commit_segment(tmp_path, _segment("s1"))
    info = {"bucket": "f49_h128_w192_a51", "video_tokens": 10, "audio_tokens": 51, "text_tokens": 7}
    clips = [Clip("e" * 20, 0, 2, sample=b"tensors", info=info), Clip("f" * 20, 2, 4).dropped("silence")]
    shards.commit_segment(tmp_path, Segment("s2", "/media/s2.mp4", clips=clips))
    (tmp_path / "manifest" / "s3.parquet").write_bytes(b"a killed run's leftover")
    assert read_manifest(tmp_path).num_rows == 6
    assert build_index(tmp_path) == f"{tmp_path}/index.parquet"
    (row,) = read_index(tmp_path).to_pylist()
    assert row["clip_id"] == "e" * 20
    assert row["bucket"] == info["bucket"]
    assert shards.read_member(tmp_path, row["shard"], row["offset"], row["size"]) == b"tensors"
    (tmp_path / "manifest" / "s1.parquet").unlink()
    with pytest.raises(ValueError, match="incomplete"):
        read_manifest(tmp_path)
