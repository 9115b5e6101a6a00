"""Build the prompts for an engine from the texts of `prompt.md`, the pictures, and the schema of the answer."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from pydantic import BaseModel

from captioning.look.schema import Seen, Told


@dataclass(frozen=True)
class Prompt:
    """One question to an engine.

    Attributes:
        text: The text of the question.
        pictures: JPEG files, in order of time.
        answer: The schema that the answer must follow.
        sound: Mono (N,) float32 at 16 kHz for a model that hears, or None.
    """

    text: str
    pictures: Sequence[bytes]
    answer: type[BaseModel]
    sound: np.ndarray | None = None


@cache
def _sections() -> dict[str, str]:
    """Return the sections of `prompt.md` as {heading: text}."""
    whole = resources.files("captioning.look").joinpath("prompt.md").read_text(encoding="utf-8")
    parts = [part.partition("\n") for part in f"\n{whole}".split("\n# ")[1:]]
    return {name.strip(): text.strip() for name, _, text in parts}


def look(pictures: Sequence[bytes], times_s: Sequence[float], refused: str, sound: np.ndarray | None) -> Prompt:
    """Build the prompt that asks an engine what the pictures show.

    Args:
        pictures: JPEG files, in order of time.
        times_s: Their times in seconds from the clip's start.
        refused: Why the previous answer was refused, "" for a first question.
        sound: Mono (N,) float32 at 16 kHz, or None.
    """
    times = "\n".join(f"- picture {number}: {time_s:.1f} s" for number, time_s in enumerate(times_s, 1))
    text = _sections()["look"].format(count=len(pictures), times=times)
    return Prompt(text + _retry_text(refused), pictures, Seen, sound)


def tell(facts: dict[str, Any], refused: str) -> Prompt:
    """Build the prompt that asks an engine for a caption of these facts.

    The prompt contains the facts as JSON between two marker lines. The marker is a hash of the facts, so no fact can
    contain it and end the block early.

    Args:
        facts: JSON-serialisable facts.
        refused: Why the previous answer was refused, "" for a first question.
    """
    # Escape angle brackets: speech must not inject a model's control tokens, such as <|im_end|>.
    data = json.dumps(facts, ensure_ascii=False, indent=1).replace("<", "\\u003c").replace(">", "\\u003e")
    mark = f"DATA-{hashlib.sha256(data.encode()).hexdigest()[:16]}"
    return Prompt(_sections()["tell"].format(mark=mark, facts=data) + _retry_text(refused), (), Told)


def _retry_text(refused: str) -> str:
    """Return the text that tells why the previous answer was refused, "" for a first question."""
    return f"\n\n{_sections()['again'].format(reason=refused)}" if refused else ""
