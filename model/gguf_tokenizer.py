"""The tokenizer inside a Gemma GGUF file, as a Hugging Face fast tokenizer.

transformers reads the SentencePiece table of a GGUF file as a unigram model, which splits "dog" into "d" + "og".
Gemma's table is byte-pair encoding, where the score of a piece is the negative rank of its merge. This file rebuilds
the merges from the scores.

File layout (GGUF 3): magic, version, number of tensors, number of entries; then each entry's key, type and value. A
string or an array starts with its 64-bit length.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

# GGUF value types with a fixed size, as struct formats.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# SentencePiece token types.
_CONTROL, _USER_DEFINED = 3, 4


def load_tokenizer(gguf: Path) -> Any:
    """Build the tokenizer of a GGUF file.

    Args:
        gguf: file of a Gemma model.

    Returns:
        A `PreTrainedTokenizerFast` that adds BOS, pads on the left, and encodes unknown characters as bytes.

    Raises:
        ValueError: this is not a GGUF file, or its tokenizer is not SentencePiece BPE ("llama").
    """
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    entries = read_metadata(gguf)
    if entries.get("tokenizer.ggml.model") != "llama":
        raise ValueError(
            f"{gguf}: its tokenizer is {entries.get('tokenizer.ggml.model')!r}, not SentencePiece ('llama')"
        )
    # The file stores runs of spaces as spaces and single spaces as ▁.
    tokens = [t.replace(" ", "▁") for t in entries["tokenizer.ggml.tokens"]]
    scores, kinds = entries["tokenizer.ggml.scores"], entries["tokenizer.ggml.token_type"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown, bos, eos, pad = (
        tokens[entries[f"tokenizer.ggml.{name}_token_id"]] for name in ("unknown", "bos", "eos", "padding")
    )
    model = BPE(vocabulary, _merges(vocabulary, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    # Do not register the 6,242 "<unused…>" pieces: no text has them, and they make loading ten seconds slower.
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL and not t.startswith("<unused")]
    written = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    tokenizer.add_tokens([AddedToken(t, normalized=True, special=False) for t in written])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        pad_token=pad,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return the merges of byte-pair encoding, highest priority first.

    A merge is a pair of pieces whose concatenation is a piece too. Its priority is the score of that piece; of equal
    scores, the merge with the shorter left piece comes first.

    Args:
        vocabulary: piece → index.
        scores: score of each index.
    """
    found = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], cut, left, right))
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]


def read_metadata(gguf: Path) -> dict[str, Any]:
    """Return all key-value entries of a GGUF file; raises ValueError for another file or version."""
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{gguf} is not a GGUF file")
        version, _tensors, count = struct.unpack("<IQQ", file.read(20))
        if version not in (2, 3):
            raise ValueError(f"{gguf} has GGUF version {version}; known are 2 and 3")
        entries = {}
        for _ in range(count):
            key = _string(file)
            entries[key] = _value(file, _scalar(file, 4))
        return entries


def _scalar(file: BinaryIO, kind: int) -> Any:
    """Read one number of the GGUF value type `kind`."""
    form = _SCALARS[kind]
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    """Read one string: its length, then its bytes."""
    return file.read(_scalar(file, 10)).decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    """Read one value of the GGUF value type `kind`: a number, a string or an array as a list."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _scalar(file, kind)
    inner, length = _scalar(file, 4), _scalar(file, 10)
    if inner in _SCALARS:
        form = _SCALARS[inner]
        return list(struct.unpack(f"<{length}{form[1]}", file.read(struct.calcsize(form) * length)))
    return [_value(file, inner) for _ in range(length)]
