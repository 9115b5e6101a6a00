"""The index of an encoded set: a large one is converted once per machine, and reads the same as a small one."""

import multiprocessing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.dataset import index
from data_prep.dataset.index import INDEX_SCHEMA, read_index


def write(root: Path, samples: int, shards: int) -> pa.Table:
    root.mkdir(exist_ok=True)
    rows = [
        {
            "clip_id": f"clip{n:05}",
            "shard": f"shards/{n * shards // samples}.tar",
            "offset": 1000 * n,
            "size": 900 + n,
            "bucket": ["f9_h64_w64_a9", "f17_h64_w64_a18", "f9_h96_w64_a9"][n % 7 % 3],
            "video_tokens": 8,
            "audio_tokens": 9,
            "text_tokens": n % 11,
        }
        for n in range(samples)
    ]
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    pq.write_table(table, root / "index.parquet", row_group_size=100)
    return table


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "CACHE", tmp_path / "cache")


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_a_large_index_says_what_a_small_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(index, "_HELD_BYTES", held)
    table = write(tmp_path / "set", 730, shards=23)
    assert read_index(tmp_path / "set").cast(INDEX_SCHEMA).equals(table)
    assert (tmp_path / "cache" / "indexes").exists() == (held == 0)
    shorter = write(tmp_path / "set", 300, shards=5)
    assert read_index(tmp_path / "set").cast(INDEX_SCHEMA).equals(shorter)


def _read(root: Path, cache: Path) -> None:
    index.CACHE, index._HELD_BYTES = cache, 0
    assert read_index(root).num_rows == 5000


def test_many_processes_lay_an_index_out_once(tmp_path: Path) -> None:
    write(tmp_path / "set", 5000, shards=40)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read, args=(tmp_path / "set", tmp_path / "cache")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list((tmp_path / "cache" / "indexes").glob("*.arrow"))) == 1


def test_what_was_not_asked_for_in_a_month_leaves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(index, "_HELD_BYTES", 0)
    write(tmp_path / "first", 100, shards=4)
    first = read_index(tmp_path / "first")
    (laid_out,) = (tmp_path / "cache" / "indexes").glob("*.arrow")
    os.utime(laid_out, (0, 0))
    write(tmp_path / "second", 100, shards=4)
    read_index(tmp_path / "second")
    assert not laid_out.exists()
    assert first["clip_id"][99].as_py() == "clip00099"  # still mapped
