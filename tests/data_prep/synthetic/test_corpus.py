"""The synthetic corpus: its labels agree with the decoded files, and a rerun writes the same bytes."""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.media.decode import decode_audio, decode_video
from data_prep.settings import Mix, SynthSettings
from data_prep.synthetic import generate, labels
from data_prep.synthetic.corpus import kinds_of, make_clip
from data_prep.synthetic.speech import MEN, VOICES, WOMEN, speak

RATE = 48000
NONE = {name: 0.0 for name in Mix.model_fields}


def only(kind: str, **more) -> SynthSettings:
    return SynthSettings(**{"clips": 2, "seed": 5, "workers": 1, "mix": Mix(**{**NONE, kind: 1.0}), **more})


def one_of_each(clips: int = 13, **more) -> SynthSettings:
    return SynthSettings(
        **{"clips": clips, "seed": 3, "mix": Mix(**{name: 1.0 for name in NONE}), "workers": 2, **more}
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return generate(one_of_each(), tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def rows(corpus) -> dict[str, dict]:
    return {row["kind"]: row for row in pq.read_table(corpus / "labels.parquet").to_pylist()}


def heard(corpus: Path, row: dict) -> np.ndarray:
    return decode_audio(corpus / row["clip"], 0.0, row["duration_s"], RATE, 2)


def seen(corpus: Path, row: dict) -> np.ndarray:
    return decode_video(corpus / row["clip"], 0.0, row["duration_s"])[0]


def test_every_kind_has_its_row_and_its_streams(corpus, rows):
    assert set(rows) == set(NONE)
    assert pq.read_schema(corpus / "labels.parquet").remove_metadata() == labels.SCHEMA
    for kind, row in rows.items():
        with av.open(str(corpus / row["clip"])) as file:
            video = file.streams.video[0]
            assert (video.width, video.height, video.frames) == (192, 128, row["frames"])
            assert bool(file.streams.audio) == row["has_audio"] == (kind != "no_audio")
            if file.streams.audio:
                assert file.streams.audio[0].channels == 2
        assert row["duration_s"] == pytest.approx(row["frames"] / 24)
        assert row["verdict"] == ("keep" if row["sound_class"] in labels.INFORMATIVE else "drop")
        assert len(row["caption"]) > 20
        for event in row["events"]:
            assert 0 <= event["time_s"] < row["duration_s"]
            assert 0 <= event["x"] <= 1
    assert json.loads((corpus / "summary.json").read_text())["clips"] == 13


def test_uninformative_sound_is_what_it_says(corpus, rows):
    level = {
        kind: 20 * np.log10(np.sqrt((heard(corpus, rows[kind]) ** 2).mean()) + 1e-10)
        for kind in ("silence", "near_silent", "hiss", "hum", "tone", "speech")
    }
    assert level["silence"] < -150
    assert -82 < level["near_silent"] < -60
    assert all(level[kind] > -42 for kind in ("hiss", "hum", "tone", "speech"))
    spectrum = np.abs(np.fft.rfft(heard(corpus, rows["tone"])[0]))
    peak = np.argmax(spectrum) * RATE / heard(corpus, rows["tone"]).shape[1]
    assert f"{peak:.0f}" in rows["tone"]["caption"] or f"{peak + 1:.0f}" in rows["tone"]["caption"]


@pytest.mark.parametrize("kind", ["ball", "bars", "music", "clock"])
def test_a_sound_begins_where_its_label_says(kind, tmp_path):
    """Onsets in the decoded file: the energy in the 4 ms after a labelled time is far above that in the 4 ms before."""
    corpus = generate(only(kind), tmp_path)
    errors = []
    for row in pq.read_table(corpus / "labels.parquet").to_pylist():
        mono = np.abs(heard(corpus, row)).sum(axis=0)
        rising = np.convolve(mono**2, np.ones(48) / 48, "same")
        gain = np.log(rising[96:] + 1e-8) - np.log(rising[:-96] + 1e-8)  # over 2 ms, at its middle
        times = sorted({event["time_s"] for event in row["events"]})
        assert times
        for time in times:
            first = round((time - 0.012) * RATE)
            errors.append((np.argmax(gain[first : first + round(0.024 * RATE)]) + 48 + first) / RATE - time)
    errors = np.abs(errors)
    assert np.median(errors) < 0.002
    assert np.quantile(errors, 0.9) < 0.006


def test_the_ball_is_lowest_on_the_frame_of_each_impact(tmp_path):
    corpus = generate(only("ball"), tmp_path)
    for row in pq.read_table(corpus / "labels.parquet").to_pylist():
        y = np.array(row["positions"][0]["y"])
        frames = [round(event["time_s"] * 24) for event in row["events"]]
        assert frames
        for k in frames:
            assert y[k] == pytest.approx(y.max(), abs=1e-4)
            assert y[k - 1] < y[k]
        # The ball is where its label says: there the picture changes most from frame to frame.
        pictures = seen(corpus, row).astype(np.float32).mean(axis=3)
        if "camera pans" in row["caption"]:
            continue
        x = np.array(row["positions"][0]["x"])
        for i in range(4, len(pictures) - 1, 7):
            change = np.abs(pictures[i + 1] - pictures[i])
            across, down = change.sum(axis=0), change.sum(axis=1)
            # The centre of the change: two positions of the ball, and the shadow below it.
            assert abs(np.average(np.arange(192), weights=across**2) / 192 - (x[i] + x[i + 1]) / 2) < 0.08
            assert np.average(np.arange(128), weights=down**2) / 128 > y[i] - 0.15


def test_a_struck_bar_lights_up_on_the_frame_of_its_sound():
    settings = only("bars")
    for index in range(2):
        truth, frames, _ = make_clip(settings, index, "bars")
        height = truth["positions"][0]["y"]
        for event in truth["events"]:
            k, x = round(event["time_s"] * 24), round(event["x"] * 192)
            part = frames[:, 45:110, max(0, x - 5) : x + 6].astype(np.float32)
            change = np.abs(np.diff(part, axis=0)).mean(axis=(1, 2, 3))
            assert change[k - 1] > 3
            assert height[k] == pytest.approx(max(height), abs=1e-4)  # the mallet is down
            assert height[k - 1] < height[k] - 0.01


def test_words_are_where_the_voice_is(corpus, rows):
    row = rows["speech"]
    mono = heard(corpus, row).sum(axis=0)
    assert row["transcript"] in row["caption"]
    spoken = [word["word"] for word in row["words"]]
    assert spoken == row["transcript"].replace(".", "").split()
    inside = np.zeros(len(mono), bool)
    for word in row["words"]:
        part = slice(round(word["start_s"] * RATE), round(word["end_s"] * RATE))
        inside[part] = True
        assert 0.03 < word["end_s"] - word["start_s"] < 1.5
        assert np.sqrt((mono[part] ** 2).mean()) > 0.02, word
    assert np.sum(mono[inside] ** 2) > 0.97 * np.sum(mono**2)


def test_the_mouth_opens_with_the_voice():
    truth, frames, audio = make_clip(only("speech"), 1, "speech")  # without a beard, as dark as a mouth
    assert audio is not None
    place = truth["positions"][0]
    moving = []
    for i, (x, y) in enumerate(zip(place["x"], place["y"], strict=True)):
        at_x, at_y = round(x * 192), round(y * 128)
        mouth = frames[i, at_y - 10 : at_y + 11, at_x - 8 : at_x + 9]
        moving.append((mouth.max(axis=2) < 80).mean())  # the dark inside of the open mouth
    loud = [np.abs(audio[:, max(0, i * 2000 - 1000) : i * 2000 + 1000]).mean() for i in range(len(frames))]
    assert np.corrcoef(moving, loud)[0, 1] > 0.5


def test_sound_follows_the_picture_from_side_to_side(tmp_path):
    corpus = generate(only("ball", clips=6), tmp_path)
    x, balance = [], []
    for row in pq.read_table(corpus / "labels.parquet").to_pylist():
        audio = heard(corpus, row)
        for event in row["events"]:
            part = audio[:, round(event["time_s"] * RATE) : round((event["time_s"] + 0.03) * RATE)]
            left, right = np.sqrt((part**2).mean(axis=1))
            x.append(event["x"])
            balance.append(np.arctan2(right, left) / (np.pi / 2))
    assert np.ptp(x) > 0.4
    assert np.corrcoef(x, balance)[0, 1] > 0.95
    assert np.abs(np.array(x) - balance).mean() < 0.12


def test_a_cut_is_a_jump_on_its_frame(corpus, rows):
    row = rows["cuts"]
    assert row["cuts_s"]
    assert [shot["start_s"] for shot in row["shots"]] == [0.0, *row["cuts_s"]]
    pictures = seen(corpus, row).astype(np.float32)
    change = np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2, 3))
    largest = np.sort(np.argsort(change)[-len(row["cuts_s"]) :] + 1)
    assert list(largest) == [round(cut * 24) for cut in row["cuts_s"]]


