import re
from dataclasses import replace

import pytest
from hypothesis import given

from captioning.grounding.checker import ground, unsupported_claims
from captioning.hear.text_normalisation import normalise
from captioning.write.compose import LONG, MEDIUM, SHORT, Facts, compose, nameable_sounds, text_of
from captioning.write.vocabulary import FORBIDDEN
from data_prep.clip import Tag
from tests.captioning.examples import FACTS, PICTURE, SILENT, SOUND, facts, outside_quotes, spoken


def test_the_whole_caption_in_its_fixed_order():
    assert text_of(compose(FACTS, 4), MEDIUM) == (
        "The picture is mostly grey and green. There is green in the lower part of the picture. The camera pans left. "
        "Speech in English is heard from 1.0 to 3.3 seconds: “Did you close the old gate?”. "
        "The sound of a piano is heard throughout. "
        "The sound of a dog barking is heard from 1.0 to 2.0 seconds and from 5.0 to 6.0 seconds. "
        "Music is heard throughout."
    )
    assert text_of(compose(FACTS, 4), SHORT) == (
        "The picture is mostly grey and green. The camera pans left. "
        "Speech in English is heard: “Did you close the old gate?”. "
        "The sound of a piano and a dog barking is heard. Music is heard."
    )


def test_pauses_part_quotes():
    said = spoken("one two three four")
    for word in said["words"][2:]:
        word["start"] += 3
        word["end"] += 3
    quotes = re.findall("“.*?”", text_of(compose(replace(FACTS, transcript=said), 0), MEDIUM))
    assert quotes == ["“one two”", "“three four”"]


def test_talk_is_heard_from_its_first_word_on_even_where_that_is_too_unsure_to_be_quoted():
    said = spoken("rain falls from dark clouds")
    for at in (0, 3):
        said["words"][at]["quotable"] = False
    sentences = compose(talk := replace(FACTS, transcript=said), 0)
    begins, ends = said["words"][0]["start"], said["words"][-1]["end"]
    wanted = (
        f"Speech in English is heard from {begins:.1f} to {ends:.1f} seconds, with the words “falls from” and “clouds”."
    )
    assert wanted in text_of(sentences, MEDIUM)
    assert ground(sentences, talk)[1] == []
    assert unsupported_claims(wanted.replace("“falls from”", "“rain falls from”"), talk)
    assert unsupported_claims(wanted.replace(f"{begins:.1f}", f"{begins - 0.5:.1f}"), talk)
    assert unsupported_claims("The sound of falls is heard.", talk)


def test_a_language_is_told_only_when_it_was_measured():
    text = text_of(compose(replace(FACTS, transcript=spoken("hello there", "en", None)), 0), LONG)
    assert "English" not in text
    assert "“hello there”" in text


def test_each_speaker_has_their_own_quotes():
    said = spoken("shut it now I will")
    for at, word in enumerate(said["words"]):
        word["speaker"] = 1 if at < 3 else 2
    said["speakers"] = [{"speaker": 1, "spans": [[1.0, 2.1]]}, {"speaker": 2, "spans": [[2.2, 2.9]]}]
    talk = replace(FACTS, transcript=said)
    sentences = compose(talk, 0)
    text = text_of(sentences, MEDIUM)
    assert "Two speakers are heard. Speaker 1 in English is heard from 1.0 to 2.1 seconds: “shut it now”." in text
    assert "Speaker 2 is heard from 2.2 to 2.9 seconds: “I will”." in text
    assert ground(sentences, talk)[1] == []


def test_a_language_without_spaces_is_quoted_without_them():
    said = spoken("你 好 吗", "zh")
    assert "Speech in Chinese" in text_of(compose(replace(FACTS, transcript=said), 0), MEDIUM)
    assert "“你好吗”" in text_of(compose(replace(FACTS, transcript=said), 0), MEDIUM)


def test_voice_without_words_is_told_only_where_the_tagger_agrees():
    voiced = {**SILENT, "voiced": [[1.0, 4.0]]}
    bare = Facts(10.0, PICTURE, voiced, SOUND, ())
    assert "peech" not in text_of(compose(bare, 4), LONG)
    tagged = replace(bare, tags=(Tag("Speech", 1.0, 4.0, 0.9),))
    assert "Speech is heard from 1.0 to 4.0 seconds." in text_of(compose(tagged, 4), LONG)


