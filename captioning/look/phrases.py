"""Phrases of what is seen, each with its pictures' times: the claims that an answer makes, and which of them stand.

A phrase is taken out where it holds an emotion, intent, guess or judgement, or words addressed to a reader; where
open_clip does not find it in its pictures; where, unconfirmed by open_clip, all its words were said or written in the
clip (such a phrase may be an instruction that was obeyed, and has no evidence of its own); and where an action names no
subject that stands.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from captioning.look.schema import Seen
from captioning.write.vocabulary import FORBIDDEN, words
from captioning.write.wording import NEUTRAL_WORDS, stem

Kind = Literal["setting", "subject", "appearance", "action", "text"]
# (phrases, numbers of their pictures) → each phrase's score with its best picture
Scores = Callable[[Sequence[str], Sequence[Sequence[int]]], list[float]]

_WORD = re.compile(r"[^\W_]+")
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
        kind: of the answer's field that it comes from. subject: the number, from 0, of the subject it belongs to.
        pictures: numbers, from 1, of the pictures that show it. spans: their times, seconds; neighbours are one span.
        score: open_clip's, None where it was not asked.
    """

    kind: Kind
    text: str
    pictures: tuple[int, ...]
    spans: tuple[tuple[float, float], ...]
    subject: int | None = None
    score: float | None = None

    def plain(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        data = asdict(self)
        return data | {"pictures": list(self.pictures), "spans": [list(span) for span in self.spans]}


def phrases_of(seen: Seen, times_s: Sequence[float]) -> list[Phrase]:
    """Every phrase of an answer, in the answer's order. `times_s`: of the pictures, seconds."""

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
    """The phrases that stand, and those that were taken out with the reason as "kind: what".

    Args:
        said: every word that was said in the clip.
        scores: open_clip's, or None. min_score: the score below which a phrase is taken out.
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
    if phrase.kind == "text":  # a quote, whatever it says
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
    """Why a phrase cannot stand without those before it that were taken out."""
    subjects = [one for one in kept if one.kind == "subject"]
    if phrase.kind == "appearance" and not any(one.subject == phrase.subject for one in subjects):
        return f"subject: {phrase.text}"
    if phrase.kind == "action":
        named = set[str]().union(*(_content_stems(one.text) for one in subjects))
        if not named & _content_stems(phrase.text):
            return f"subject: {phrase.text}"
    return ""


def _content_stems(text: str) -> set[str]:
    return {stem(word) for word in _WORD.findall(text.lower()) if word not in _FUNCTION_WORDS}
