"""What a person points at becomes segments, in a stable order, or one plain line."""

from itertools import pairwise

import numpy as np
import pytest

from data_prep.mp4 import write_mp4
from data_prep.sources import list_sources, spans


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
    for wrong, told in [
        ([str(folder / "missing")], "missing' does not exist"),
        ([str(empty)], "holds no video"),
        ([f"{folder}/*.avi"], "matches no video"),
        ([str(folder / "notes.txt")], "no video by its name"),
        ([], "no input"),
        (["nothing://bucket/x"], "cannot be listed"),
    ]:
        with pytest.raises(ValueError, match=told):
            list_sources(wrong)


def test_a_long_source_is_several_segments(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    write_mp4(tmp_path / "long.mp4", frames, 10, None, 16000)
    (segment,) = list_sources([str(tmp_path)])
    found = spans(segment, segment_s=2.0)
    edges = [0.0, 5.9 / 3, 2 * 5.9 / 3, float("inf")]
    assert [(span.start_s, span.end_s) for span in found] == [
        (pytest.approx(a), pytest.approx(b)) for a, b in pairwise(edges)
    ]
    assert len({span.segment_id for span in found}) == 3
