import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

from captioning.grounding.checker import ground, unsupported_claims
from captioning.hear.text_normalisation import normalise
from captioning.hear.transcribe import Transcriber, repeats, transcript, voiced_spans
from captioning.hear.window import SAMPLE_RATE, Window
from captioning.settings import TranscribeSettings
from captioning.write.compose import Facts, compose
from data_prep.clip import Tag
from data_prep.media.decode import decode_audio
from tests.captioning.sounds import chord, noise, said

JFK = Path(__file__).parents[3].parent / "shared" / "media" / "audio" / "jfk.flac"
SENTENCE = "Paper is made from wood. Glass is made from sand."


class Heard(Window):
    """What Whisper answered for one window: a good answer, but for the changes."""

    def __init__(self, text="we went down to the river", compression_ratio=1.0, **changes):
        words = [
            {"word": word, "start": 0.4 * i, "end": 0.4 * i + 0.3, "confidence": 0.9}
            for i, word in enumerate(text.split())
        ]
        super().__init__(0, 0.0, 3.0, [(0.0, 3.0)], text, words, "en", 0.99, -0.1, 0.01)
        self.__dict__.update(changes, ratio=compression_ratio)

    @property
    def compression_ratio(self):
        return self.__dict__["ratio"]


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (Heard(), ""),
        (Heard(text=""), "no_words"),
        (Heard(text="..."), "no_words"),
        (Heard(compression_ratio=3.0), "compression_ratio"),
        (Heard(text="go on go on go on go on"), "repeated_phrase"),
        (Heard(log_probability=-0.9), "log_probability"),
        (Heard(no_speech_probability=0.9, log_probability=-0.3), "no_speech"),
        (Heard(no_speech_probability=0.9, log_probability=-0.1), ""),
        (Heard(text="one two three four five six", voiced=[(0.0, 0.4)]), "pace"),
        (Heard(language_probability=0.3), "language"),
        (Heard(language_probability=None), ""),
    ],
)
def test_each_filter_removes_and_counts_what_it_is_for(window, reason):
    result = transcript([window], TranscribeSettings())
    assert result["removed"] == ({reason: 1} if reason else {})
    assert bool(result["words"]) == (not reason)
    assert result["voiced"], "voice stays known where its words are not believed"


@pytest.mark.parametrize(
    ("confidences", "quoted"),
    [
        ([0.7, 0.7, 0.7, 0.7, 0.7], "we went down to the"),
        ([0.7, 0.6, 0.7, 0.7, 0.7], "to the"),
        ([0.7, 0.6, 0.9, 0.7, 0.7], "down to the"),
    ],
)
def test_a_mishearing_is_taken_to_spread_to_the_words_beside_it(confidences, quoted):
    window = Heard()
    window.words = window.words[:5]
    for word, confidence in zip(window.words, confidences, strict=True):
        word["confidence"] = confidence
    heard = transcript([window], TranscribeSettings())
    assert [word["word"] for word in heard["words"] if word["quotable"]] == quoted.split()


def test_a_word_that_whisper_is_unsure_of_is_in_no_text_and_in_no_quote():
    window = Heard()
    window.words[2]["confidence"] = 0.3
    heard = transcript([window], TranscribeSettings())
    assert heard["text"] == "we went to the river"
    assert [word["word"] for word in heard["words"] if word["doubted"]] == ["down"]
    assert heard["removed"] == {"doubted": 1}
    facts = Facts(4.0, transcript=heard)
    sentences = compose(facts, 4)
    told = " ".join(sentence.text for sentence in sentences)
    assert re.findall("“([^“”]*)”", told) == ["we went", "to the river"] * 2
    assert ground(sentences, facts)[1] == []
    assert unsupported_claims("Speech is heard: “we went to the river”.", facts)
    assert unsupported_claims("Speech is heard: “we went down to the river”.", facts)


def test_a_word_that_is_likely_but_not_sure_is_in_the_text_and_in_no_quote():
    window = Heard()
    window.words[2]["confidence"] = 0.6
    heard = transcript([window], TranscribeSettings())
    assert heard["text"] == "we went down to the river"
    assert heard["removed"] == {}
    facts = Facts(4.0, transcript=heard)
    told = " ".join(sentence.text for sentence in compose(facts, 4))
    assert re.findall("“([^“”]*)”", told) == ["we went", "to the river"] * 2
    assert unsupported_claims("Speech is heard: “we went down to the river”.", facts)


def test_a_word_begins_where_the_voice_does():
    from captioning.hear.whisper import _timed_words  # takes seconds to import, needed only here

    window = Window(0, 0.0, 6.0, [(0.5, 2.0), (3.0, 5.0)], language="en")
    heard = [(" We", 0.3, 0.9), (" went", 0.9, 1.4), (" down", 1.4, 3.6), (" home", 2.1, 3.6), (" again", 5.2, 5.6)]
    alignment = [{"word": word, "start": start, "end": end, "probability": 0.9} for word, start, end in heard]
    starts = [word["start"] for word in _timed_words(alignment, window)]
    assert starts == [0.5, 0.9, 1.4, 3.0, 5.2]


