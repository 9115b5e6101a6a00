"""Gemma as text encoder: a tiny random model, and the real 270M from GGUF where its package is installed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.packaged_weights import resolve
from model.text_encoder import GemmaTextEncoder

TEXTS = ["A dog barks twice in a red room.", "Rain.", "", "A woman laughs while a train passes slowly in the distance."]


class Words:
    """A tokenizer that hashes words, with the interface of Hugging Face."""

    pad_token, eos_token, padding_side = "<pad>", "<eos>", "right"

    def __call__(self, texts: list[str], max_length: int, **_: Any) -> dict[str, torch.Tensor]:
        assert self.padding_side == "left"
        rows = [[2, *(3 + sum(map(ord, word)) % 90 for word in text.split())][:max_length] for text in texts]
        longest = max(map(len, rows))
        return {
            "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }


@pytest.fixture(scope="module")
def tiny() -> GemmaTextEncoder:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=8,
    )  # fmt: skip
    return GemmaTextEncoder(Gemma3TextModel(config), Words(), max_tokens=24)


def assert_batch_equals_single(encoder: GemmaTextEncoder, tolerance: float) -> None:
    states, mask = encoder.encode(TEXTS)
    assert len(states) == encoder.num_states
    assert states[0].shape == (len(TEXTS), mask.shape[1], encoder.hidden_size)
    assert not bool((mask[:, :-1] & ~mask[:, 1:]).any())  # left-padded
    assert mask[2].sum() == 1  # an empty text is its BOS
    for index, text in enumerate(TEXTS):
        alone, alone_mask = encoder.encode([text])
        count = int(alone_mask.sum())
        assert count == mask[index].sum()
        for ours, single in zip(states, alone, strict=True):
            assert (ours[index, -count:] - single[0]).abs().max() <= tolerance * single.abs().max()


def test_batch_equals_single(tiny: GemmaTextEncoder) -> None:
    assert (tiny.hidden_size, tiny.num_states) == (32, 4)
    assert_batch_equals_single(tiny, 1e-5)


def test_truncates_and_refuses(tiny: GemmaTextEncoder, tmp_path: Path) -> None:
    _, mask = tiny.encode(["word " * 100])
    assert mask.shape == (1, 24)
    with pytest.raises(ValueError, match="at least one text"):
        tiny.encode([])
    with pytest.raises(ValueError, match="no such file"):
        GemmaTextEncoder.load(tmp_path / "gemma.gguf")
    with pytest.raises(ValueError, match="not a model folder"):
        GemmaTextEncoder.load(tmp_path)


def test_loads_a_hugging_face_folder(tiny: GemmaTextEncoder, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tiny.model.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "rain": 2}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(tmp_path)
    loaded = GemmaTextEncoder.load(tmp_path, dtype=torch.float32)
    ids = torch.tensor([[2, 2, 1]])
    assert torch.equal(loaded.model(input_ids=ids).last_hidden_state, tiny.model(input_ids=ids).last_hidden_state)
    states, mask = loaded.encode(["rain"])
    assert (len(states), mask.tolist()) == (4, [[True]])


@pytest.fixture(scope="module")
def gemma() -> GemmaTextEncoder:
    try:
        path = resolve("package:gemma3-270m")
    except ValueError as error:
        pytest.skip(str(error))
    return GemmaTextEncoder.load(path, max_tokens=64, dtype=torch.float32)


@pytest.mark.slow
def test_real_gemma(gemma: GemmaTextEncoder) -> None:
    """A word is one token, texts of a batch do not mix, and English is far likelier than its shuffled words."""
    assert (gemma.hidden_size, gemma.num_states) == (640, 19)
    tokens = gemma.tokenizer.tokenize("a dog barks\n\n  twice\t🎬")
    assert tokens == ["a", "▁dog", "▁b", "arks", "\n\n", "▁▁", "twice", "\t", "🎬"]
    assert gemma.tokenizer("The capital of France is")["input_ids"] == [2, 818, 5279, 529, 7001, 563]
    assert_batch_equals_single(gemma, 1e-4)

    def loss(text: str) -> float:
        ids = gemma.tokenizer(text, return_tensors="pt")["input_ids"]
        embedding: Any = gemma.model.embed_tokens  # tied to the head
        logits = gemma.model(input_ids=ids).last_hidden_state @ embedding.weight.T
        return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()

    with torch.no_grad():
        english = loss("The man walks down the street with his dog. It is raining, and the cars pass slowly.")
        shuffled = loss("dog the slowly. street with It cars his pass down is man raining, and The walks the")
    assert english < 4.0
    assert shuffled > english + 2
