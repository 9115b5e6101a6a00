"""Parse an engine's answer, and refuse it if it does not follow its schema, with a reason to send to the engine."""

import re
from collections.abc import Iterable
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from captioning.look.schema import Seen
from captioning.write.vocabulary import words

MAX_CHARACTERS = 16_000  # longer than any sensible answer
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*)\n```$", re.DOTALL)
_REFUSAL = re.compile(
    r"\b(?:i['’]?m sorry|i am sorry|i apologi[sz]e|i (?:can|could|will|do)(?:not|n['’]t| not)"
    r"|i['’]?m (?:not able|unable)|i am (?:not able|unable)|as an ai|as a language model)\b",
    re.IGNORECASE,
)
# The most common words of English, and of other languages in Latin letters.
_ENGLISH = frozenset(
    words("a an the is are was of in on at with and to from by his her its their near behind under over into out off")
)
_FOREIGN = frozenset(
    words(
        """
        der die das den dem des ein eine einen einem einer und ist sind mit auf im vor neben unter über hinter zwei
        le la les un une des du et est sont dans sur avec devant sous deux
        el los las una unos unas y es son en con del sobre delante dos
        il lo gli uno e sono nel nella con di che due o os as um uma na nos nas em dois duas
        de het een zijn met op bij twee en ett och är med på i bredvid två og er
        jest są na przy dwa dwie ja kaksi bir ve ile
        """
    )
)
_MIN_WORDS = 8  # an English text with at least this many words contains one of `_ENGLISH`


class Refused(ValueError):
    """The reason why an answer is refused, as "kind: what"."""


Answer = TypeVar("Answer", bound=BaseModel)


def read(text: str, schema: type[Answer], pictures: int = 0) -> Answer:
    """Parse a model's text as an answer that follows `schema`.

    Args:
        text: The model's text; a JSON object, with or without a code fence.
        schema: The schema that the answer must follow.
        pictures: How many pictures were shown; an answer that refers to another picture is refused.

    Raises:
        Refused: The kind is "empty", "refusal", "too long", "malformed" or "language".
    """
    text = text.strip()
    if not text:
        raise Refused("empty: no text")
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"too long: {len(text)} characters, at most {MAX_CHARACTERS}")
    fenced = _FENCE.match(text)
    bare = fenced.group(1).strip() if fenced else text
    if not bare.startswith("{") and _REFUSAL.search(bare):
        raise Refused("refusal: an apology instead of an answer")
    try:
        answer = schema.model_validate_json(bare)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise Refused(f"malformed: {place + ': ' if place else ''}{problem['msg']}"[:200]) from None
    texts = _free_text(answer)
    if any(_REFUSAL.search(one) for one in texts):
        raise Refused("refusal: an apology instead of an answer")
    if not is_english(texts):
        raise Refused("language: not in English")
    if isinstance(answer, Seen):
        _check_frames(answer, pictures)
    return answer


def _free_text(answer: BaseModel) -> list[str]:
    """List the texts of an answer that must be English: all except quotes and text on screen."""
    if isinstance(answer, Seen):
        subjects = [text for subject in answer.subjects for text in (subject.name, *subject.appearance)]
        return [answer.setting, *subjects, *(action.what for action in answer.actions)]
    return [re.sub(r"“[^“”]*”", " ", text) for text in answer.model_dump().values()]


def is_english(texts: Iterable[str]) -> bool:
    """Return whether texts seem to be English.

    At least 90 % of their letters must be Latin. They must have at least as many common words of English as of other
    languages, and at least one if they have 8 words or more.
    """
    whole = " ".join(texts).lower()
    letters = [c for c in whole if c.isalpha()]
    if sum(c > "\u024f" for c in letters) > 0.1 * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", whole)
    english = sum(word in _ENGLISH for word in words)
    foreign = sum(word in _FOREIGN for word in words if word not in _ENGLISH)
    return foreign <= english and (english > 0 or len(words) < _MIN_WORDS)


def _check_frames(answer: Seen, pictures: int) -> None:
    """Raise Refused if the answer refers to a picture number that is not from 1 to `pictures`."""
    for item in (*answer.subjects, *answer.actions, *answer.text_on_screen):
        for number in item.frames:
            if not 1 <= number <= pictures:
                raise Refused(f"malformed: frames: there is no picture {number} of {pictures}")
