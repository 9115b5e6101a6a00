"""Compare transcripts of real clips with what is known of them; needs `shared/media`."""

from pathlib import Path

import pytest

from benchmarks.caption import word_errors
from captioning.hear.text_normalisation import normalise
from captioning.hear.window import SAMPLE_RATE
from data_prep.media.decode import decode_audio

MEDIA = Path(__file__).parents[2].parent / "shared" / "media"
pytestmark = pytest.mark.skipif(not MEDIA.exists(), reason="shared/media is not on this machine")
LTX2_LINE = "That's it. Dad's lost it and we've lost it. Stop being so dramatic, Jess."


def heard(captioner, name: str, seconds: float) -> dict:
    return captioner.measurer.transcriber([decode_audio(str(MEDIA / name), 0.0, seconds, SAMPLE_RATE, 1)[0]])[0]


def test_the_line_of_a_generated_clip(captioner):
    found = heard(captioner, "clips/speech_en_ltx2_generated.mp4", 5.0)
    wanted = normalise(LTX2_LINE)
    assert word_errors(wanted, normalise(found["text"])) <= 0.1 * len(wanted)


@pytest.mark.parametrize(("name", "language"), [("audio/deyu.wav", "de"), ("clips/speech_fr_slime_60fps.mp4", "fr")])
def test_languages_are_recognised(captioner, name, language):
    found = heard(captioner, name, 24.0)
    assert found["language"] == language
    assert found["language_probability"] >= 0.5
    assert found["words"]


# Clips in which nobody speaks. (env_pancake_kitchen is left out: a few words are said in it.)
_WORDLESS = (
    *(f"clips/{name}" for name in ("env_hammer.mp4", "env_dog_bark_short.mp4", "env_canary.mp4", "env_applause.mp4")),
    *(f"clips/{name}" for name in ("env_waterfall_720p.mp4", "env_train_station_60fps.mp4", "music_bbb_51ch_30s.mp4")),
    *(f"clips/{name}" for name in ("music_piano_chaplin_bw.mp4", "music_harp.mp4", "music_drums.mp4")),
    *(f"clips/{name}" for name in ("noise_hiss_crystal.mp4", "noise_tone_sine.ts", "silent_track_earth.mp4")),
    *("clips/silent_track_greatwall.mp4", "audio/esc_3-103051-C-19.wav", "audio/noise2.wav"),
)


def test_no_speech_is_invented_where_nobody_speaks(captioner):
    clips = [decode_audio(str(MEDIA / name), 0.0, 12.0, SAMPLE_RATE, 1)[0] for name in _WORDLESS]
    for name, found in zip(_WORDLESS, captioner.measurer.transcriber(clips), strict=True):
        assert found["text"] == "", name
        assert found["words"] == [], name