@pytest.mark.parametrize(("confidence", "text"), [(0.1, ""), (0.6, "we went down to the river")])
def test_speech_of_which_no_word_is_sure_is_not_quoted(confidence, text):
    window = Heard()
    for word in window.words:
        word["confidence"] = confidence
    heard = transcript([window], TranscribeSettings())
    assert heard["text"] == text
    assert compose(Facts(4.0, transcript=heard), 4) == []
    told = compose(Facts(4.0, transcript=heard, tags=(Tag("Speech", 0.0, 3.0, 0.9),)), 4)
    assert [sentence.text for sentence in told] == ["Speech is heard from 0.0 to 3.0 seconds.", "Speech is heard."]


def test_the_language_is_that_of_the_longest_speech():
    windows = [Heard(voiced=[(0.0, 2.0)]), Heard(text="guten Tag zusammen", language="de", voiced=[(5.0, 9.0)])]
    assert transcript(windows, TranscribeSettings())["language"] == "de"


@pytest.mark.parametrize("text", ["no no no no no no", "thank you so much " * 4, "a b c d e f g h " * 4])
def test_a_loop_is_a_repeat(text):
    assert repeats(text.split())


@pytest.mark.parametrize("text", ["no no no no", "did you do it did you do it did you do it", SENTENCE, ""])
def test_what_people_say_is_no_repeat(text):
    assert not repeats(text.split())


def test_normalise_compares_words_in_any_script():
    assert normalise("Don’t — STOP, 4 o'clock!") == ["don't", "stop", "4", "o'clock"]
    assert normalise("你好，吗 ok") == ["你", "好", "吗", "ok"]


def test_voiced_spans_join_over_short_dips_and_drop_clicks():
    probability = np.zeros(200)
    probability[10:40] = 0.9
    probability[20:22] = 0.1  # 64 ms
    probability[100:103] = 0.9  # 96 ms
    spans = voiced_spans(probability, 0.5)
    assert spans == [(10 * 0.032, 40 * 0.032)]


def test_a_voiced_span_fits_whispers_window():
    spans = voiced_spans(np.full(2500, 0.9), 0.5)
    assert max(end - start for start, end in spans) <= 29.0 + 0.032
    assert sum(end - start for start, end in spans) > 0.99 * 2500 * 0.032


def test_synthetic_speech_is_heard_word_for_word_with_times(captioner):
    audio = said(SENTENCE, lead_s=1.0)
    heard = captioner.measurer.transcriber([audio])[0]
    assert normalise(heard["text"]) == normalise(SENTENCE)
    assert [normalise(word["word"])[0] for word in heard["words"]] == normalise(SENTENCE)
    assert heard["language"] == "en"
    assert heard["language_probability"] > 0.8
    starts = [word["start"] for word in heard["words"]]
    assert starts == sorted(starts)
    assert starts[0] == pytest.approx(1.0, abs=0.3)
    assert heard["words"][-1]["end"] <= len(audio) / SAMPLE_RATE


def test_nothing_is_heard_where_nobody_speaks(captioner):
    sounds = [np.zeros(4 * SAMPLE_RATE, np.float32), noise(4), noise(4, 0.001), chord(4), np.zeros(0, np.float32)]
    for heard in captioner.measurer.transcriber(sounds):
        assert heard["text"] == ""
        assert heard["words"] == []


def test_a_clip_gets_the_same_words_in_any_company(captioner):
    one, other = said(SENTENCE), said("Light is faster than sound.", 0.3)
    together = captioner.measurer.transcriber([one, noise(1.01), other])
    assert together[0] == captioner.measurer.transcriber([one])[0]
    assert together[2] == captioner.measurer.transcriber([other])[0]


def test_nothing_is_printed_to_standard_output(captioner):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        captioner.measurer.transcriber([said("Hello there everybody")])
    assert printed.getvalue() == ""


def test_a_missing_weight_names_the_setting():
    with pytest.raises(ValueError, match=r"transcribe\.whisper.*nowhere"):
        Transcriber(TranscribeSettings(whisper="./nowhere"))


@pytest.mark.skipif(not JFK.exists(), reason="shared/media/audio/jfk.flac is not on this machine")
def test_jfk_word_for_word(captioner):
    heard = captioner.measurer.transcriber([decode_audio(str(JFK), 0.0, 11.0, SAMPLE_RATE, 1)[0]])[0]
    assert normalise(heard["text"]) == normalise(
        "And so my fellow Americans ask not what your country can do for you ask what you can do for your country"
    )
    assert heard["language"] == "en"
