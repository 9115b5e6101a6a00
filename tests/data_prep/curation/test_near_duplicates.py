"""A clip in another size and codec setting is a duplicate; the same picture with another sound is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.clip import Clip, Segment
from data_prep.curation import near_duplicates, scenes
from data_prep.curation.near_duplicates import find, from_text, picture_hash, picture_hashes, sound_hash, to_text
from data_prep.media.container import choose_streams, open_media
from data_prep.media.decode import decode_audio
from data_prep.media.thumbnails import Thumbnails
from data_prep.media.write_mp4 import write_mp4

RATE = 24000
HASHES = st.integers(0, 2**64 - 1)


def _film(seed: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Draw two seconds of slowly moving blobs at a size."""
    rng = np.random.default_rng(seed)
    spots = rng.random((6, 5))
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    y, x = y / size[0], x / size[1]
    frames = []
    for step in np.linspace(0, 1, 50):
        frame = np.full((*size, 3), 40.0)
        for centre_y, centre_x, width, speed, level in spots:
            far = (y - centre_y) ** 2 + (x - centre_x - 0.1 * speed * step) ** 2
            frame += 190 * level * np.exp(-far / (0.01 + 0.05 * width))[..., None]
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def _sound(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sound = np.zeros((2, 2 * RATE), np.float32)
    for start in rng.integers(0, 2 * RATE - 6000, 8):
        tone = np.sin(2 * np.pi * rng.uniform(200, 4000) * np.arange(6000) / RATE) * np.linspace(1, 0, 6000)
        sound[:, start : start + 6000] += 0.2 * tone.astype(np.float32)
    return sound


def _pictures(path) -> list[int]:
    packets = scenes.read_packet_index(path, 0.0, 2.0)
    assert packets is not None
    with open_media(path) as container:
        stream = choose_streams(container).video
        assert stream is not None
        return picture_hashes(Thumbnails(container, stream), packets.times[packets.key].tolist(), packets.step / 2)


def _row(path, clip_id: str, pixels: int) -> dict:
    mono = decode_audio(path, 0.0, 2.0, 16000, 1)[0]
    return {
        "clip_id": clip_id,
        "seconds": 2.0,
        "pixels": pixels,
        "pictures": _pictures(path),
        "sound": sound_hash(mono, 16000),
    }


def test_a_smaller_copy_is_a_duplicate_and_another_sound_is_none(tmp_path):
    rows = []
    for name, film, sound, size, crf in [
        ("original", 0, 0, (144, 256), 18),
        ("smaller", 0, 0, (96, 160), 34),
        ("other_sound", 0, 1, (144, 256), 18),
        ("other_picture", 2, 0, (144, 256), 18),
    ]:
        path = tmp_path / f"{name}.mp4"
        write_mp4(path, _film(film, size), 25, _sound(sound), RATE, crf=crf)
        rows.append(_row(path, name, size[0] * size[1]))
    assert all(row["pictures"] for row in rows)
    (double,) = find(rows)
    assert (double["clip_id"], double["duplicate_of"]) == ("smaller", "original")


def test_a_picture_without_content_has_no_hash():
    assert picture_hash(np.full((32, 32), 16.0)) is None


@given(HASHES, st.sets(st.integers(0, 63), max_size=near_duplicates.PICTURE_BITS))
def test_every_picture_within_the_bits_is_found(value, flipped):
    other = value
    for bit in flipped:
        other ^= 1 << bit
    rows = [
        {"clip_id": name, "seconds": 3.0, "pixels": 1, "pictures": [picture], "sound": 7}
        for name, picture in (("a", value), ("b", other))
    ]
    assert [row["clip_id"] for row in find(rows)] == ["b"]


@given(st.lists(st.tuples(HASHES, HASHES, st.integers(1, 3)), max_size=30))
def test_a_clip_that_stays_is_no_duplicate(clips):
    rows = [
        {"clip_id": f"{n}", "seconds": 3.0, "pixels": size, "pictures": [picture % 64], "sound": sound % 2}
        for n, (picture, sound, size) in enumerate(clips)
    ]
    found = find(rows)
    doubles = {row["clip_id"] for row in found}
    assert not doubles & {row["duplicate_of"] for row in found}
    assert find([row for row in rows if row["clip_id"] not in doubles]) == []
    assert find(list(reversed(rows))) == found


def test_an_embedding_finds_a_picture_whose_hash_differs():
    rng = np.random.default_rng(0)
    vectors = [vector / np.linalg.norm(vector) for vector in rng.standard_normal((200, 64)).astype(np.float32)]
    rows = [
        {"clip_id": f"{n:03}", "seconds": 3.0, "pixels": 1, "pictures": [int(rng.integers(2**63))], "sound": 7,
         "embedding": from_text(to_text(vector))}
        for n, vector in enumerate(vectors)
    ]  # fmt: skip
    cropped = {**rows[42], "clip_id": "cropped", "pictures": [int(rng.integers(2**63))]}
    cropped["embedding"] = 0.99 * vectors[42] + 0.02 * vectors[7]
    (double,) = find([*rows, cropped])
    assert (double["clip_id"], double["duplicate_of"]) == ("cropped", "042")
    assert double["picture_bits"] > near_duplicates.PICTURE_BITS
    assert double["picture_cosine"] == pytest.approx(0.99, abs=0.01)
    assert find([*rows, {**cropped, "sound": 2**63 - 1}]) == []
    assert find([*rows, {**cropped, "embedding": None}]) == []


def test_the_next_stage_drops_duplicates():
    clips = [Clip("a", 0.0, 2.0, media=b"x"), Clip("b", 2.0, 4.0, media=b"x")]
    segment = near_duplicates.without(Segment("s", "u", clips=clips), {"b": "a", "elsewhere": "a"})
    assert [(clip.verdict, clip.reason, clip.media) for clip in segment.clips] == [
        ("kept", "", b"x"),
        ("dropped", "near_duplicate", b""),
    ]


@pytest.mark.parametrize("samples", [1, 8, 1000])
def test_the_shortest_sounds_have_a_hash(samples):
    assert 0 <= sound_hash(np.random.default_rng(0).standard_normal(samples).astype(np.float32), 16000) < 2**64
