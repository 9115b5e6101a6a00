"""The scores of sounds with known properties."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.media.decode import read_sound
from data_prep.onnx_session import opened
from data_prep.packaged_weights import resolve
from data_prep.scores import audio_tags, sound
from data_prep.scores.voice_activity import voice_probability, weights
from data_prep.synthetic.sounds import add, impact
from data_prep.synthetic.sounds import noise as synthetic_noise
from data_prep.synthetic.speech import speak

SHARED = Path(__file__).parents[3].parent / "shared" / "media"
needs_media = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/media is not here")
RATE = sound.RATE
TIME = np.arange(4 * RATE) / RATE


def _noise(level: float = 0.05, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal((2, len(TIME)))).astype(np.float32)


def _both(mono: np.ndarray) -> np.ndarray:
    return np.tile(mono, (2, 1)).astype(np.float32)


def test_levels_of_a_sine():
    found = sound.level_scores(_both(0.5 * np.sin(2 * np.pi * 440 * TIME)), -55.0)
    assert found["rms_db"] == pytest.approx(-9.03, abs=0.02)
    assert found["peak_db"] == pytest.approx(-6.02, abs=0.02)
    assert found["active_s"] == pytest.approx(4.0)
    assert found["silence_ratio"] == 0.0
    assert found["stereo_width"] == pytest.approx(0.0, abs=1e-6)


def test_levels_of_silence_and_of_one_event_in_it():
    nothing = np.zeros((2, 4 * RATE), np.float32)
    found = sound.level_scores(nothing, -55.0)
    assert (found["digital_silence_ratio"], found["silence_ratio"], found["active_s"]) == (1.0, 1.0, 0.0)
    nothing[:, RATE : RATE + RATE // 2] = 0.3
    found = sound.level_scores(nothing, -55.0)
    assert found["active_s"] == pytest.approx(0.5)
    assert found["silence_ratio"] == pytest.approx(0.875)


def test_channels_of_opposite_sign_are_not_silence():
    one = 0.3 * np.sin(2 * np.pi * 300 * TIME)
    opposite = np.stack([one, -one]).astype(np.float32)
    assert sound.level_scores(opposite, -55.0)["active_s"] == pytest.approx(4.0)
    assert sound.level_scores(opposite, -55.0)["stereo_width"] == pytest.approx(1.0)
    assert np.abs(sound.louder_mix(opposite)).max() > 0.25


def test_clipping_is_counted():
    loud = np.clip(_both(3.0 * np.sin(2 * np.pi * 200 * TIME)), -1, 1)
    assert sound.level_scores(loud, -55.0)["clipped_ratio"] > 0.5


@pytest.mark.parametrize("level", [0.3, 0.05, 0.002])
def test_noise_is_stationary_at_any_level(level):
    found = sound.spectral_scores(_noise(level))
    assert found["stationarity"] > 0.85
    assert found["tone_ratio"] < 0.1
    assert found["wander"] == pytest.approx(1.0, abs=0.1)
    assert found["flatness"] > 0.9
    assert (found["salient_ratio"], found["prominent_s"]) == (0.0, 0.0)
    assert found["uneven_db"] < 0.4


def test_hum_and_tone_are_steady_lines():
    hum = np.sum([np.sin(2 * np.pi * 50 * n * TIME) / n for n in range(1, 8)], axis=0)
    found = sound.spectral_scores(_both(0.05 * hum) + _noise(0.001))
    assert found["tone_ratio"] > 0.8
    assert found["stationarity"] > 0.85
    tone = sound.spectral_scores(_both(0.1 * np.sin(2 * np.pi * 1000 * TIME)))
    assert tone["tone_ratio"] > 0.95
    assert tone["bandwidth_hz"] < 1200


def test_events_are_not_stationary():
    knocks = np.zeros(len(TIME))
    for at in (0.5, 1.2, 2.0, 2.9, 3.5):
        start = round(at * RATE)
        knocks[start : start + 3200] += np.exp(-np.arange(3200) / 600) * np.random.default_rng(1).standard_normal(3200)
    found = sound.spectral_scores(_both(0.2 * knocks) + _noise(0.0005))
    assert found["stationarity"] < 0.1
    assert found["onsets_per_s"] == pytest.approx(5 / 4, abs=0.5)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("colour", [0.0, 1.0])
def test_knocks_rise_out_of_noise_of_any_level(snr_db, colour):
    knocks = np.zeros(len(TIME), np.float32)
    for start in range(8000, len(TIME) - 8000, 20000):
        add(knocks, impact(np.random.default_rng(start), "wooden", 1.0, 1.0, RATE), start)
    loud = np.sqrt(np.percentile(np.square(knocks[: len(knocks) // 1600 * 1600].reshape(-1, 1600)).mean(1), 90))
    noise = loud / 10 ** (snr_db / 20) * synthetic_noise(np.random.default_rng(1), len(TIME), colour)
    found = sound.spectral_scores(_both(0.1 * (knocks + noise)))
    assert found["salient_ratio"] > 0.3
    assert found["prominent_s"] > 0.4
    alone = sound.spectral_scores(_both(0.1 * noise))
    assert alone["salient_ratio"] == 0.0
    assert alone["stationarity"] > 0.95


def test_noise_whose_level_breathes_has_no_salience():
    breathing = _noise() * 10 ** (1.5 * np.sin(2 * np.pi * TIME / 2) / 20)
    assert sound.spectral_scores(breathing.astype(np.float32))["salient_ratio"] == 0.0


def test_onsets_have_times():
    knocks = np.zeros((2, len(TIME)), np.float32)
    for at in (0.5, 1.5, 3.0):
        knocks[:, round(at * RATE) :][:, :3200] = np.random.default_rng(0).normal(0, 0.2, 3200)
    assert sound.onset_times(knocks) == pytest.approx([0.5, 1.5, 3.0], abs=0.03)
    assert len(sound.onset_times(knocks[:, :100])) == 0


def test_a_sentence_in_a_long_pause_is_tagged_as_speech():
    said = speak("Bees make honey.")
    mono = np.zeros(16000 * 20, np.float32)
    spoken = np.interp(np.arange(int(said.seconds * 16000)) / 16000, np.arange(len(said.samples)) / 22050, said.samples)
    mono[80000 : 80000 + len(spoken)] = 0.3 * spoken
    tagger = audio_tags.load_tagger("package:yamnet")
    assert sound.tag_scores(mono, tagger)[0]["tag_speech"] > 0.4


def test_quiet_sound_is_amplified_and_loud_sound_is_not():
    tone = np.sin(np.arange(16000) * 0.3).astype(np.float32)
    assert np.abs(sound.turned_up(0.5 * tone)).max() == pytest.approx(0.5, abs=1e-3)
    assert 20 * np.log10(np.sqrt(np.square(sound.turned_up(0.01 * tone)).mean())) == pytest.approx(-25, abs=0.2)
    assert not sound.turned_up(np.zeros(16000, np.float32)).any()
    assert len(sound.turned_up(tone[:5])) == 5


def test_bandwidth_of_narrow_sound():
    spectrum = np.fft.rfft(_noise()[0])
    spectrum[np.fft.rfftfreq(len(TIME), 1 / RATE) > 3400] = 0
    narrow = np.fft.irfft(spectrum, len(TIME))
    assert sound.spectral_scores(_both(narrow))["bandwidth_hz"] == pytest.approx(3400, abs=60)


@pytest.mark.parametrize("samples", [1, 100, 5000])
def test_the_shortest_sounds_are_measured_too(samples):
    short = _noise()[:, :samples]
    assert sound.level_scores(short, -55.0)
    assert sound.spectral_scores(short)
    assert len(voice_probability(short[0])) == -(-samples // 512)


def test_the_mel_front_end_follows_yamnet():
    mel = audio_tags.log_mel(np.zeros(16000, np.float32))
    assert mel.shape == (98, 64)
    assert mel[0, 0] == pytest.approx(np.log(0.001))
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    # 1,000 Hz is at 1,000 mel; the bands divide 185 to 2,787 mel in 65 equal steps.
    low, high = (1127 * np.log1p(edge / 700) for edge in (125.0, 7500.0))
    expected = (1127 * np.log1p(1000 / 700) - low) / ((high - low) / 65) - 1
    assert abs(int(audio_tags.log_mel(tone).mean(axis=0).argmax()) - expected) <= 0.6


def test_patches_cover_the_whole_sound():
    patches, begins = audio_tags.patches(np.zeros(16000 * 5, np.float32), 0.96)
    assert patches.shape[1:] == (96, 64)
    assert begins[0] == 0.0
    assert begins[-1] + 0.96 >= 4.5  # less than half a hop is not covered


def test_events_have_times():
    scores = np.zeros((4, 2), np.float32)
    scores[1:3, 1] = [0.5, 0.9]
    (tag,) = audio_tags.events(("a", "b"), scores, np.arange(4) * 0.96, 3.9, 0.2)
    assert (tag.label, tag.start_s, tag.end_s, tag.score) == ("b", 0.96, 2.88, 0.9)


@needs_media
def test_voice_and_tags_on_real_sound():
    tagger = audio_tags.load_tagger("package:yamnet")

    def heard(name: str):
        track = read_sound(SHARED / name, 0.0, 10.0, 16000, 1)
        assert track is not None
        scores, events = sound.tag_scores(track.samples[0], tagger)
        return scores | sound.voice_scores(voice_probability(track.samples[0])), {tag.label for tag in events}

    speech, labels = heard("audio/jfk.flac")
    assert speech["voice_ratio"] > 0.5
    assert speech["tag_speech"] > 0.8
    assert "Speech" in labels
    bird, labels = heard("clips/env_canary.mp4")
    assert bird["voice_ratio"] < 0.05
    assert bird["tag_event"] > 0.5
    assert "Bird" in labels
    assert heard("clips/music_harp.mp4")[0]["tag_music"] > 0.8


@pytest.mark.skipif(not (SHARED.parent / "models" / "yamnet").is_dir(), reason="shared/models is not here")
def test_the_quantised_tagger_agrees_with_the_float_one():
    sound_of = read_sound(SHARED / "clips" / "env_applause.mp4", 0.0, 10.0, 16000, 1)
    assert sound_of is not None
    patches, _ = audio_tags.patches(sound_of.samples[0], 0.96)
    packaged = audio_tags.load_tagger("package:yamnet")
    whole = audio_tags.load_tagger(str(SHARED.parent / "models" / "yamnet"))
    assert packaged.names == whole.names
    assert len(whole.names) == 521
    assert np.abs(packaged.scores(patches) - whole.scores(patches)).mean() < 0.003


@pytest.mark.parametrize("frames", [1, 600])
def test_voice_activity_is_what_the_packaged_network_says(frames):
    mono = np.random.default_rng(0).normal(0, 0.01, frames * 512 - 100).astype(np.float32)
    said = speak("Bees make honey.")
    spoken = np.interp(np.arange(0, said.seconds, 1 / 16000), np.arange(len(said.samples)) / 22050, said.samples)
    part = mono[6000:][: len(spoken)]
    part += 0.3 * spoken[: len(part)].astype(np.float32)
    frames_of = np.pad(mono, (0, 100)).reshape(frames, 512)
    before = np.concatenate([np.zeros((1, 64), np.float32), frames_of[:-1, -64:]])
    zero = np.zeros((1, 1, 128), np.float32)
    network = opened(str(weights()))
    inputs = {"input": np.concatenate([before, frames_of], axis=1), "h": zero, "c": zero}
    expected = np.asarray(network.run(None, inputs)[0]).reshape(-1)
    found = voice_probability(mono)
    assert np.abs(found - expected).max() < 1e-4
    assert (found.max() > 0.9) == (frames > 1)


def test_patches_are_tagged_alike_alone_and_in_batches():
    tagger = audio_tags.load_tagger("package:yamnet")
    network = opened(str(next(Path(resolve("package:yamnet")).glob("*.onnx"))))
    patches = np.random.default_rng(0).normal(-3, 2, (audio_tags.BATCH + 3, 96, 64)).astype(np.float32)
    scale, zero = tagger.input_scale, tagger.input_zero
    taken = np.clip(np.round(patches[:, None, None] / scale) + zero, 0, 255).astype(np.uint8)
    alone = np.concatenate([np.asarray(network.run(None, {network.get_inputs()[0].name: one})[0]) for one in taken])
    logits = tagger.output_scale * (alone.astype(np.float32) - tagger.output_zero)
    assert tagger.scores(patches) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 11, 78])
def test_the_tenth_percentile_is_numpys(rows):
    values = np.random.default_rng(rows).standard_normal((rows, 50)).astype(np.float32)
    assert sound._tenth(values) == pytest.approx(np.percentile(values, 10, axis=0), abs=1e-6)


def test_missing_weights_are_named():
    with pytest.raises(ValueError, match=r"package:yamnet or a folder"):
        audio_tags.load_tagger("/nowhere/at/all")