def test_the_same_seed_gives_the_same_bytes_and_a_clip_knows_nothing_of_the_others(corpus, tmp_path):
    fewer = generate(one_of_each(clips=5, workers=1), tmp_path / "fewer")
    for k in range(5):
        name = f"clips/{k:06d}.mp4"
        assert (fewer / name).read_bytes() == (corpus / name).read_bytes()
    few, many = (pq.read_table(d / "labels.parquet").to_pylist() for d in (fewer, corpus))
    assert few == many[:5]
    other = generate(one_of_each(clips=1, seed=4, workers=1), tmp_path / "other")
    assert (other / "clips/000000.mp4").read_bytes() != (corpus / "clips/000000.mp4").read_bytes()


def test_speech_is_a_function_of_its_arguments_alone():
    voices = (MEN[0], WOMEN[1], WOMEN[3])
    first = [speak("Snow is cold.", voice) for voice in voices]
    speak("Something else altogether, said in between.", MEN[2], 1.2, 0.9)
    for before, voice in zip(first, voices, strict=True):
        again = speak("Snow is cold.", voice)
        assert np.array_equal(before.samples, again.samples)
        assert before.words == again.words
    assert [word.word for word in first[0].words] == ["Snow", "is", "cold"]
    assert len({said.samples.tobytes() for said in first}) == len(voices)


