"""Compose a caption by rules from facts alone.

The order is fixed: setting and subjects, actions in time and writing (where an engine looked), picture, camera and
movement, speech with its language and exact words, sounds in time, music, level, background and side. Each sentence
keeps the facts that it was made from. It states nothing that was not measured or seen: no emotion, no guess. The same
facts give the same words.
"""

import math
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from captioning.hear.text_normalisation import UNSPACED, normalise
from captioning.write.vocabulary import (
    CONFUSABLE,
    LANGUAGES,
    MUSIC,
    NARROWER,
    SPEECH,
    STRUCK,
    UNMENTIONED,
    phrase,
    spans,
)
from data_prep.clip import Tag

Source = Literal["seen", "picture", "transcript", "voice", "tags", "sound", "written"]
SHORT, MEDIUM, LONG = "short", "medium", "long"
_QUOTE_GAP_S = 1.5  # a pause of this length separates two quotes
_COUNTS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
# The keys in `Sentence.facts` of a sentence about colours.
_COLOUR_FACTS = frozenset({"colours", "colour", "black_and_white"})
# Agreement of onsets and motion (`data_prep.scores.av_sync`); by chance it is about 1, and rarely above 3.
MIN_AV_AGREEMENT = 4.0
# A tag with a lower score that overlaps a tag with a higher score is usually a wrong name of that other sound.
_SURE_SCORE = 0.6
_FROM_THE_START_S = 0.15  # a sound that begins later is not "throughout"
_SHORT_QUOTE = 25  # words; the short caption mentions longer speech without a quote


@dataclass(frozen=True)
class Facts:
    """All that was measured of a clip: the only source of its caption.

    Attributes:
        seconds: The clip's length.
        picture: From `look.picture_statistics`.
        transcript: From `hear.transcribe`.
        sound: From `hear.levels`, and `av_agreement` where curation measured it.
        tags: Sound events from curation, with their times from `hear.onsets`.
        seen: The accepted phrases from `look.phrases`, as plain data.
    """

    seconds: float
    picture: dict[str, Any] = field(default_factory=dict)
    transcript: dict[str, Any] = field(default_factory=dict)
    sound: dict[str, Any] = field(default_factory=dict)
    tags: tuple[Tag, ...] = ()
    seen: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Sentence:
    """One sentence, its source, the facts that it was made from, and the caption variants that contain it."""

    text: str
    source: Source
    facts: dict[str, Any]
    variants: tuple[str, ...] = (MEDIUM, LONG)


def compose(facts: Facts, max_sounds: int) -> list[Sentence]:
    """Compose every sentence that the facts support, in the order that the module's docstring gives.

    Args:
        facts: All that was measured of the clip.
        max_sounds: The most kinds of sound to mention.
    """
    seen, picture = _seen(facts.seen), _picture(facts.picture)
    if seen:  # with a description of the content, colours are a detail for the long variant
        picture = [replace(one, variants=(LONG,)) if _COLOUR_FACTS & one.facts.keys() else one for one in picture]
    return [
        *seen,
        *picture,
        *_speech(facts),
        *_sounds(facts, max_sounds),
        *_music(facts),
        *_level(facts),
    ]


def text_of(sentences: list[Sentence], variant: str) -> str:
    """Join the sentences of one variant: "short", "medium" or "long"."""
    return " ".join(sentence.text for sentence in sentences if variant in sentence.variants)


