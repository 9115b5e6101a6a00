"""The schemas that an engine's answer must follow: no other keys, and a limit for every length.

An answer that does not follow its schema exactly is refused. So if an engine obeys an instruction in the clip and
writes something else or something longer, that text is not used as a description.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_PHRASE = 100  # characters
MAX_WRITING = 200  # characters
MAX_TEXT = 3000  # characters
# Signs of more than a phrase: sentences, quotes, code, URLs.
_NOT_PHRASE = re.compile(r"[\n\r\t\"“”„«»{}\[\]<>|\\`*#=;:!?]|\.\s|https?|www\.")


def _phrase(text: str) -> str:
    """Return a phrase without full stops and spaces at its end.

    Raise ValueError if it is too long or more than plain words.
    """
    text = text.strip().rstrip(".").strip()
    if len(text) > MAX_PHRASE:
        raise ValueError(f"{len(text)} characters; a phrase has at most {MAX_PHRASE}")
    if found := _NOT_PHRASE.search(text):
        raise ValueError(f"a phrase is plain words, without {found.group(0)!r}")
    return text


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("empty; leave the whole entry out instead")
    return text


def _writing(text: str) -> str:
    """Return text on screen as one line of printable characters; raise ValueError if it is empty or too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not text or len(text) > MAX_WRITING:
        raise ValueError(f"{len(text)} characters; text on screen has 1 to {MAX_WRITING}")
    return text


def _bounded(text: str) -> str:
    """Return a caption as one line; raise ValueError if it is empty or too long."""
    text = " ".join(text.split())
    if not text or len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} characters; a text has 1 to {MAX_TEXT}")
    return text


# Validators check the lengths, so that the schema that is sent has no maxLength: not every server supports it.
Phrase = Annotated[str, AfterValidator(_phrase), AfterValidator(_not_empty)]
Writing = Annotated[str, AfterValidator(_writing)]
Text = Annotated[str, AfterValidator(_bounded)]
Frames = Annotated[list[int], Field(min_length=1, max_length=64, description="numbers of the pictures that show it")]


class _Answer(BaseModel):
    """Base of the schemas: an unknown key or a value of another type is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Subject(_Answer):
    """A person or thing in the pictures."""

    name: Phrase = Field(description="a noun phrase, such as: a woman")
    appearance: list[Phrase] = Field(max_length=6, description="noun phrases, such as: long black hair")
    frames: Frames


class Action(_Answer):
    """An action in the pictures."""

    what: Phrase = Field(description="a clause in the present tense, such as: a woman opens a door")
    frames: Frames


class OnScreen(_Answer):
    """Text that is written in the pictures."""

    words: Writing = Field(description="the words exactly as they are written")
    frames: Frames


class Seen(_Answer):
    """The answer to the question "look": what the pictures show, with actions in the order in which they happen."""

    setting: Phrase = Field(description="a noun phrase, such as: a kitchen")
    subjects: list[Subject] = Field(max_length=8)
    actions: list[Action] = Field(max_length=12)
    camera: Literal[
        "static", "pans left", "pans right", "tilts up", "tilts down", "zooms in", "zooms out", "moves", "unclear"
    ]
    text_on_screen: list[OnScreen] = Field(max_length=8)


class Told(_Answer):
    """The answer to the question "tell": a caption in three lengths."""

    short: Text
    medium: Text
    long: Text


def wire_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of an answer, as it is sent to an engine.

    References are replaced by their definitions, since not every server supports references. Titles and descriptions
    are left out.
    """
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inline(definitions[node["$ref"].rpartition("/")[2]])
        return {key: inline(value) for key, value in node.items() if key not in ("title", "description")}

    return inline(schema)
