"""The interface of the engines that describe a clip's pictures, and what they share.

The engines implement it in `endpoint.py` and `transformers_engine.py`; `engines.py` builds the one that the settings
name. `vllm` runs as stages of the dataflow instead (`pipelines/dataflow/vllm_stage.py`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from captioning.look.prompt import Prompt

# A safetensors file with this key in its metadata has random weights (for tests and trials). What they write is never
# used in a caption.
UNTRAINED = "untrained"


class NoAnswer(Exception):
    """The reason why a model gave no answer: the time limit, an error for this clip, or a server that kept failing."""


class EngineGone(Exception):
    """The server is gone or refuses the key; no clip is at fault.

    It ends the run. The same command resumes the run.
    """


class VisionEngine(Protocol):
    """A model that answers questions about a clip.

    Attributes:
        untrained: Whether the weights are marked as random. Then the answers are stored, but no caption uses them.
        hears: Whether the model accepts `Prompt.sound`.
    """

    untrained: bool
    hears: bool

    def ask(self, prompts: Sequence[Prompt]) -> list[str | NoAnswer]:
        """Return for each prompt the text of the model's answer, or `NoAnswer` with the reason.

        Raises:
            EngineGone: The engine cannot be used any more.
        """
        ...


def check_model(model: str) -> None:
    """Check that a model folder or hub id has a model. Load its configuration at most.

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
    """Return whether a weights file in a model folder is marked as random (see `UNTRAINED`); False for a hub id."""
    from safetensors import safe_open

    for path in sorted(Path(folder).expanduser().glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if UNTRAINED in (file.metadata() or {}):
                return True
    return False
