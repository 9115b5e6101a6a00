"""The interface of the engines that look at a clip, and what they share.

The engines implement it in `endpoint.py` and `transformers_engine.py`; `engines.py` builds the one that the settings
name. `vllm` runs as stages of the dataflow instead (`pipelines/dataflow/vllm_stage.py`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from captioning.look.prompt import Prompt

# Metadata key of a safetensors file: the weights are random (tests, trials), and what they write is no caption.
UNTRAINED = "untrained"


class NoAnswer(Exception):
    """A model gave no answer: it ran out of time, failed on the clip, or its server kept failing; the text says why."""


class EngineGone(Exception):
    """The server is gone or refuses the key; no clip is at fault.

    The run ends, and resumes when the same command is called again.
    """


class VisionEngine(Protocol):
    """A model that answers questions about a clip.

    Attributes:
        untrained: The weights are marked as random; its answers are stored as such and never used in a caption.
        hears: Whether the model takes a prompt's sound.
    """

    untrained: bool
    hears: bool

    def ask(self, prompts: Sequence[Prompt]) -> list[str | NoAnswer]:
        """Ask each prompt, and return the text of each answer, or why there is none.

        Raises:
            EngineGone: The engine cannot be used any more.
        """
        ...


def check_model(model: str) -> None:
    """Refuse a model folder or hub id that cannot be loaded.

    Raises:
        ValueError: The folder holds no model, or the hub id cannot be found.
    """
    folder = Path(model).expanduser()
    if folder.exists() or model.startswith((".", "/", "~")):
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"caption.seen.model {model!r}: no config.json and .safetensors weights there; give a model folder or "
                "a hub id"
            )
        return
    import transformers

    try:
        transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"caption.seen.model {model!r}: neither a folder nor a model of the hub that can be reached"
        ) from error


def is_untrained(folder: str) -> bool:
    """Return whether the weights in a model folder are marked as random."""
    from safetensors import safe_open

    for path in sorted(Path(folder).expanduser().glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if UNTRAINED in (file.metadata() or {}):
                return True
    return False
