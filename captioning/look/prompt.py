"""What an engine is asked: the texts of `prompt.md`, the pictures, and the schema of the answer."""

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
        text: the prompt. pictures: JPEG files, in order of time. sound: mono (N,) float32 at 16 kHz for a model that
            hears, or None. answer: the schema that its answer must have.
    """

    text: str
    pictures: Sequence[bytes]
    answer: type[BaseModel]
    sound: np.ndarray | None = None


@cache
def _sections() -> dict[str, str]:
    whole = resources.files("captioning.look").joinpath("prompt.md").read_text(encoding="utf-8")
    parts = [part.partition("\n") for part in f"\n{whole}".split("\n# ")[1:]]
    return {name.strip(): text.strip() for name, _, text in parts}


def look(pictures: Sequence[bytes], times_s: Sequence[float], refused: str, sound: np.ndarray | None) -> Prompt:
    """The question what is seen. `refused` is why the answer before was refused, "" for the first time."""
    times = "\n".join(f"- picture {number}: {time_s:.1f} s" for number, time_s in enumerate(times_s, 1))
    text = _sections()["look"].format(count=len(pictures), times=times)
    return Prompt(text + _retry_text(refused), pictures, Seen, sound)


def tell(facts: dict[str, Any], refused: str) -> Prompt:
    """The question for a caption of these facts, which stand in it as JSON between two lines that they cannot hold."""
    # No angle brackets: what was said cannot hold a model's own markers, such as <|im_end|>.
    data = json.dumps(facts, ensure_ascii=False, indent=1).replace("<", "\\u003c").replace(">", "\\u003e")
    mark = f"DATA-{hashlib.sha256(data.encode()).hexdigest()[:16]}"
    return Prompt(_sections()["tell"].format(mark=mark, facts=data) + _retry_text(refused), (), Told)


def _retry_text(refused: str) -> str:
    return f"\n\n{_sections()['again'].format(reason=refused)}" if refused else ""