def _seen(phrases: tuple[dict[str, Any], ...]) -> list[Sentence]:
    """Compose the sentences about the setting, the subjects with their appearance, the actions, and text on screen."""
    everywhere = (SHORT, MEDIUM, LONG)
    of = {kind: [one for one in phrases if one["kind"] == kind] for kind in ("setting", "subject", "action", "text")}
    out = [Sentence(f"The setting is {one['text']}.", "seen", _evidence(one), everywhere) for one in of["setting"]]
    for at, one in enumerate(of["subject"]):
        looks = [p for p in phrases if p["kind"] == "appearance" and p["subject"] == one["subject"]]
        text = f"{_capital(one['text'])} can be seen"
        shortest = (SHORT,) if at == 0 and not of["action"] else ()
        if looks and shortest:
            out.append(Sentence(f"{text}.", "seen", _evidence(one), shortest))
        text = f"{text}: {_list([look['text'] for look in looks])}." if looks else f"{text}."
        variants = (MEDIUM, LONG) if looks else (*shortest, MEDIUM, LONG)
        out.append(Sentence(text, "seen", _evidence(one, *looks), variants))
    before = None
    for one in of["action"]:
        # "Then" claims an order: this action's first span must end after the start of the previous one's.
        then = before is not None and all(g > s for s, _ in before["spans"][:1] for _, g in one["spans"][:1])
        text = f"Then {one['text']}." if then else f"{_capital(one['text'])}."
        out.append(Sentence(text, "seen", _evidence(one), (MEDIUM, LONG) if before else everywhere))
        before = one
    out += [Sentence(f"The text {_quoted(one['text'])} is shown.", "seen", _evidence(one)) for one in of["text"]]
    return out


def _evidence(*phrases: dict[str, Any]) -> dict[str, Any]:
    """Return the spans and the open_clip scores of seen phrases, for `Sentence.facts`."""
    spans = sorted({(start, end) for one in phrases for start, end in one["spans"]})
    scores = {one["text"]: one["score"] for one in phrases if one["score"] is not None}
    return {"spans": [list(span) for span in spans]} | ({"scores": scores} if scores else {})


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _picture(picture: dict[str, Any]) -> list[Sentence]:
    """Compose the sentences about colours, brightness, camera, movement and cuts."""
    if not picture:
        return []
    out = [_colours(picture)]
    regions, colours = picture["regions"], list(picture["colours"])
    main = colours[0] if colours else ""
    if not picture["black_and_white"]:
        for region, where in (("middle", "middle"), ("upper", "upper part"), ("lower", "lower part")):
            if regions.get(region, main) != main:
                text = f"There is {regions[region]} in the {where} of the picture."
                out.append(Sentence(text, "picture", {"region": region, "colour": regions[region]}))
    if picture["brightness"] < 0.2:
        out.append(Sentence("The picture is dark.", "picture", {"brightness": picture["brightness"]}))
    elif picture["brightness"] > 0.75:
        out.append(Sentence("The picture is bright.", "picture", {"brightness": picture["brightness"]}))
    out += _motion(picture)
    if count := len(picture["cuts"]):
        text = "The picture is cut once." if count == 1 else f"The picture is cut {count} times."
        out.append(Sentence(text, "picture", {"cuts": picture["cuts"]}, (LONG,)))
    return out


def _colours(picture: dict[str, Any]) -> Sentence:
    """Compose the sentence that names the largest colours, or says that the picture is black and white."""
    everywhere = (SHORT, MEDIUM, LONG)
    if picture["black_and_white"]:
        return Sentence("The picture is black and white.", "picture", {"black_and_white": True}, everywhere)
    shares = picture["colours"]
    named, sum_ = largest(shares)
    how = "" if len(named) == 1 and sum_ >= 0.9 else "mostly " if sum_ >= 0.5 else "partly "
    evidence = {"colours": {name: shares[name] for name in named}}
    return Sentence(f"The picture is {how}{_list(named)}.", "picture", evidence, everywhere)


def largest(shares: dict[str, float]) -> tuple[list[str], float]:
    """Return the colours that fill most of the picture (one to three), and the sum of their shares.

    Args:
        shares: {colour: share of the picture, 0 to 1}, the largest first.
    """
    named: list[str] = []
    total = 0.0
    for name, share in shares.items():
        if named and (total >= 0.75 or share < 0.1 or len(named) == 3):
            break
        named.append(name)
        total += share
    return named, total