def test_what_cannot_be_spoken_word_for_word_is_refused():
    with pytest.raises(ValueError, match="no voice"):
        speak("Snow is cold.", "nobody")
    with pytest.raises(ValueError, match="word for word"):
        speak("In 1815 it was cold.")


@pytest.mark.parametrize("voice", VOICES)
def test_a_voice_has_its_pitch_and_words_lie_where_they_sound(voice):
    said = speak("The sun, the moon, the stars.", voice)
    starts, ends = ([getattr(word, name) for word in said.words] for name in ("start_s", "end_s"))
    assert 0 <= starts[0] < 0.06
    assert said.seconds - 0.1 < ends[-1] <= said.seconds
    assert all(0.02 < end - start < 0.9 for start, end in zip(starts, ends, strict=True))
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    hertz = _pitch(said, said.words[3])  # a vowel between nasals: voiced throughout
    middle = 205 * VOICES[voice][0]
    assert 0.75 * middle < hertz < 1.35 * middle


def _pitch(said, word):
    """Pitch at the middle of a word, by autocorrelation, Hz."""
    rate = said.sample_rate
    middle = round((word.start_s + word.end_s) / 2 * rate)
    part = said.samples[middle - rate // 25 : middle + rate // 25]
    alike = np.correlate(part, part, "full")[len(part) - 1 :]
    return rate / (rate // 330 + int(alike[rate // 330 : rate // 70].argmax()))


def test_what_is_whole_is_not_made_again(tmp_path):
    settings = only("silence", clips=3, seconds_max=2.3)
    generate(settings, tmp_path)
    files = [tmp_path / f"clips/{k:06d}.mp4" for k in range(3)]
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    files[1].unlink()
    (tmp_path / "labels.parquet").unlink()
    seen_progress = []
    more = settings.model_copy(update={"clips": 4})
    generate(more, tmp_path, lambda stage, done, total: seen_progress.append((stage, done, total)))
    assert seen_progress == [("synth", 2, 4), ("synth", 3, 4), ("synth", 4, 4)]
    assert files[0].stat().st_mtime_ns == before[0][0]
    assert files[1].read_bytes() == before[1][1]
    assert pq.read_table(tmp_path / "labels.parquet").num_rows == 4
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()]


def test_a_folder_of_another_corpus_is_refused(tmp_path):
    settings = only("silence", seconds_max=2.3)
    generate(settings, tmp_path)
    with pytest.raises(ValueError, match="another output folder"):
        generate(settings.model_copy(update={"seed": 6}), tmp_path)
    with pytest.raises(ValueError, match="ask for at least 2"):
        generate(settings.model_copy(update={"clips": 1}), tmp_path)


def test_every_beginning_of_a_corpus_holds_the_mix():
    kinds = kinds_of(SynthSettings(clips=200))
    mix = Mix().model_dump()
    for count in (25, 100, 200):
        for name, share in mix.items():
            assert abs(kinds[:count].count(name) - share / sum(mix.values()) * count) < 2


def test_settings_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="seconds_max"):
        SynthSettings(seconds_min=3, seconds_max=2)
    with pytest.raises(ValueError, match="every share"):
        Mix(**NONE)
    with pytest.raises(ValueError, match="sample_rate"):
        SynthSettings(sample_rate=11000)
    with pytest.raises(ValueError, match="multiple"):
        SynthSettings(width=193)


@pytest.mark.parametrize(("fps", "size", "rate"), [(30.0, (256, 144), 44100), (25.0, (128, 192), 24000)])
def test_other_formats(fps, size, rate):
    settings = SynthSettings(width=size[0], height=size[1], fps=fps, sample_rate=rate, seconds_max=2.4)
    for kind in NONE:
        truth, frames, audio = make_clip(settings, 0, kind)
        assert frames.shape == (truth["frames"], size[1], size[0], 3)
        if audio is not None:
            assert audio.shape == (2, round(truth["frames"] / fps * rate))
            assert np.abs(audio).max() <= 0.99
