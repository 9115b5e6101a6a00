"""Distinct voices get different speakers, and no speaker is invented."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchaudio.transforms import MelSpectrogram

from captioning.hear.speakers import Speakers, cluster_voices, load_encoder
from captioning.hear.transcribe import name_speakers, speaker_of, voiced_spans
from captioning.hear.window import SAMPLE_RATE
from captioning.settings import SpeakerSettings
from data_prep.media.decode import decode_audio
from data_prep.scores.voice_activity import voice_probability
from tests.captioning.sounds import said

AUDIO = Path(__file__).parents[3].parent / "shared" / "media" / "audio"
shared = pytest.mark.skipif(not AUDIO.exists(), reason="shared/media/audio is not on this machine")


@pytest.fixture(scope="module")
def speakers() -> Speakers:
    return Speakers(SpeakerSettings())


def test_the_mel_is_librosas(speakers):
    voice = torch.from_numpy(said("Snow is cold."))
    parity = MelSpectrogram(
        16000, 400, hop_length=160, n_mels=40, norm="slaney", mel_scale="slaney", pad_mode="constant"
    )
    torch.testing.assert_close(speakers.encoder.mel(voice), parity(voice).T, rtol=1e-3, atol=1e-6)


def _voices(order: list[int], apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make embeddings of windows of 1.6 s every 0.16 s; each turn has 20 windows of one voice."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(4, 256))
    common = rng.normal(size=256)
    made = np.stack([common + apart * base[who] + 0.5 * rng.normal(size=256) for who in order for _ in range(20)])
    starts = np.arange(len(made)) * 0.16
    return made / np.linalg.norm(made, axis=1, keepdims=True), np.stack([starts, starts + 1.6], 1)


@pytest.mark.parametrize(("order", "count"), [([0, 1, 0, 1], 2), ([0, 1], 2), ([0, 1, 2, 0, 1, 2], 3)])
def test_voices_that_are_apart_are_told_apart(order, count):
    groups = cluster_voices(*_voices(order, 1.0), SpeakerSettings())
    assert len(set(groups)) == count
    assert all(len(set(groups[turn * 20 : turn * 20 + 20])) == 1 for turn in range(len(order)))


@pytest.mark.parametrize("seed", range(5))
def test_one_voice_is_not_two(seed):
    assert not cluster_voices(*_voices([0, 0, 0, 0], 1.0, seed), SpeakerSettings()).any()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_few_windows_are_one_voice(count):
    embeddings, times = _voices([0], 1.0)
    assert not cluster_voices(embeddings[:count], times[:count], SpeakerSettings()).any()


def test_words_have_the_speaker_of_their_turn():
    turns = [(0.0, 1.0, 1), (1.0, 2.0, 2), (2.0, 2.5, 3)]
    assert speaker_of(0.8, 1.5, turns) == 2
    assert speaker_of(2.6, 2.9, turns) == 3
    assert speaker_of(4.0, 5.0, turns) is None
    assert speaker_of(0.0, 1.0, []) is None
    heard = {"words": [{"word": w, "start": s, "end": s + 0.2} for w, s in (("a", 1.1), ("b", 2.1))], "speakers": []}
    name_speakers(heard, turns)
    assert [word["speaker"] for word in heard["words"]] == [1, 2], "numbered by who says the first word"
    assert [item["spans"] for item in heard["speakers"]] == [[[1.0, 2.0]], [[2.0, 2.5]]]
    alone = {"words": [{"word": "a", "start": 0.1, "end": 0.3}], "speakers": []}
    name_speakers(alone, turns)
    assert alone["speakers"] == []
    assert alone["words"][0]["speaker"] is None


@pytest.mark.parametrize("weights", ["./nowhere.pt", "pyannote:./nowhere"])
def test_missing_weights_name_the_setting(weights):
    with pytest.raises(ValueError, match=r"transcribe\.speakers\.weights.*nowhere"):
        Speakers(SpeakerSettings(weights=weights))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"model_state": {"linear.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt lacks"):
        load_encoder(str(tmp_path / "other.pt"))


def test_silence_has_no_speaker(speakers):
    assert speakers(np.zeros(SAMPLE_RATE, np.float32), []) == []
    assert speakers(np.zeros(3 * SAMPLE_RATE, np.float32), [(0.0, 3.0)]) == []


@shared
def test_diarization_error_beside_a_ground_truth(speakers):
    from pyannote.core import Annotation, Segment
    from pyannote.metrics.diarization import DiarizationErrorRate

    audio = decode_audio(str(AUDIO / "pyannote_sample.wav"), 0.0, 30.0, SAMPLE_RATE, 1)[0]
    truth, found = Annotation(), Annotation()
    for at, line in enumerate((AUDIO / "pyannote_sample.rttm").read_text().splitlines()):
        start, length, who = (line.split()[k] for k in (3, 4, 7))
        truth[Segment(float(start), float(start) + float(length)), at] = who
    for at, (start, end, who) in enumerate(speakers(audio, voiced_spans(voice_probability(audio), 0.5))):
        found[Segment(start, end), at] = str(who)
    # pyannote's collar is the full width: 0.25 s, half of it on either side of a boundary.
    error: Any = DiarizationErrorRate(collar=0.25)(truth, found)
    assert error <= 0.20


@shared
@pytest.mark.parametrize("name", ["jfk.flac", "deyu.wav"])
def test_one_person_is_not_told_as_two(speakers, name):
    audio = decode_audio(str(AUDIO / name), 0.0, 30.0, SAMPLE_RATE, 1)[0]
    assert speakers(audio, voiced_spans(voice_probability(audio), 0.5)) == []
