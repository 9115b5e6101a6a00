"""The output schemas that every engine's answer must follow, strict and bounded.

An answer that does not follow its schema exactly is refused. So an engine that obeys an instruction in the clip, and
writes something else or something longer, cannot pass that off as a description.
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
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not text or len(text) > MAX_WRITING:
        raise ValueError(f"{len(text)} characters; text on screen has 1 to {MAX_WRITING}")
    return text


def _bounded(text: str) -> str:
    text = " ".join(text.split())
    if not text or len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} characters; a text has 1 to {MAX_TEXT}")
    return text


# Check the length here, not in the schema that is sent: not every server's grammar supports maxLength.
Phrase = Annotated[str, AfterValidator(_phrase), AfterValidator(_not_empty)]
Writing = Annotated[str, AfterValidator(_writing)]
Text = Annotated[str, AfterValidator(_bounded)]
Frames = Annotated[list[int], Field(min_length=1, max_length=64, description="numbers of the pictures that show it")]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Subject(_Answer):
    """Somebody or something that is seen."""

    name: Phrase = Field(description="a noun phrase, such as: a woman")
    appearance: list[Phrase] = Field(max_length=6, description="noun phrases, such as: long black hair")
    frames: Frames


class Action(_Answer):
    """Something that is done."""

    what: Phrase = Field(description="a clause in the present tense, such as: a woman opens a door")
    frames: Frames


class OnScreen(_Answer):
    """Writing in the picture."""

    words: Writing = Field(description="the words exactly as they are written")
    frames: Frames


class Seen(_Answer):
    """What is seen in a clip; actions are listed in the order in which they happen."""

    setting: Phrase = Field(description="a noun phrase, such as: a kitchen")
    subjects: list[Subject] = Field(max_length=8)
    actions: list[Action] = Field(max_length=12)
    camera: Literal[
        "static", "pans left", "pans right", "tilts up", "tilts down", "zooms in", "zooms out", "moves", "unclear"
    ]
    text_on_screen: list[OnScreen] = Field(max_length=8)


class Told(_Answer):
    """A caption in three lengths."""

    short: Text
    medium: Text
    long: Text


def wire_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema for an engine, with references inlined: not every grammar compiler follows them."""
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
