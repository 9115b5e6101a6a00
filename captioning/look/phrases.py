"""List the phrases of an engine's answer, each with the times of its pictures, and remove those without support.

A phrase is removed if
- it contains an emotion, intent, guess or judgement, or words addressed to a reader;
- open_clip does not find it in its pictures;
- open_clip was not used, and all its words were said or written in the clip: the engine may have obeyed an instruction
  in the clip, and nothing else supports the phrase;
- it describes the appearance of a removed subject, or is an action that names no accepted subject.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from captioning.look.schema import Seen
from captioning.write.vocabulary import FORBIDDEN, words
from captioning.write.wording import NEUTRAL_WORDS, stem

Kind = Literal["setting", "subject", "appearance", "action", "text"]
# Function that scores phrases: (phrases, the picture numbers of each phrase) → the score of each phrase with the
# picture that fits it best.
Scores = Callable[[Sequence[str], Sequence[Sequence[int]]], list[float]]

_WORD = re.compile(r"[^\W_]+")
# Words addressed to a reader.
_INSTRUCTION_WORDS = frozenset(
    words("you your yours please ignore instruction instructions prompt assistant disregard answer respond reply")
)
_FUNCTION_WORDS = NEUTRAL_WORDS | frozenset(
    words("from by his her their some over under behind beside near into out off up down while")
)


@dataclass(frozen=True)
class Phrase:
    """A phrase and where it is seen.

    Attributes:
        kind: The field of the answer that it comes from.
        text: Its words.
        pictures: Numbers, from 1, of the pictures that show it.
        spans: Times of these pictures in seconds; neighbouring pictures make one span.
        subject: Number, from 0, of the subject that it belongs to, or None.
        score: The score from open_clip, -1 to 1; None without a score.
    """

    kind: Kind
    text: str
    pictures: tuple[int, ...]
    spans: tuple[tuple[float, float], ...]
    subject: int | None = None
    score: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return the phrase as plain data, for JSON."""
        data = asdict(self)
        return data | {"pictures": list(self.pictures), "spans": [list(span) for span in self.spans]}


def phrases_of(seen: Seen, times_s: Sequence[float]) -> list[Phrase]:
    """List all phrases of an answer, in its order.

    Args:
        seen: The answer.
        times_s: The times of the pictures that the engine was shown, in seconds from the clip's start.
    """

    def make(kind: Kind, text: str, frames: Sequence[int], subject: int | None = None) -> Phrase:
        numbers = tuple(sorted(set(frames)))
        return Phrase(kind, text, numbers, _spans(numbers, times_s), subject)

    found = [make("setting", seen.setting, range(1, len(times_s) + 1))]
    for number, one in enumerate(seen.subjects):
        found.append(make("subject", one.name, one.frames, number))
        found += [make("appearance", text, one.frames, number) for text in one.appearance]
    found += [make("action", one.what, one.frames) for one in seen.actions]
    return found + [make("text", one.words, one.frames) for one in seen.text_on_screen]


def _spans(numbers: Sequence[int], times_s: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the spans, in seconds, of sorted picture numbers (from 1); neighbouring pictures make one span."""
    spans: list[tuple[float, float]] = []
    for before, number in zip((None, *numbers), numbers, strict=False):
        time_s = round(float(times_s[number - 1]), 2)
        if spans and before == number - 1:
            spans[-1] = (spans[-1][0], time_s)
        else:
            spans.append((time_s, time_s))
    return tuple(spans)


def filter_phrases(
    phrases: Sequence[Phrase], said: str, scores: Scores | None, min_score: float
) -> tuple[list[Phrase], list[tuple[Phrase, str]]]:
    """Split phrases into those that are accepted and those that are removed.

    Args:
        phrases: The phrases of one answer, in its order.
        said: Every word that was said in the clip.
        scores: Function that scores phrases with open_clip, or None for no scores.
        min_score: A phrase that scores below this is removed.

    Returns:
        The accepted phrases, and each removed phrase with its reason as "kind: what".
    """
    asked = [phrase for phrase in phrases if phrase.kind != "text"]
    if scores and asked:
        found = scores([phrase.text for phrase in asked], [phrase.pictures for phrase in asked])
        scored = {id(phrase): round(score, 4) for phrase, score in zip(asked, found, strict=True)}
        phrases = [replace(phrase, score=scored.get(id(phrase))) for phrase in phrases]
    written = " ".join(phrase.text for phrase in phrases if phrase.kind == "text")
    said_or_written = _content_stems(f"{said} {written}")
    kept: list[Phrase] = []
    removed: list[tuple[Phrase, str]] = []
    for phrase in phrases:
        reason = _rejection(phrase, said_or_written, min_score) or _missing_subject(phrase, kept)
        if reason:
            removed.append((phrase, reason))
        else:
            kept.append(phrase)
    return kept, removed


def _rejection(phrase: Phrase, said_or_written: set[str], min_score: float) -> str:
    """Return the reason to remove a phrase as "kind: what", "" to keep it.

    `said_or_written` are the stems of the words that were said, or are written in the pictures.
    """
    if phrase.kind == "text":  # text on screen may contain any words
        return ""
    found_words = _WORD.findall(phrase.text.lower())
    for kind, bad in (("forbidden", FORBIDDEN), ("instruction", _INSTRUCTION_WORDS)):
        if found := next((word for word in found_words if word in bad), ""):
            return f"{kind}: {found}"
    if phrase.score is not None and phrase.score < min_score:
        return f"picture: {phrase.text} ({phrase.score:.2f})"
    content = _content_stems(phrase.text)
    if phrase.score is None and content and content <= said_or_written:
        return f"echo: {phrase.text}"
    return ""


def _missing_subject(phrase: Phrase, kept: Sequence[Phrase]) -> str:
    """Return the reason to remove an appearance or an action without an accepted subject, "" to keep the phrase.

    `kept` are the accepted phrases before this one.
    """
    subjects = [one for one in kept if one.kind == "subject"]
    if phrase.kind == "appearance" and not any(one.subject == phrase.subject for one in subjects):
        return f"subject: {phrase.text}"
    if phrase.kind == "action":
        named = set[str]().union(*(_content_stems(one.text) for one in subjects))
        if not named & _content_stems(phrase.text):
            return f"subject: {phrase.text}"
    return ""


def _content_stems(text: str) -> set[str]:
    """Return the stems of the words in a text, without function words."""
    return {stem(word) for word in _WORD.findall(text.lower()) if word not in _FUNCTION_WORDS}