def _motion(picture: dict[str, Any]) -> list[Sentence]:
    """Compose the sentences about the camera, and about where something moves."""
    out = []
    movement, camera = picture["movement"], picture["camera"]
    if movement is not None and movement < 0.0005 and not picture["cuts"]:
        return [Sentence("The picture is still.", "picture", {"movement": movement})]
    if camera == "static":
        out.append(Sentence("The camera is static.", "picture", {"camera": camera}))
    elif camera:
        out.append(Sentence(f"The camera {camera}.", "picture", {"camera": camera}, (SHORT, MEDIUM, LONG)))
    if picture["path"]:
        text = f"Something moves across the picture from {picture['path']}."
        out.append(Sentence(text, "picture", {"path": picture["path"]}, (SHORT, MEDIUM, LONG)))
    elif picture["where"]:
        where = "in the centre" if picture["where"] == "centre" else f"on the {picture['where']}"
        text = f"There is movement {where} of the picture."
        out.append(Sentence(text, "picture", {"movement": movement, "where": picture["where"]}))
    return out


def _speech(facts: Facts) -> list[Sentence]:
    """Compose the sentences about speech: language, number of speakers, and a quote with times per utterance."""
    spoken = facts.transcript
    words = [word for word in spoken.get("words", []) if normalise(word["word"])]
    utterances = [part for part in find_utterances(words) if _quotable_runs(words, *part)]
    if not utterances:
        # Voice activity also detects singing: without words to quote, the tagger must confirm speech.
        voiced = spoken.get("voiced", [])
        if not voiced or not any(tag.label in SPEECH for tag in facts.tags):
            return []
        when = _time_phrase([(start, end) for start, end in voiced], facts.seconds)
        timed = Sentence(f"Speech is heard {when}.", "voice", {"voiced": voiced})
        return [timed, Sentence("Speech is heard.", "voice", {"voiced": voiced}, (SHORT,))]
    unspaced = spoken["language"] in UNSPACED
    language = LANGUAGES.get(spoken["language"], "") if spoken["language_probability"] is not None else ""
    known = {"language": spoken["language"], "language_probability": spoken["language_probability"]} if language else {}
    subject = f"Speech in {language}" if language else "Speech"
    out = []
    if len(words) <= _SHORT_QUOTE:
        sure = [run for part in find_utterances(words, gap_s=math.inf) for run in _quotable_runs(words, *part)]
        quotes = [quote(words[first:last], unspaced=unspaced) for first, last in sure]
        span = [sure[0][0], sure[-1][1]]
        out.append(Sentence(f"{subject} is heard: {_list(quotes)}.", "transcript", known | {"words": span}, (SHORT,)))
    else:
        out.append(Sentence(f"{subject} is heard.", "transcript", known, (SHORT,)))
    speakers = spoken.get("speakers", [])
    if 1 < len(speakers) < len(_COUNTS):
        spans = {"speakers": speakers}
        out.append(Sentence(f"{_COUNTS[len(speakers)]} speakers are heard.", "voice", spans, (SHORT, MEDIUM, LONG)))
    for number, (first, last) in enumerate(utterances):
        part = words[first:last]
        when = f"from {part[0]['start']:.1f} to {part[-1]['end']:.1f} seconds"
        named = subject if number == 0 else "Speech"
        if part[0].get("speaker"):
            named = f"Speaker {part[0]['speaker']}" + (f" in {language}" if language and number == 0 else "")
        sure = _quotable_runs(words, first, last)
        quotes = _list([quote(words[begin:end], unspaced=unspaced) for begin, end in sure])
        text = f"{named} is heard {when}{':' if sure == [(first, last)] else ', with the words'} {quotes}."
        out.append(Sentence(text, "transcript", known | {"words": [first, last]}))
    return out


def quote(words: list[dict], *, unspaced: bool = False) -> str:
    """Return words between “ and ”, as they were said.

    Quotation marks inside the words are replaced, so that the words cannot end the quote.

    Args:
        words: Words of a transcript.
        unspaced: Whether the language is written without spaces.
    """
    said = " ".join((_join_unspaced(words) if unspaced else " ".join(word["word"] for word in words)).split())
    said = re.sub(
        r"""(?<=\w)["“”„«»](?=\w)""", " ", said
    )  # a single mark here would join the two words, as an apostrophe does
    return _quoted(re.sub("[ .,;:、。，]+$", "", _quote_safe(said)))


def _quoted(text: str) -> str:
    """Return a text between “ and ”."""
    return f"“{_quote_safe(text)}”"


