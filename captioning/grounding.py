"""Does a caption name only what is there? Every sentence is taken apart into claims, and each claim is tested.

A claim is a quote, a time, a sound, a colour, a language, a movement … It must follow from the clip's `Facts`. What is
left of the sentence once its claims are taken out may only hold words that claim nothing. So an invented subject, an
emotion or a guess is caught without being on a list; the lists only name the kind.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from captioning.compose import Facts, Sentence, largest, told
from captioning.describe import COLOURS
from captioning.transcribe import normalise
from captioning.vocabulary import FORBIDDEN, LANGUAGES, MUSIC, SPEECH, spans

_TOLERANCE_S = 0.3  # between a time in a caption and the time that was measured
_QUOTE = re.compile(r"“([^“”]*)”|\"([^\"]*)\"")
_NUMBER = r"(\d+(?:\.\d+)?)"
_SPAN = re.compile(rf"from {_NUMBER} to {_NUMBER} seconds")
_COLOUR = "|".join(COLOURS)
# Words that claim nothing: they only join claims.
_FRAME = frozenset(
    {"the", "a", "an", "of", "is", "are", "and", "in", "there", "it", "then", "seconds"}
    | {"picture", "sound", "sounds", "heard", "camera", "something"}
)
_LANGUAGE_NAMES = frozenset(name.lower() for name in LANGUAGES.values())


@dataclass(frozen=True)
class Removed:
    """A sentence that was taken out, and each reason as "kind: words"."""

    text: str
    reasons: tuple[str, ...]


def ground(sentences: list[Sentence], facts: Facts) -> tuple[list[Sentence], list[Removed]]:
    """The sentences whose every claim follows from the facts, and those that were taken out."""
    kept, removed = [], []
    for sentence in sentences:
        reasons = check(sentence.text, facts)
        if reasons:
            removed.append(Removed(sentence.text, tuple(reasons)))
        else:
            kept.append(sentence)
    return kept, removed


def ground_text(text: str, facts: Facts) -> tuple[str, list[Removed]]:
    """As `ground`, for a caption as running text, whoever wrote it."""
    kept, removed = [], []
    for sentence in split(text):
        reasons = check(sentence, facts)
        if reasons:
            removed.append(Removed(sentence, tuple(reasons)))
        else:
            kept.append(sentence)
    return " ".join(kept), removed


def split(text: str) -> list[str]:
    """Sentences; what stands inside quotation marks ends none."""
    sentences, start, inside, straight = [], 0, False, False
    for index, character in enumerate(text):
        if character == "“":
            inside = True
        elif character == "”":
            inside = False
        elif character == '"':
            straight = not straight
        closes = character in '”"' and text[index - 1 : index] in (".", "!", "?")
        if (character in ".!?" or closes) and not inside and not straight and text[index + 1 : index + 2] in ("", " "):
            sentences.append(text[start : index + 1].strip())
            start = index + 1
    return [sentence for sentence in (*sentences, text[start:].strip()) if sentence]


def check(sentence: str, facts: Facts) -> list[str]:
    """Why a sentence is not supported, as "kind: words"; empty when every claim in it follows from the facts."""
    reasons: list[str] = []
    quotes = [curly or plain for curly, plain in _QUOTE.findall(sentence)]
    rest = _QUOTE.sub(" ", sentence)
    if re.search('[“”"]', rest):
        reasons.append("quote: a quotation mark without its pair")
    rest = rest.lower()
    times = [(float(start), float(end)) for start, end in _SPAN.findall(rest)]
    rest = _SPAN.sub(" ", rest)
    throughout = re.search(r"\bthroughout\b", rest) is not None
    rest = re.sub(r"\bthroughout\b", " ", rest)

    timed: list[list[tuple[float, float]]] = []  # what was measured of each claim that has times
    claims = len(quotes)
    for said in quotes:
        found = _said(said, facts)
        if not found:
            reasons.append(f"quote: {said[:60]!r} was not said")
        timed.append(found)
    for name, measured in _heard(facts):
        pattern = rf"\b{re.escape(name)}\b"
        if re.search(pattern, rest):
            claims += 1
            rest = re.sub(pattern, " ", rest)
            if not quotes:
                timed.append(measured)
    for pattern, kind, holds in _CLAIMS:
        while match := pattern.search(rest):
            claims += 1
            if not facts_hold(holds, match, facts):
                reasons.append(f"{kind}: {match.group(0).strip()}")
            rest = f"{rest[: match.start()]} {rest[match.end() :]}"
    reasons += _wrong_times(times, throughout, timed, facts.seconds)
    reasons += _unknown(rest)
    if not claims and not reasons:
        reasons.append("empty: nothing measured is named")
    return reasons


def facts_hold(holds: Callable[[re.Match, Facts], bool], match: re.Match, facts: Facts) -> bool:
    """A claim about what was never measured does not hold."""
    try:
        return bool(holds(match, facts))
    except (KeyError, TypeError):
        return False


def _said(quoted: str, facts: Facts) -> list[tuple[float, float]]:
    """When exactly these words were said, in this order and without a gap; every place."""
    words = facts.transcript.get("words", [])
    spoken = [(token, index) for index, word in enumerate(words) for token in normalise(word["word"])]
    wanted = normalise(quoted)
    if not wanted:
        return []
    return [
        (words[spoken[at][1]]["start"], words[spoken[at + len(wanted) - 1][1]]["end"])
        for at in range(len(spoken) - len(wanted) + 1)
        if [token for token, _ in spoken[at : at + len(wanted)]] == wanted
    ]


def _heard(facts: Facts) -> list[tuple[str, list[tuple[float, float]]]]:
    """What may be named as heard, with its spans; longer names first, so that no name is found inside another."""
    heard = {name: spans(tags) for name, tags in told(facts.tags).items()}
    if music := [tag for tag in facts.tags if tag.label in MUSIC]:
        heard["music"] = spans(music)
    words, voiced = facts.transcript.get("words", []), facts.transcript.get("voiced", [])
    if words:
        heard["speech"] = [(words[0]["start"], words[-1]["end"])]
    elif voiced and any(tag.label in SPEECH for tag in facts.tags):
        heard["speech"] = [(start, end) for start, end in voiced]
    return sorted(heard.items(), key=lambda item: -len(item[0]))


def _wrong_times(times, throughout: bool, timed: list[list[tuple[float, float]]], seconds: float) -> list[str]:
    reasons = []
    if (times or throughout) and not timed:
        return ["time: of nothing that was measured"]
    for measured in timed:
        for start, end in times:
            if not any(abs(start - s) <= _TOLERANCE_S and abs(end - e) <= _TOLERANCE_S for s, e in measured):
                reasons.append(f"time: from {start} to {end} seconds")
        if throughout and sum(end - start for start, end in measured) < 0.85 * seconds:
            reasons.append("time: throughout")
    return reasons


def _unknown(rest: str) -> list[str]:
    """Words that no fact stands behind, with the kind of thing that they claim where it is known."""
    about_sound = re.search(r"\b(sound of|heard)\b", rest) is not None
    reasons = []
    for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", rest):
        if word in _FRAME:
            continue
        if word in FORBIDDEN:
            kind = "forbidden"
        elif word[0].isdigit():
            kind = "number"
        elif word in _LANGUAGE_NAMES:
            kind = "language"
        else:
            kind = "sound" if about_sound else "unsupported"
        reasons.append(f"{kind}: {word}")
    return reasons


def _colour_list(match: re.Match, facts: Facts) -> bool:
    named = re.findall(_COLOUR, match.group(2))
    shares = facts.picture["colours"]
    total = sum(shares.get(name, 0) for name in named)
    if facts.picture["black_and_white"] or named != list(shares)[: len(named)]:
        return False
    if len(named) > len(largest(shares)[0]):
        return False
    return total >= {"mostly ": 0.5, None: 0.9}.get(match.group(1), 0)


def _region(match: re.Match, facts: Facts) -> bool:
    return facts.picture["regions"].get(match.group(2)) == match.group(1)


def _language(match: re.Match, facts: Facts) -> bool:
    spoken = facts.transcript
    return (
        bool(spoken["words"])
        and spoken["language_probability"] is not None
        and LANGUAGES.get(spoken["language"], "").lower() == match.group(1)
    )


def _side(match: re.Match, facts: Facts) -> bool:
    return facts.sound["side_db"] * (1 if match.group(1) == "right" else -1) >= 6


def _course(match: re.Match, facts: Facts) -> bool:
    return facts.sound["course_db"] * (1 if match.group(1) == "louder" else -1) >= 10


# Longer forms come before the shorter ones that they hold.
_CLAIMS: list[tuple[re.Pattern, str, Callable[[re.Match, Facts], bool]]] = [
    (re.compile(pattern), kind, holds)
    for pattern, kind, holds in (
        (r"\bpicture is black and white\b", "colour", lambda m, f: f.picture["black_and_white"]),
        (rf"\bpicture is (mostly |partly )?((?:{_COLOUR})(?:(?:, | and )(?:{_COLOUR}))*)\b", "colour", _colour_list),
        (rf"\b({_COLOUR}) in the (middle|upper|lower)(?: part)? of the picture\b", "colour", _region),
        (rf"\b({_COLOUR})\b", "colour", lambda m, f: m.group(1) in f.picture["colours"]),
        (r"\bpicture is dark\b", "brightness", lambda m, f: f.picture["brightness"] < 0.2),
        (r"\bpicture is bright\b", "brightness", lambda m, f: f.picture["brightness"] > 0.75),
        (r"\bpicture is still\b", "movement", lambda m, f: f.picture["movement"] < 0.0005),
        (r"\bcamera is static\b", "camera", lambda m, f: f.picture["camera"] == "static"),
        (
            r"\bcamera ((?:pans|tilts) (?:left|right|up|down))\b",
            "camera",
            lambda m, f: f.picture["camera"] == m.group(1),
        ),
        (
            r"\bmoves across the picture from (left to right|right to left)\b",
            "movement",
            lambda m, f: f.picture["path"] == m.group(1),
        ),
        (
            r"\bmovement (?:in|on) the (left|right|centre) of the picture\b",
            "movement",
            lambda m, f: f.picture["where"] == m.group(1),
        ),
        (r"\bpicture is cut once\b", "cut", lambda m, f: len(f.picture["cuts"]) == 1),
        (r"\bpicture is cut (\d+) times\b", "cut", lambda m, f: len(f.picture["cuts"]) == int(m.group(1))),
        (r"\bsound is quiet\b", "level", lambda m, f: f.sound["level_db"] < -40),
        (r"\bsound is loud\b", "level", lambda m, f: f.sound["level_db"] > -12),
        (r"\bsound grows (louder|quieter)\b", "level", _course),
        (r"\bsound is louder on the (left|right)\b", "side", _side),
        (
            r"\bsound moves from (left to right|right to left)\b",
            "side",
            lambda m, f: f.sound["travel"] == m.group(1),
        ),
        (rf"\bin ({'|'.join(sorted(_LANGUAGE_NAMES))})\b", "language", _language),
    )
]
