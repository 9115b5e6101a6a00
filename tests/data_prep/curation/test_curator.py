"""Curate complete sources: every one ends in verdicts, and they are right."""

import collections
import csv
import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_prep.clip import Segment, stable_id
from data_prep.curation.curator import Curator
from data_prep.curation.spans import content_key
from data_prep.dataset.shards import commit_segment
from data_prep.media.decode import decode_audio, decode_video, span
from data_prep.media.write_mp4 import write_mp4
from data_prep.settings import CurateSettings
from data_prep.sources.listing import list_sources
from tests.data_prep.media.marked_media import noise_sound, numbered_frame, write

SHARED = Path(__file__).parents[3].parent / "shared" / "media"
needs_media = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/media is not here")
RATE = 48000


@pytest.fixture(scope="module")
def curator():
    return Curator(CurateSettings())


def _knocks(seconds: float) -> np.ndarray:
    sound = np.zeros(round(seconds * RATE))
    decay = np.exp(-np.arange(9600) / 1500) * np.random.default_rng(0).standard_normal(9600)
    for at in np.arange(0.3, seconds - 0.3, 0.55):
        sound[round(at * RATE) : round(at * RATE) + 9600] += 0.3 * decay
    return np.tile(sound, (2, 1)).astype(np.float32)


def _video(path: Path, seconds: float, sound: np.ndarray | None) -> Segment:
    write_mp4(path, [numbered_frame(10)] * round(seconds * 25), 25, sound, RATE)
    return list_sources([str(path)])[0]


def test_a_kept_clip_is_complete(curator, tmp_path):
    (segment,) = curator([_video(tmp_path / "knocks.mp4", 4.0, _knocks(4.0))])
    (clip,) = segment.clips
    assert (clip.verdict, clip.sound_class, clip.start_s, clip.end_s) == ("kept", "environment", 0.0, 4.0)
    assert clip.clip_id == stable_id(segment.content_key, 0.0, 4.0)
    about = {"width": 128, "height": 64, "fps": 25.0, "frames": 100, "sample_rate": RATE, "duration": 4.0}
    assert {name: clip.info[name] for name in about} == about
    assert decode_video(clip.media, *span(clip))[0].shape == (100, 64, 128, 3)
    assert decode_audio(clip.media, *span(clip), RATE, 2).shape == (2, 4 * RATE)
    assert {"rms_db", "stationarity", "voice_ratio", "tag_event"} <= clip.scores.keys()
    assert commit_segment(tmp_path / "set", segment).entry.kept == 1


@pytest.mark.parametrize(
    ("name", "sound", "reason", "sound_class", "unmeasured"),
    [
        ("mute", None, "no_audio", "no_audio", "rms_db"),
        ("zero", np.zeros((2, 3 * RATE), np.float32), "silence", "silence", "stationarity"),
        ("faint", 0.0003 * noise_sound(3.0, RATE), "silence", "silence", "stationarity"),
        ("hiss", np.random.default_rng(0).normal(0, 0.05, (2, 3 * RATE)), "steady_noise", "noise", ""),
        ("tone", 0.2 * np.tile(np.sin(np.arange(3 * RATE) * 0.06), (2, 1)), "tone", "noise", ""),
    ],
)
def test_uninformative_sound_is_dropped_at_the_first_gate(
    curator, tmp_path, name, sound, reason, sound_class, unmeasured
):
    sound = None if sound is None else sound.astype(np.float32)
    (segment,) = curator([_video(tmp_path / f"{name}.mp4", 3.0, sound)])
    (clip,) = segment.clips
    assert (clip.verdict, clip.reason, clip.sound_class, clip.media) == ("dropped", reason, sound_class, b"")
    assert unmeasured not in clip.scores


