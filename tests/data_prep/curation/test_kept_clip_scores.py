"""Scores of kept clips, through the real loading code, with packaged weights or tiny untrained ones."""

import json
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest

from data_prep.curation.kept_clip_scores import KeptClipScorer
from data_prep.packaged_weights import resolve
from data_prep.scores.active_speaker import load_scorer, speaker_scores
from data_prep.scores.loudness import QUIETEST, loudness
from data_prep.scores.picture_quality import PROMPTS, PictureQuality
from data_prep.scores.speech_quality import load_speech_quality, speech_quality
from data_prep.scores.voice_activity import voice_probability
from data_prep.settings import KeptClipScoreSettings
from data_prep.synthetic.speech import speak

RATE = 32_000


def test_loudness_of_the_standards_tone():
    # BS.1770-4: a 1 kHz sine of full scale in one channel reads −3.01 LUFS.
    sine = np.sin(2 * np.pi * 997 * np.arange(5 * RATE) / RATE).astype(np.float32)
    assert loudness(np.stack([sine, np.zeros_like(sine)]), RATE) == pytest.approx(-3.01, abs=0.1)
    assert loudness(0.1 * np.stack([sine, sine]), RATE) == pytest.approx(-20.0, abs=0.1)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 7.23])
@pytest.mark.parametrize("beside", [0.0, 0.3])
def test_loudness_is_pyloudnorms(seconds, beside):
    """An intermittent sound, so that both gates of the standard act, with an inaudible rumble and offset."""
    rng, time_s = np.random.default_rng(0), np.arange(round(seconds * RATE)) / RATE
    sound = rng.standard_normal((2, len(time_s))) * [[0.1], [0.02]] * (np.sin(2 * np.pi * time_s / 1.7) > -0.2)
    sound = (sound + beside * np.sin(2 * np.pi * 12 * time_s) + beside / 2).astype(np.float32)
    expected = pyloudnorm.Meter(RATE).integrated_loudness(sound.T.astype(np.float64))
    assert loudness(sound, RATE) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("samples", [0, 100, 12_800, 13_000, 64_000])
def test_silence_has_the_least_loudness(samples):
    assert loudness(np.zeros((2, samples), np.float32), RATE) == QUIETEST


def _spoken() -> np.ndarray:
    said = speak("Bees make honey. The moon goes round the earth. Sound travels through air.")
    times = np.arange(int(said.seconds * 16000)) / 16000
    return 0.3 * np.interp(times, np.arange(len(said.samples)) / said.sample_rate, said.samples).astype(np.float32)


def test_speech_quality_falls_with_noise_and_needs_speech():
    network = load_speech_quality("package:dnsmos")
    clean = _spoken()
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    found = [speech_quality(sound, voice_probability(clean), network) for sound in (clean, clean + 0.03 * noise)]
    assert all(1 <= value <= 5 for scores in found for value in scores.values())
    assert found[0]["speech_background_mos"] > found[1]["speech_background_mos"] + 0.5
    assert found[0]["speech_overall_mos"] > found[1]["speech_overall_mos"] + 0.3
    assert speech_quality(noise, np.zeros(len(noise) // 512), network) == {}


def test_a_missing_network_is_named():
    with pytest.raises(ValueError, match="speech_quality '/no/such'"):
        KeptClipScorer(KeptClipScoreSettings(speech_quality="/no/such"))
    with pytest.raises(ValueError, match="active_speaker_weights ''"):
        KeptClipScorer(KeptClipScoreSettings(active_speaker="json:loads"))
    with pytest.raises(ValueError, match=r"picture_quality_weights '.*': no such file"):
        KeptClipScorer(
            KeptClipScoreSettings(picture_quality="ViT-B-32", picture_quality_weights="/no/such.safetensors")
        )
    assert resolve("package:dnsmos").endswith(".onnx")


@pytest.mark.parametrize(
    ("name", "said"),
    [("scorer", "module:factory"), ("no_such_module_here:make", "no_such_module_here"), ("json:no_such", "no_such")],
)
def test_an_active_speaker_scorer_that_cannot_be_made_is_named(name, said, tmp_path):
    (tmp_path / "weights").write_bytes(b"")
    with pytest.raises(ValueError, match=said):
        load_scorer(name, str(tmp_path / "weights"))


def test_an_untrained_sync_network_scores_a_span(tmp_path):
    from tests.data_prep.curation.tiny_syncnet import save

    save(tmp_path / "sync.safetensors", seed=0)
    scorer = load_scorer("tests.data_prep.curation.tiny_syncnet:load", str(tmp_path / "sync.safetensors"))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (30, 224, 224, 3), dtype=np.uint8)
    found = speaker_scores(scorer, frames, rng.standard_normal(19200).astype(np.float32))
    assert set(found) == {"untrained_sync_confidence", "untrained_sync_offset_s"}
    assert -0.6 <= found["untrained_sync_offset_s"] <= 0.6
    with pytest.raises(ValueError, match="nan"):
        speaker_scores(lambda frames, sound: {"x": float("nan")}, frames, np.zeros(1, np.float32))


def test_an_untrained_clip_model_scores_pictures_and_says_so(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    weights = tmp_path / "tiny.safetensors"
    save_file(open_clip.create_model("tiny-clip").state_dict(), weights, metadata={"untrained": "true"})
    frames = list(np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8))
    untrained = PictureQuality("tiny-clip", str(weights))
    found, embedding = untrained(frames)
    assert set(found) == {f"untrained_{name}" for name in PROMPTS}
    assert all(0 < value < 1 for value in found.values())
    save_file(open_clip.create_model("tiny-clip").state_dict(), tmp_path / "as_trained.safetensors")
    assert (embedding.shape, np.linalg.norm(embedding)) == ((32,), pytest.approx(1))
    trained = PictureQuality("tiny-clip", str(tmp_path / "as_trained.safetensors"))
    assert set(trained(frames)[0]) == set(PROMPTS)
    assert (untrained.untrained, trained.untrained) == (True, False)
    with pytest.raises(ValueError, match="knows no such model"):
        PictureQuality("no-such-model", str(Path(weights)))