def _quote_safe(text: str) -> str:
    """Replace quotation marks by single ones and unprintable characters by spaces, so that a quote can contain it."""
    text = text.translate(str.maketrans({"“": "‘", "”": "’", '"': "’", "„": "‘", "«": "‘", "»": "’"}))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _join_unspaced(words: list[dict]) -> str:
    """Join words without spaces, except where two words would become one (numbers, Latin letters)."""
    said = ""
    for word in words:
        apart = normalise(said) + normalise(word["word"]) != normalise(said + word["word"])
        said += f" {word['word']}" if apart else word["word"]
    return said


def find_utterances(words: list[dict], gap_s: float = _QUOTE_GAP_S) -> list[tuple[int, int]]:
    """Split a transcript into utterances: what one speaker says without a pause of `gap_s` seconds.

    Returns:
        (first, end) indices into `words` of each utterance; `end` is exclusive.
    """
    found: list[tuple[int, int]] = []
    for at, word in enumerate(words):
        before = words[at - 1]
        if at and word["start"] - before["end"] < gap_s and word.get("speaker") == before.get("speaker"):
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
    return found


def _quotable_runs(words: list[dict], first: int, last: int) -> list[tuple[int, int]]:
    """Find the runs of quotable words in `words[first:last]`, as (first, end) indices; `end` is exclusive."""
    found: list[tuple[int, int]] = []
    for at in range(first, last):
        if not words[at].get("quotable", True):
            continue
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
    return found


def nameable_sounds(tags: tuple[Tag, ...]) -> dict[str, list[Tag]]:
    """Select the tags that a caption may mention. Return {phrase: its tags}.

    Leave out speech, music, labels that are too general, tags masked by a more certain sound, tags that have a narrower
    label at the same time, and tags that taggers confuse with a stronger sound.
    """
    heard = [tag for tag in tags if tag.label not in UNMENTIONED]
    named = _by_phrase([tag for tag in heard if tag.label not in SPEECH | MUSIC])
    sure = [tag for found in named.values() if not _is_masked(found, heard) for tag in found]
    labels = {tag.label for tag in sure}
    groups = _by_phrase([tag for tag in sure if not _has_narrower(tag, sure, labels)])
    return {name: found for name, found in groups.items() if not _is_confused(name, groups)}


def _by_phrase(tags: list[Tag]) -> dict[str, list[Tag]]:
    """Return {phrase: the tags whose label has this phrase}."""
    groups: dict[str, list[Tag]] = {}
    for tag in tags:
        groups.setdefault(phrase(tag.label), []).append(tag)
    return groups


def weight(tags: list[Tag]) -> float:
    """Sum the seconds of the tags, weighted by their scores."""
    return sum((tag.end_s - tag.start_s) * tag.score for tag in tags)


def _is_confused(name: str, groups: dict[str, list[Tag]]) -> bool:
    """Return whether taggers confuse this sound with a stronger sound (by `weight`) that is heard at the same time."""
    here = groups[name]
    return any(
        other != name
        and (weight(there), name) > (weight(here), other)
        and any({a.label, b.label} <= alike and _overlap(a, b) for a in here for b in there for alike in CONFUSABLE)
        for other, there in groups.items()
    )


def _is_masked(tags: list[Tag], heard: list[Tag]) -> bool:
    """Return whether the tags of one sound are probably wrong names of another sound.

    Their scores must be below `_SURE_SCORE`. In addition, a tag in `heard` with a higher score must overlap them, or
    they must be struck instruments without music at the same time.
    """
    best = max(tag.score for tag in tags)
    beside = [other for other in heard if any(_overlap(other, tag) for tag in tags)]
    if all(tag.label in STRUCK for tag in tags) and not any(other.label in MUSIC for other in beside):
        return best < _SURE_SCORE
    return best < _SURE_SCORE and any(other.score > best for other in beside)


def _overlap(a: Tag, b: Tag) -> bool:
    return a.start_s < b.end_s and b.start_s < a.end_s


