"""Random vision-language models of their real classes, as Hugging Face folders with a tokenizer of bytes."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_TOWER = re.compile(r"^vision_tower\.(?!vision_model\.)")
_GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_turn>\n"
    "{% endfor %}<start_of_turn>model\n"
)
_QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def write_gemma_vision(folder: Path, *, untrained: bool = True) -> Path:
    """Gemma3ForConditionalGeneration with its SigLIP tower; marked as random weights unless told otherwise."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    torch.manual_seed(0)
    names = {
        "bos_token": "<bos>",
        "eos_token": "<end_of_turn>",
        "pad_token": "<pad>",
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = _tokenizer(names, ["<start_of_turn>"])
    # As in Gemma's vocabulary, where vLLM looks for them.
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(text) for name, text in names.items()}
    # 32: the smallest head that vLLM has on a CPU.
    config = Gemma3Config(
        text_config={
            **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 8192},
        },
        vision_config={
            **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
            **{"image_size": 56, "patch_size": 14, "vision_use_head": False},
        },
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        bos_token_id=ids["bos_token"],
        eos_token_id=ids["eos_token"],
        pad_token_id=ids["pad_token"],
    )
    model = Gemma3ForConditionalGeneration(config)
    pictures = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = Gemma3Processor(pictures, tokenizer, chat_template=_GEMMA_CHAT, image_seq_length=4)
    return _write(folder, model, processor, untrained)


def write_qwen_omni(folder: Path, *, untrained: bool = True) -> Path:
    """Qwen2.5-Omni as it is published, with the thinker's weights alone: pictures, sound and text in, text out."""
    from transformers import (
        Qwen2_5OmniConfig,
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2VLImageProcessor,
        WhisperFeatureExtractor,
    )
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    torch.manual_seed(0)
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    tokenizer = _tokenizer(names, [], qwen=True)
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(text) for name, text in names.items()}
    config = Qwen2_5OmniThinkerConfig(
        audio_config={
            **{"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32},
            **{"d_model": 32, "n_window": 50, "output_dim": 32, "max_source_positions": 1500},
        },
        vision_config={
            **{"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32},
            **{"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [0]},
        },
        text_config={
            **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8192},
            "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        image_token_index=ids["image_token"],
        audio_token_index=ids["audio_token"],
        video_token_index=ids["video_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        bos_token_id=ids["bos_token"],
        eos_token_id=ids["eos_token"],
        pad_token_id=ids["pad_token"],
    )
    model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    processor: Any = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        video_processor=Qwen2VLVideoProcessor(),  # pyright: ignore[reportCallIssue]
        feature_extractor=WhisperFeatureExtractor(feature_size=16),
        tokenizer=tokenizer,
        chat_template=_QWEN_CHAT,
    )
    _write(folder, model, processor, untrained)
    (weights,) = folder.glob("*.safetensors")
    with_prefix = {f"thinker.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(with_prefix, weights, metadata={"format": "pt"} | ({"untrained": "true"} if untrained else {}))
    # As published: one file for both, of which save_pretrained leaves the last.
    parts = (processor.feature_extractor, processor.image_processor)
    both = {name: value for part in parts for name, value in json.loads(part.to_json_string()).items()}
    (folder / "preprocessor_config.json").write_text(json.dumps(both))
    Qwen2_5OmniConfig(thinker_config=config.to_dict()).save_pretrained(folder)
    return folder


def _tokenizer(names: dict[str, str], more: list[str], *, qwen: bool = False):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (*names.values(), *more)])
    if not qwen:  # as Gemma's adds it to any text
        bos = names["bos_token"]
        begun, ids = [bos, "$A"], [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=begun, pair=[*begun, "$B"], special_tokens=ids)
    standard = {"bos_token", "eos_token", "pad_token"}
    kind = Qwen2TokenizerFast if qwen else PreTrainedTokenizerFast
    return kind(
        tokenizer_object=tokenizer,
        extra_special_tokens={name: text for name, text in names.items() if name not in standard},
        **{name: text for name, text in names.items() if name in standard},
    )


def _write(folder: Path, model, processor, untrained: bool) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        # As published: transformers 5 shortens the names of Gemma's tower, and vLLM does not know them then.
        named = {_TOWER.sub("vision_tower.vision_model.", name): tensor for name, tensor in load_file(path).items()}
        save_file(named, path, metadata={"format": "pt"} | ({"untrained": "true"} if untrained else {}))
    return folder
