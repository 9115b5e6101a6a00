"""Files of a set on a disk and in an object store: complete or absent, and read although requests fail."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.clip import Clip, Segment, stable_id
from data_prep.curation.curator import Curator
from data_prep.dataset import storage
from data_prep.dataset.index import build_index, read_index, read_manifest
from data_prep.dataset.ledger import Ledger
from data_prep.dataset.shards import commit_segment, read_segment
from data_prep.settings import CurateSettings
from data_prep.sources.listing import list_sources
from tests.data_prep.media.marked_media import noise_sound, numbered_frame, write
from tests.object_store import Faults, gs_server, s3_server


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults({})


@pytest.fixture(scope="module")
def store(faults: Faults):
    """The root of a set on an S3 server, for this process."""
    with pytest.MonkeyPatch.context() as patch, s3_server(faults) as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setattr(storage, "_READ_S", 1)
        storage.file_system.cache_clear()
        yield "s3://sets/data"
    storage.file_system.cache_clear()


@pytest.fixture(scope="module")
def google():
    """The root of a set on a server that speaks Google's protocol."""
    with pytest.MonkeyPatch.context() as patch, gs_server() as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        storage.file_system.cache_clear()
        yield "gs://sets/data"
    storage.file_system.cache_clear()


@pytest.fixture(params=["disk", "store", "google"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else f"{request.getfixturevalue(request.param)}/{tmp_path.name}"


def test_files_are_written_read_and_listed(root):
    path = storage.at(root, "folder", "a.bin")
    assert not storage.exists(path)
    assert storage.names(storage.at(root, "folder")) == []
    with pytest.raises(FileNotFoundError):
        storage.read(path)
    storage.put(path, b"0123456789")
    with storage.atomic_write(storage.at(root, "folder", "b.bin")) as out:
        out.write(b"second")
        assert not storage.exists(storage.at(root, "folder", "b.bin"))
    assert storage.exists(path)
    assert sorted(storage.names(storage.at(root, "folder"))) == ["a.bin", "b.bin"]
    assert storage.names(storage.at(root, "folder"), "b") == ["b.bin"]
    assert storage.read(path) == b"0123456789"
    assert storage.read_range(root, "folder/a.bin", 3, 4) == b"3456"
    with pytest.raises(ValueError, match="damaged"):
        storage.read_range(root, "folder/a.bin", 8, 4)
    with pytest.raises(ValueError, match="damaged"):
        storage.read_range(root, "folder/a.bin", 80, 4)
    with pytest.raises(ValueError, match="missing"):
        storage.read_range(root, "folder/c.bin", 0, 4)
    both = [path, storage.at(root, "folder", "b.bin")]
    assert list(storage.read_many(both)) == [b"0123456789", b"second"]
    with storage.open_read(path) as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"789"
    storage.remove(path)
    assert storage.names(storage.at(root, "folder")) == ["b.bin"]


def test_a_bucket_that_is_not_there_is_told(store):
    storage.check(store)
    with pytest.raises(ValueError, match=r"^s3://nowhere cannot be reached \(FileNotFoundError"):
        storage.check("s3://nowhere/set")


def test_what_fails_half_way_leaves_nothing(root):
    with pytest.raises(RuntimeError), storage.atomic_write(storage.at(root, "a.bin")) as out:  # noqa: PT012
        out.write(b"half")
        raise RuntimeError
    assert storage.names(root) == []


def test_once_means_once(root):
    path = storage.at(root, "entry.json")
    storage.put_once(path, b"one")
    storage.put_once(path, b"one")
    with pytest.raises(FileExistsError, match="other bytes"):
        storage.put_once(path, b"two")
    assert storage.read(path) == b"one"


def test_a_set_is_the_same_on_disk_and_store(store, tmp_path):
    info = {"bucket": "f49_h128_w192_a51", "video_tokens": 10, "audio_tokens": 51, "text_tokens": 7}
    for place in (str(tmp_path), f"{store}/same"):
        for n in range(3):
            clip = Clip(stable_id(n), 0.0, 2.0, media=b"film" * 500 * n, sample=b"tensors", info=info)
            other = Clip(stable_id(n, 1), 2.0, 4.0).dropped("silence")
            commit_segment(place, Segment(stable_id("segment", n), f"/media/{n}.mp4", clips=[clip, other]))
        build_index(place)
        assert len(list(Ledger(place).entries())) == 3
    there = f"{store}/same"
    assert read_manifest(there).equals(read_manifest(tmp_path))
    assert read_index(there).equals(read_index(tmp_path))
    for part in ("shards", "manifest", "ledger"):
        assert sorted(storage.names(storage.at(there, part))) == sorted(p.name for p in (tmp_path / part).iterdir())
        for file in (tmp_path / part).iterdir():
            assert storage.read(storage.at(there, part, file.name)) == file.read_bytes()
    segment_id = stable_id("segment", 2)
    assert read_segment(there, segment_id) == read_segment(tmp_path, segment_id)


def test_a_store_that_fails_is_asked_again(store, faults, monkeypatch):
    monkeypatch.setattr(faults, "rates", {"error": 0.1, "lost": 0.1, "slow": 0.05, "hang": 0.05})
    monkeypatch.setattr(faults, "hang_s", 3.0)
    for n in range(40):
        storage.put(f"{store}/again/{n:02}.bin", bytes([n]) * 1000)
        storage.put_once(f"{store}/once/{n:02}.bin", bytes([n]) * 1000)
    assert sorted(storage.names(f"{store}/again")) == [f"{n:02}.bin" for n in range(40)]
    paths = [f"{store}/once/{n:02}.bin" for n in range(40)]
    assert list(storage.read_many(paths)) == [bytes([n]) * 1000 for n in range(40)]
    for n in range(40):
        assert storage.read_range(store, f"again/{n:02}.bin", 10, 5) == bytes([n]) * 5
    print(dict(faults.met))
    assert min(faults.met[kind] for kind in ("error", "lost", "slow", "hang")) >= 1


def test_sources_on_a_store_are_curated_as_here(store, faults, tmp_path):
    frames = [numbered_frame(n) for n in (*range(50), *range(200, 250))]
    knocks = np.zeros((2, 4 * 48000), np.float32)
    for start in range(12000, 180000, 26400):
        knocks[:, start : start + 9600] = 0.3 * noise_sound(0.2, 48000, start) * np.exp(-np.arange(9600) / 1500)
    here = write(tmp_path / "film.mp4", frames, knocks)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(here, "film.mp4")
    curator = Curator(CurateSettings(clip_min_s=1.0))
    (expected,) = curator(list_sources([str(here)]))
    assert expected.clips[0].kept
    for name in ("film.mp4", "shard.tar"):
        storage.put(f"{store}/in/{name}", (tmp_path / name).read_bytes())
    (tmp_path / "list.jsonl").write_text(f'{{"uri": "{store}/in/film.mp4"}}\n')
    listed = list_sources([f"{store}/in", f"{store}/in/*.mp4", str(tmp_path / "list.jsonl")])
    assert [(s.uri.rpartition("/")[2], s.size) for s in listed] == [
        ("film.mp4", here.stat().st_size),
        ("shard.tar", here.stat().st_size),
    ]
    before = faults.met["well"]
    for segment in curator(listed):
        assert segment.clips == expected.clips
    print(f"{(faults.met['well'] - before) / 2} requests a source")


def test_ranges_are_read_into_what_is_given(root):
    storage.put(storage.at(root, "ranges/a.bin"), bytes(range(200)))
    storage.put(storage.at(root, "ranges/b.bin"), bytes(range(100, 200)))
    with storage.open_ranges(root, [("ranges/a.bin", 50, 100), ("ranges/b.bin", 10, 20)]) as (a, b):
        first, second, third = bytearray(30), bytearray(0), bytearray(20)
        a(5, [memoryview(first), memoryview(second), memoryview(third)])
        assert first + third == bytes(range(55, 105))
        b(0, [memoryview(third)])
    assert third == bytes(range(110, 130))
    with pytest.raises(ValueError, match=r"missing|damaged"), storage.open_ranges(root, [("ranges/c.bin", 0, 1)]):
        pass
    with pytest.raises(ValueError, match="damaged"), storage.open_ranges(root, [("ranges/b.bin", 90, 20)]) as (b,):
        b(0, [memoryview(bytearray(20))])


def test_a_file_that_is_written_anew_has_another_version(root):
    path = storage.at(root, "versions.bin")
    storage.put(path, b"one")
    before = storage.version(path)
    assert storage.version(path) == before
    storage.put(path, b"two")
    assert storage.version(path) != before
