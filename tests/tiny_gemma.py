"""A random Gemma 3 of any size with a word tokenizer, as a Hugging Face folder."""

from pathlib import Path

import torch

WORDS = ["<pad>", "<bos>", "<unk>", "a", "ball", "bounces", "someone", "speaks", "and", "sample", *map(str, range(8))]


def write_gemma(folder: Path, hidden_size: int = 640, layers: int = 18) -> Path:
    """The defaults are what the tiny preset's projection takes. Gives `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import Gemma3TextConfig, Gemma3TextModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    text = Gemma3TextConfig(
        vocab_size=64, hidden_size=hidden_size, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=1,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    Gemma3TextModel(text).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>").save_pretrained(folder)
    return folder