@pytest.mark.parametrize(
    ("labels", "told", "untold"),
    [
        (["Animal", "Dog", "Bark"], ["a dog barking"], ["animal", "a dog is"]),
        (["Music", "Sad music", "Harp"], ["Music", "a harp"], ["ad music"]),
        (["Waterfall", "Stream", "Ocean"], ["of a"], ["and"]),
        (["Silence", "Inside, small room"], [], ["room", "ilence", "sound of"]),
    ],
)
def test_tags_are_told_once_and_without_moods(labels, told, untold):
    tags = tuple(Tag(label, 0.0, 3.0, 0.9) for label in labels)
    text = text_of(compose(Facts(10.0, {}, SILENT, SOUND, tags), 4), MEDIUM)
    assert all(part in text for part in told)
    assert not any(part in text for part in untold)


@given(facts)
def test_no_quote_that_was_not_said_and_no_forbidden_word(facts):
    # Compare without spaces: a quote in a language without spaces has none.
    spoken = "".join(normalise(" ".join(word["word"] for word in facts.transcript["words"])))
    sentences = compose(facts, 4)
    for variant in (SHORT, MEDIUM, LONG):
        text = text_of(sentences, variant)
        assert text.count("“") == text.count("”")
        for quote in re.findall("“([^“”]*)”", text):
            assert "".join(normalise(quote)) in spoken
        assert not FORBIDDEN & set(re.findall(r"\w+", outside_quotes(text).lower()))


@given(facts)
def test_what_is_said_changes_nothing_but_its_quote(facts):
    said = facts.transcript
    # Keep a token without letters as it is: it is no word.
    words = [{**word, "word": "word"} if normalise(word["word"]) else word for word in said["words"]]
    other = {**said, "words": words}
    with_words, with_others = (compose(replace(facts, transcript=t), 4) for t in (said, other))
    assert [outside_quotes(s.text) for s in with_words] == [outside_quotes(s.text) for s in with_others]


@given(facts)
def test_every_sentence_has_its_evidence_and_the_same_facts_give_the_same_words(facts):
    sentences = compose(facts, 4)
    assert sentences == compose(facts, 4)
    assert all(sentence.facts is not None and sentence.source for sentence in sentences)
    assert all(sentence.variants for sentence in sentences)


def test_what_the_tagger_half_hears_beside_a_surer_sound_is_not_told():
    clock, ratchet = Tag("Clock", 1.0, 4.0, 0.8), Tag("Ratchet, pawl", 2.0, 3.0, 0.5)
    assert list(nameable_sounds((clock, ratchet))) == ["a clock"]
    assert list(nameable_sounds((ratchet,))) == ["a ratchet"]
    assert list(nameable_sounds((clock, replace(ratchet, start_s=5.0, end_s=6.0)))) == ["a clock", "a ratchet"]
    assert list(nameable_sounds((Tag("Bird", 0.0, 2.0, 0.9), Tag("Chirp, tweet", 0.0, 2.0, 0.5)))) == ["a bird"]
    cowbell = Tag("Cowbell", 0.0, 2.0, 0.55)
    assert list(nameable_sounds((cowbell,))) == [], "any knock is half a cowbell"
    assert list(nameable_sounds((cowbell, Tag("Music", 0.0, 2.0, 0.55)))) == ["a cowbell"]
    assert list(nameable_sounds((Tag("Bird", 0.0, 2.0, 0.9), Tag("Chirp, tweet", 0.0, 2.0, 0.8)))) == [
        "a bird chirping"
    ]


def test_what_begins_later_is_not_there_throughout():
    tags = (Tag("Piano", 0.3, 9.9, 0.9),)
    sentences = [s.text for s in compose(Facts(10.0, tags=tags), 4)]
    assert "The sound of a piano is heard from 0.3 to 9.9 seconds." in sentences


def test_a_steady_sound_is_the_background_where_there_is_no_music():
    steady = "A steady sound is in the background, strongest at low frequencies."
    assert steady in [s.text for s in compose(replace(FACTS, tags=()), 4)]
    assert steady not in [s.text for s in compose(FACTS, 4)], "of music it is a chord that is held"
