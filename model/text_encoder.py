"""Gemma 3 of any size as the text encoder: texts → all hidden states (the embedding and every layer).

As published (arXiv 2601.03233 §3), the prompt has no chat template, starts with BOS, is left-padded and is truncated
at `max_tokens`; the last state is after the final norm, as transformers returns it. Positions count from the first
token of each text, so the states of a text do not depend on the other texts of the batch.

Shapes: B texts, S tokens of the longest text.
"""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.gguf_tokenizer import load_tokenizer


class GemmaTextEncoder(nn.Module):
    """A frozen Gemma 3 text model with its tokenizer.

    Args:
        model: the decoder stack without head (Gemma3TextModel).
        tokenizer: of transformers.
        max_tokens: largest number of tokens of a text; longer texts are truncated.

    Raises:
        ValueError: `max_tokens` is below 1.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, max_tokens: int = 1024):
        super().__init__()
        if max_tokens < 1:
            raise ValueError(f"max_tokens {max_tokens} must be at least 1")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.max_tokens = max_tokens

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        max_tokens: int = 1024,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> "GemmaTextEncoder":
        """Load from a Hugging Face folder, a hub id or a `.gguf` file.

        The first load of a GGUF file converts it to the folder `<name>.unpacked/` beside it (safetensors in bfloat16,
        and the tokenizer), which takes about a minute; later loads read that folder in seconds.

        Args:
            path_or_id: folder, hub id or `.gguf` file.
            max_tokens: largest number of tokens of a text.
            dtype: of the weights.
            device: of the model.

        Raises:
            ValueError: the path does not exist, or it is not a Gemma 3 model.
        """
        import transformers

        source, config = _source(path_or_id)
        model = transformers.AutoModel.from_pretrained(source, dtype=dtype)
        if config.model_type == "gemma3":
            model = model.language_model  # the vision tower is not used
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        return cls(model.to(device), tokenizer, max_tokens)

    @staticmethod
    def sizes(path_or_id: str | Path) -> tuple[int, int]:
        """Return `num_states` and `hidden_size` of a model without loading weights; raises ValueError as `load`."""
        config = _source(path_or_id)[1].get_text_config()
        return config.num_hidden_layers + 1, config.hidden_size

    @property
    def hidden_size(self) -> int:
        """Width of every state."""
        return int(self.model.config.hidden_size)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    @property
    def num_states(self) -> int:
        """Number of states: the embedding and every layer."""
        return int(self.model.config.num_hidden_layers) + 1  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return all hidden states of texts.

        Args:
            texts: B texts; an empty one is encoded as BOS alone.

        Returns:
            `num_states` tensors (B, S, hidden_size), and the mask (B, S) bool, False for the pads on the left, whose
            states have no meaning.

        Raises:
            ValueError: there is no text.
        """
        if not texts:
            raise ValueError("give the text encoder at least one text")
        encoded = self.tokenizer(
            [text.strip() for text in texts],
            padding="longest",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        device = next(self.model.parameters()).device
        mask = encoded["attention_mask"].to(device)
        out = self.model(
            input_ids=encoded["input_ids"].to(device),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            output_hidden_states=True,
            use_cache=False,
        )
        return tuple(out.hidden_states), mask.bool()


def _source(path_or_id: str | Path) -> tuple[str, Any]:
    """Return the folder or hub id that transformers loads, and the model's configuration.

    A `.gguf` file is unpacked first. Raises ValueError where there is no such model, or it is not Gemma 3.
    """
    import transformers

    path = Path(path_or_id)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"text encoder {path_or_id}: no such file")
        source = str(_unpacked(path))
    else:
        source = str(path_or_id)
    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:  # no such path, or no configuration of a model
        raise ValueError(f"text encoder {path_or_id!r} is not a model folder, a hub id or a .gguf file") from error
    if config.model_type not in ("gemma3", "gemma3_text"):
        raise ValueError(f"text encoder {path_or_id!r} is a {config.model_type} model; this family is made for Gemma 3")
    return source, config


def _unpacked(gguf: Path) -> Path:
    """Return the folder with the text model and the tokenizer of a GGUF file; make it if it is missing or outdated.

    transformers decodes a GGUF file in Python, which is slow, so this happens once. A lock file prevents other
    processes of this machine from doing it at the same time.
    """
    import transformers

    folder = gguf.with_name(gguf.name + ".unpacked")
    if not os.access(gguf.parent, os.W_OK):
        raise ValueError(f"text encoder {gguf}: its folder is not writable, and unpacking needs room beside the file")
    with gguf.with_name(gguf.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists() and folder.stat().st_mtime >= gguf.stat().st_mtime:
            return folder
        half = gguf.with_name(gguf.name + ".half")
        for stale in (half, folder):
            shutil.rmtree(stale, ignore_errors=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
        )
        if model.config.model_type != "gemma3_text":
            raise ValueError(
                f"text encoder {gguf} is a {model.config.model_type} model; this family is made for Gemma 3"
            )
        model.model.save_pretrained(half)
        load_tokenizer(gguf).save_pretrained(half)
        half.rename(folder)
    return folder
