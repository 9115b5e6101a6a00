"""Inputs become segments in a stable order, or one plain error message."""

import csv
import io
import json
import math
import os
import tarfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.curation.spans import divide
from data_prep.dataset import storage
from data_prep.media.container import last_timestamp
from data_prep.media.write_mp4 import write_mp4
from data_prep.sources.listing import PART_BYTES, list_sources


@pytest.fixture
def folder(tmp_path):
    for name in ("b/two.MKV", "a.mp4", "b/c/three.webm", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_folders_are_read_through_and_sorted(folder):
    segments = list_sources([str(folder)])
    assert [segment.uri for segment in segments] == [str(folder / n) for n in ("a.mp4", "b/c/three.webm", "b/two.MKV")]
    assert [segment.size for segment in segments] == [5, 14, 9]
    assert len({segment.segment_id for segment in segments}) == 3
    assert list_sources([str(folder)]) == segments


def test_each_source_once_however_it_is_named(folder):
    (folder / "loop").symlink_to(folder)
    inputs = [str(folder / "a.mp4"), str(folder), str(folder / "*.mp4"), f"file://{folder}/a.mp4"]
    assert len(list_sources(inputs)) == 3


def test_globs(folder):
    assert [segment.uri for segment in list_sources([f"{folder}/**/*.webm"])] == [str(folder / "b/c/three.webm")]


def test_fsspec_uris():
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/set/x/one.mp4", b"1")
    system.pipe("/set/readme.md", b"2")
    (segment,) = list_sources(["memory://set"])
    assert segment.uri.startswith("memory://")
    assert segment.uri.endswith("set/x/one.mp4")


def test_mistakes_are_named_with_their_mend(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for wrong, message in [
        ([str(folder / "missing")], "missing' does not exist"),
        ([str(empty)], "holds no video"),
        ([f"{folder}/*.avi"], "matches no video"),
        ([str(folder / "notes.txt")], "not a video by its name"),
        ([], "no input"),
        (["nothing://bucket/x"], "cannot be listed"),
    ]:
        with pytest.raises(ValueError, match=message):
            list_sources(wrong)


def test_a_long_source_is_several_segments(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    write_mp4(tmp_path / "long.mp4", frames, 10, None, 16000)
    (segment,) = list_sources([str(tmp_path)])
    found = divide(segment, span_s=2.0)
    edges = [0.0, 5.9 / 3, 2 * 5.9 / 3, float("inf")]
    assert [(span.start_s, span.end_s) for span in found] == [
        (pytest.approx(a), pytest.approx(b)) for a, b in pairwise(edges)
    ]
    assert len({span.segment_id for span in found}) == 3


def test_a_large_source_is_several_segments(tmp_path):
    (tmp_path / "large.mp4").touch()
    os.truncate(tmp_path / "large.mp4", 3 * PART_BYTES - 1)
    segments = list_sources([str(tmp_path)])
    assert [(segment.part, segment.parts) for segment in segments] == [(0, 3), (1, 3), (2, 3)]
    assert len({segment.segment_id for segment in segments}) == 3


def test_the_parts_of_a_source_tile_it(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    write_mp4(tmp_path / "long.mp4", frames, 10, None, 16000)
    (whole,) = list_sources([str(tmp_path)])
    parts = [replace(whole, segment_id=f"{n}", size=1 << 40, part=n, parts=3) for n in range(3)]
    found = [span for part in parts for span in divide(part, span_s=1.0)]
    assert found[0].start_s == 0.0
    assert math.isinf(found[-1].end_s)
    assert all(one.end_s == other.start_s for one, other in pairwise(found))
    assert all(span.end_s - span.start_s <= 1.0 for span in found[:-1])
    assert len({span.segment_id for span in found}) == len(found) == 6
    # A source without a measurable length is left to its first part.
    (tmp_path / "text.mp4").write_text("no film")
    nothing = replace(whole, uri=str(tmp_path / "text.mp4"), size=1 << 40, parts=3)
    assert [(span.start_s, span.end_s) for span in divide(nothing, 1.0)] == [(0.0, math.inf)]
    with pytest.raises(ValueError, match="cannot be measured"):
        divide(replace(nothing, part=1), 1.0)


@pytest.fixture
def film(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    write_mp4(tmp_path / "film.mp4", frames, 10, None, 16000)
    return tmp_path / "film.mp4"


def test_members_of_a_tar_are_read_in_place(film, tmp_path):
    data = film.read_bytes()
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, content in [("a.json", b"{}"), ("a.mp4", data), ("x/b.mkv", b"no film"), ("b.txt", b"caption")]:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    first, second = list_sources([str(tmp_path / "shard.tar")])
    assert (first.size, second.size) == (len(data), len(b"no film"))
    with storage.open_read(first.uri) as file:
        assert file.read() == data
        file.seek(-5, os.SEEK_END)
        assert file.read(99) == data[-5:]
    with storage.open_read(second.uri) as file:
        assert file.read() == b"no film"
    assert last_timestamp(first.uri) == last_timestamp(str(film)) == pytest.approx(1.9)
    assert list_sources([first.uri])[0].uri == first.uri
    assert [segment.uri for segment in list_sources([str(tmp_path)])] == [str(film), first.uri, second.uri]
    cut = (tmp_path / "shard.tar").read_bytes()[: 512 * 3 + len(data) // 2]
    (tmp_path / "cut.tar").write_bytes(cut)
    assert len(list_sources([str(tmp_path / "cut.tar")])) <= 1
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        tar.add(film)
    with pytest.raises(ValueError, match="without compression"):
        list_sources([str(tmp_path / "zipped.tar")])


ROWS = [
    {"uri": "film.mp4", "start": 0.5, "end": 1.5, "caption": "ein Ball, grün"},
    {"uri": "film.mp4", "start": 1.5},
    {"uri": "s3://bucket/other.mp4", "size": 3 * PART_BYTES},
    {"uri": "/no/such.mp4"},
]


def _write_list(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list({name: 0 for row in rows for name in row}))
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_lists(suffix, film, tmp_path):
    rows = [{**dict.fromkeys(("uri", "start", "end", "caption", "size")), **row} for row in ROWS]
    segments = list_sources([_write_list(tmp_path / f"list.{suffix}", rows)])
    size = film.stat().st_size
    assert [(s.uri, s.start_s, s.end_s, s.size, s.caption, s.parts) for s in segments] == [
        (str(film), 0.5, 1.5, size, "ein Ball, grün", 1),
        (str(film), 1.5, math.inf, size, "", 1),
        *[("s3://bucket/other.mp4", 0.0, math.inf, 3 * PART_BYTES, "", 3)] * 3,
        ("/no/such.mp4", 0.0, math.inf, 0, "", 1),
    ]
    assert len({segment.segment_id for segment in segments}) == 6
    assert [(span.start_s, span.end_s) for span in divide(segments[0], 0.5)] == [(0.5, 1.0), (1.0, 1.5)]
    # A table in a folder may hold anything, so it is not read as a list.
    assert [segment.uri for segment in list_sources([str(tmp_path)])] == [str(film)]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"link": "a.mp4"}], r"has no column uri, url, path \(it has link\)"),
        ([{"path": "a.mp4"}, {"path": ""}], "row 2: no address"),
        ([{"url": "a.mp4", "start": 3.0, "end": 2.0}], "row 1: start 3 s, end 2 s; give 0 ≤ start < end"),
        ([{"url": "a.mp4", "start": "soon"}], "row 1: start 'soon' is not a number of seconds"),
    ],
)
def test_an_error_in_a_list_names_its_row(suffix, rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        list_sources([_write_list(tmp_path / f"list.{suffix}", rows)])


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_a_list_that_is_none(suffix, tmp_path):
    (tmp_path / f"list.{suffix}").write_bytes(b"\xff\xfe no list")
    with pytest.raises(ValueError, match=r"list\.(parquet is no|jsonl row 1|csv)"):
        list_sources([str(tmp_path / f"list.{suffix}")])