def test_cuts_make_clips_that_tile_the_source(curator, tmp_path):
    rng = np.random.default_rng(1)
    shots = [np.repeat(np.repeat(rng.integers(0, 255, (8, 16, 3), dtype=np.uint8), 8, 0), 8, 1) for _ in range(3)]
    frames = [shot for shot, count in zip(shots, (75, 30, 350), strict=True) for shot in itertools.repeat(shot, count)]
    write_mp4(tmp_path / "a.mp4", frames, 25, _knocks(len(frames) / 25), RATE)
    (segment,) = curator(list_sources([str(tmp_path)]))
    spans = [(clip.start_s, clip.end_s) for clip in segment.clips]
    assert spans[0] == (0.0, 3.0)
    assert spans[1] == (3.0, 4.2)
    assert spans[-1][1] == pytest.approx(18.2)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
    assert [clip.reason for clip in segment.clips] == ["", "too_short", "", ""]
    for clip in segment.clips:
        if clip.kept:
            assert clip.info["frames"] == round((clip.end_s - clip.start_s) * 25)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    source = _video(tmp_path / "a.mp4", 3.0, _knocks(3.0))
    for name in ("one", "two"):
        (segment,) = Curator(CurateSettings())([source])
        commit_segment(tmp_path / name, segment)
    for part in ("shards", "manifest", "ledger"):
        (one,), (two,) = ((tmp_path / name / part).iterdir() for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_bad_sources_are_verdicts(curator, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video" * 100)
    whole = tmp_path / "whole.mp4"
    write_mp4(whole, [numbered_frame(3)] * 75, 25, _knocks(3.0), RATE)
    data = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    mixed = bytearray(data)
    for place in np.random.default_rng(0).integers(len(data) // 3, len(data), 400):
        mixed[place] ^= 0x5A
    (tmp_path / "flipped.mp4").write_bytes(bytes(mixed))
    segments = {Path(s.uri).name: s for s in curator([*list_sources([str(tmp_path)]), Segment("x", "/no/such.mp4")])}
    for name in ("empty.mp4", "text.mp4", "such.mp4"):
        (clip,) = segments[name].clips
        assert (clip.verdict, clip.reason) == ("failed", "read")
        assert clip.error
    assert segments["whole.mp4"].clips[0].kept
    for segment in segments.values():
        commit_segment(tmp_path / "set", segment)


def test_a_lying_timestamp_costs_no_memory(curator, tmp_path):
    times = [*(Fraction(k, 25) for k in range(100)), Fraction(90_000)]
    path = write(tmp_path / "liar.mp4", [numbered_frame(3)] * 101, _knocks(4.0), times=times)
    (segment,) = curator(list_sources([str(path)]))
    assert segment.clips[0].kept
    assert segment.clips[-1].end_s < 5


def test_no_clip_is_kept_without_its_picture(curator, tmp_path):
    """In FLV the picture begins after the sound, so that a seek to the start of the sound finds no picture."""
    path = write(
        tmp_path / "a.flv", [numbered_frame(3)] * 75, _knocks(3.0)[:, : 3 * 44100], rate=44100, codecs=("flv", "aac")
    )
    (segment,) = curator(list_sources([str(path)]))
    (clip,) = segment.clips
    assert (clip.verdict, clip.reason) == ("failed", "cut")
    assert "does not support 'flv' codec" in clip.error


def test_missing_weights_are_the_users_mistake():
    with pytest.raises(ValueError, match="tagger"):
        Curator(CurateSettings(tagger="/no/such/folder"))


@needs_media
def test_broken_files_end_in_verdicts(curator, tmp_path):
    segments = curator(list_sources([str(SHARED / "broken")]))
    assert len(segments) == 14
    for segment in segments:
        commit_segment(tmp_path, segment)


@needs_media
def test_real_clips_are_judged_as_labelled(curator):
    with (SHARED / "labels.tsv").open() as file:
        labels = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    verdicts = classes = 0
    for segment in list_sources([str(SHARED / "clips")]):
        (segment,) = curator([segment])
        label = labels[Path(segment.uri).name]
        kept = [clip for clip in segment.clips if clip.kept]
        seconds = collections.Counter()
        for clip in kept or segment.clips:
            seconds[clip.sound_class] += clip.end_s - clip.start_s
        verdicts += (label["verdict"] == "keep") == bool(kept)
        classes += label["class"] == seconds.most_common(1)[0][0]
    assert verdicts >= 25
    assert classes >= 24


@pytest.mark.parametrize("parts", [1, 2])
def test_a_long_source_is_read_in_spans(parts, tmp_path):
    """The clips of spans and of parts tile the source; each part is a separate segment."""
    whole = _video(tmp_path / "long.mp4", 14.0, _knocks(14.0))
    curator = Curator(CurateSettings(segment_s=3.0))
    segments = [replace(whole, segment_id=f"{part}", part=part, parts=parts) for part in range(parts)]
    done = curator([replace(segment, size=1 << 20) for segment in segments])
    assert [segment.segment_id for segment in done] == [f"{part}" for part in range(parts)]
    clips = [clip for segment in done for clip in segment.clips]
    assert (clips[0].start_s, clips[-1].end_s) == (0.0, 14.0)
    assert all(one.end_s == pytest.approx(other.start_s, abs=0.05) for one, other in itertools.pairwise(clips))
    assert max(clip.end_s - clip.start_s for clip in clips) <= 3.1
    assert [clip.verdict for clip in clips].count("kept") >= 4
    assert done[0].content_key == content_key(str(tmp_path / "long.mp4"))
    for segment in done:
        commit_segment(tmp_path / "set", segment)
