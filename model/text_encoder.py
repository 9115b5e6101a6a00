"""Gemma 3 of any size as the text encoder: texts → all hidden states (the embedding and every layer).

As published: the raw prompt without chat template, with BOS, left-padded, truncated at `max_tokens`; the last state is
after the model's final norm, as transformers gives it. Positions count from each text's own first token, so a text's
states do not depend on its neighbours in the batch.
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
    """A frozen Gemma 3 text model with its tokenizer. `model` is the decoder stack without head (Gemma3TextModel)."""

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

        A GGUF file is unpacked once, beside itself, to `<name>.unpacked/` (safetensors in bfloat16, and the tokenizer),
        which takes about a minute; later loads read that folder in seconds.

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
        """(`num_states`, `hidden_size`) as the configuration says, without loading weights; ValueError as `load`."""
        config = _source(path_or_id)[1].get_text_config()
        return config.num_hidden_layers + 1, config.hidden_size

    @property
    def hidden_size(self) -> int:
        """Width of every state."""
        return int(self.model.config.hidden_size)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    @property
    def num_states(self) -> int:
        """The embedding and every layer."""
        return int(self.model.config.num_hidden_layers) + 1  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> tuple[tuple[Tensor, ...], Tensor]:
        """(states, mask): `num_states` tensors (B, S, hidden_size), S the longest text's tokens, and bool (B, S).

        Pads stand on the left; their states mean nothing. An empty text is its BOS alone.
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
    """What transformers loads from, and its configuration; ValueError when it is not a Gemma 3 model."""
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
    except (OSError, ValueError) as error:  # nothing there, or no model's configuration
        raise ValueError(f"text encoder {path_or_id!r} is not a model folder, a hub id or a .gguf file") from error
    if config.model_type not in ("gemma3", "gemma3_text"):
        raise ValueError(f"text encoder {path_or_id!r} is a {config.model_type} model; this family is made for Gemma 3")
    return source, config


def _unpacked(gguf: Path) -> Path:
    """The folder that holds a GGUF file's text model and tokenizer, made when it is missing or older than the file.

    transformers takes a GGUF apart in Python, which is slow; it is done once, and the lock keeps other processes of
    this machine from doing it at the same time.
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