def _has_narrower(tag: Tag, tags: list[Tag], labels: set[str]) -> bool:
    """Return whether one of `tags`, whose labels are `labels`, overlaps `tag` and has a narrower label."""
    narrower = NARROWER.get(tag.label, frozenset()) & labels
    return any(other.label in narrower and _overlap(other, tag) for other in tags)


def _sounds(facts: Facts, max_sounds: int) -> list[Sentence]:
    """Compose the sentences about the `max_sounds` strongest sounds (by `weight`), in the order in which they begin."""
    groups = nameable_sounds(facts.tags)
    chosen = sorted(groups, key=lambda name: (-weight(groups[name]), name))[:max_sounds]
    out = []
    if chosen:
        names = chosen[:2]
        evidence = {"tags": [asdict(tag) for name in names for tag in groups[name]]}
        out.append(Sentence(f"The sound of {_list(names)} is heard.", "tags", evidence, (SHORT,)))
    for name in sorted(chosen, key=lambda name: (min(tag.start_s for tag in groups[name]), name)):
        tags = groups[name]
        text = f"The sound of {name} is heard {_time_phrase(spans(tags), facts.seconds)}."
        out.append(Sentence(text, "tags", {"tags": [asdict(tag) for tag in tags]}))
    return out


def _music(facts: Facts) -> list[Sentence]:
    """Compose the sentences about music: a short one, and one with its times."""
    tags = [tag for tag in facts.tags if tag.label in MUSIC]
    if not tags:
        return []
    evidence = {"tags": [asdict(tag) for tag in tags]}
    when = _time_phrase(spans(tags), facts.seconds)
    return [
        Sentence("Music is heard.", "tags", evidence, (SHORT,)),
        Sentence(f"Music is heard {when}.", "tags", evidence),
    ]


def _level(facts: Facts) -> list[Sentence]:
    """Compose the sentences about the sound's level, steady background, agreement with the picture, trend and side."""
    sound = facts.sound
    if not sound or sound["level_db"] is None:
        return []
    out = []
    if sound["level_db"] < -40:
        out.append(Sentence("The sound is quiet.", "sound", {"level_db": sound["level_db"]}, (LONG,)))
    elif sound["level_db"] > -12:
        out.append(Sentence("The sound is loud.", "sound", {"level_db": sound["level_db"]}, (LONG,)))
    steady = sound.get("steady")
    if steady and not any(tag.label in MUSIC for tag in facts.tags):  # music can be steady too
        where = f", strongest at {steady['band']} frequencies" if steady["band"] else ""
        out.append(Sentence(f"A steady sound is in the background{where}.", "sound", {"steady": steady}, (LONG,)))
    if (sound.get("av_agreement") or 0.0) >= MIN_AV_AGREEMENT:
        text = "Sounds begin as something in the picture moves."
        out.append(Sentence(text, "sound", {"av_agreement": sound["av_agreement"]}, (LONG,)))
    if sound["course_db"] is not None and abs(sound["course_db"]) >= 10:
        course = "louder" if sound["course_db"] > 0 else "quieter"
        out.append(Sentence(f"The sound grows {course}.", "sound", {"course_db": sound["course_db"]}))
    if sound["travel"]:
        out.append(Sentence(f"The sound moves from {sound['travel']}.", "sound", {"travel": sound["travel"]}))
    elif abs(sound["side_db"]) >= 6:
        side = "right" if sound["side_db"] > 0 else "left"
        out.append(Sentence(f"The sound is louder on the {side}.", "sound", {"side_db": sound["side_db"]}))
    return out


def _time_phrase(intervals: list[tuple[float, float]], seconds: float) -> str:
    """Write sorted intervals (seconds) as text: "throughout", or "from … to … seconds" for the four longest.

    "throughout" needs intervals that begin with the clip and fill 90 % of its `seconds`.
    """
    if intervals[0][0] <= _FROM_THE_START_S and sum(end - start for start, end in intervals) >= 0.9 * seconds:
        return "throughout"
    longest = sorted(sorted(intervals, key=lambda span: span[0] - span[1])[:4])
    return _list([f"from {start:.1f} to {min(end, seconds):.1f} seconds" for start, end in longest])


def _list(items: list[str]) -> str:
    """Join items as "a, b and c"; there must be at least one."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
