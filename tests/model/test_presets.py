"""Presets have the published number of parameters, and components must fit each other."""

from dataclasses import replace

import pytest
import torch

import model
from model.ltx2 import build_component
from model.presets import ModelConfig, preset
from model.upscaler import UpscalerConfig
from tests.model.helpers import count


def stream_of(name: str) -> str:
    """Return the stream of a parameter of the transformer."""
    cross = ("av_ca_", "a2v_ca", "audio_to_video_attn", "video_to_audio_attn")
    if any(mark in name for mark in cross):
        return "cross-modal"
    return "audio" if any(part.startswith("audio_") for part in name.split(".")) else "video"


@pytest.mark.parametrize(
    ("name", "total", "video", "audio", "cross"),
    [
        ("ltx2-19b", 18_876_174_592, 13_041_520_768, 3_265_980_544, 2_568_673_280),
        ("ltx2.3-22b", 18_988_838_144, 13_124_316_288, 3_286_408_320, 2_578_113_536),
    ],
)
def test_transformer_counts(name: str, total: int, video: int, audio: int, cross: int) -> None:
    transformer = model.build(name, "meta", components=["transformer"]).transformer
    assert count(transformer) == total
    found = {s: count(transformer, lambda n, s=s: stream_of(n) == s) for s in ("video", "audio", "cross-modal")}
    assert found == {"video": video, "audio": audio, "cross-modal": cross}


def test_other_parts_of_ltx2_19b() -> None:
    ltx2 = model.build("ltx2-19b", "meta")
    text = ltx2.text_conditioner
    assert {name: count(part) for name, part in ltx2.components.items()} == {
        "transformer": 18_876_174_592,
        "text_conditioner": 1_431_475_200,
        "video_vae": 1_222_479_601,
        "audio_vae": 53_248_146,
        "vocoder": 55_592_802,
        "upscaler": 497_867_904,
    }
    assert count(text, lambda n: "aggregate_embed" in n) == 722_534_400
    assert count(text.video_embeddings_connector) == count(text.audio_embeddings_connector) == 354_470_400
    assert (count(ltx2.video_vae.encoder), count(ltx2.video_vae.decoder)) == (694_098_881, 528_380_720)
    assert (count(ltx2.audio_vae.encoder), count(ltx2.audio_vae.decoder)) == (21_333_008, 31_915_138)
    assert len(ltx2.transformer.state_dict()) == 3_510
    assert all(tensor.is_meta for tensor in ltx2.state_dict().values())


def test_other_parts_of_ltx2_3_22b() -> None:
    ltx2 = model.build("ltx2.3-22b", "meta")
    text = ltx2.text_conditioner
    assert {name: count(part) for name, part in ltx2.components.items()} == {
        "transformer": 18_988_838_144,
        "text_conditioner": 3_172_227_584,
        "video_vae": 726_105_969,
        "audio_vae": 53_248_146,
        "vocoder": 128_537_448,
        "upscaler": 497_867_904,
    }
    assert count(text, lambda n: "video_aggregate_embed" in n) == 770_707_456
    assert count(text, lambda n: "audio_aggregate_embed" in n) == 385_353_728
    assert count(text.video_embeddings_connector) == 1_612_546_304
    assert count(text.audio_embeddings_connector) == 403_620_096
    assert (count(ltx2.video_vae.encoder), count(ltx2.video_vae.decoder)) == (318_936_897, 407_169_072)
    assert len(ltx2.transformer.state_dict()) == 4_186


def test_other_upscalers() -> None:
    assert count(build_component(UpscalerConfig.ltx2_x1_5(), "meta")) == 545_058_944
    assert count(build_component(UpscalerConfig.ltx2_temporal(), "meta")) == 130_968_192


def test_small_is_200_million_over_the_published_latents() -> None:
    config = preset("small")
    transformer = model.build(config, "meta", components=["transformer"]).transformer
    assert 190e6 < count(transformer) < 210e6
    published = preset("ltx2-19b")
    assert (config.video_vae, config.audio_vae, config.vocoder) == (
        published.video_vae,
        published.audio_vae,
        published.vocoder,
    )


def test_tiny_is_tiny_and_like_the_family() -> None:
    config = preset("tiny")
    ltx2 = model.build(config)
    assert count(ltx2.transformer) < 5e6
    assert sum(count(part) for part in ltx2.components.values()) < 40e6
    assert (config.text_conditioner.hidden_size, config.text_conditioner.num_states) == (640, 19)  # Gemma 3 270M
    assert (config.audio_vae.latent_channels, config.audio_vae.latent_bins) == (8, 16)
    with torch.no_grad():
        latent = ltx2.video_vae.encode(torch.zeros(1, 3, 17, 96, 64))
        assert latent.shape == (1, 32, 3, 3, 2)
        assert ltx2.video_vae.decode(latent).shape == (1, 3, 17, 96, 64)
        assert ltx2.upscaler(latent).shape == (1, 32, 3, 6, 4)
        mel = ltx2.audio_vae.decode(ltx2.audio_vae.encode(torch.zeros(1, 2, 69, 64)))
        assert mel.shape == (1, 2, 69, 64)
        assert ltx2.vocoder(mel).shape == (1, 2, 69 * 240)


def test_components() -> None:
    ltx2 = model.build("tiny", components=["vocoder", "audio_vae"])
    assert list(ltx2.components) == ["audio_vae", "vocoder"]
    assert ltx2.transformer is None
    with pytest.raises(ValueError, match="unknown component 'decoder'; choose among transformer"):
        model.build("tiny", components=["decoder"])
    with pytest.raises(ValueError, match=r"unknown preset 'tinny'; choose tiny, small, ltx2-19b, ltx2\.3-22b"):
        model.build("tinny")


def test_parameters_take_the_type_and_buffers_keep_theirs() -> None:
    ltx2 = model.build("tiny", dtype=torch.bfloat16)
    assert {p.dtype for p in ltx2.parameters()} == {torch.bfloat16}
    assert ltx2.video_vae.per_channel_statistics.std.dtype == torch.float32
    with torch.no_grad():
        pixels = torch.zeros(1, 3, 9, 64, 64, dtype=torch.bfloat16)
        assert ltx2.video_vae.decode(ltx2.video_vae.encode(pixels)).dtype == torch.bfloat16
        mel = torch.zeros(1, 2, 21, 64, dtype=torch.bfloat16)
        assert ltx2.vocoder(ltx2.audio_vae.decode(ltx2.audio_vae.encode(mel))).dtype == torch.bfloat16
        assert ltx2.upscaler(torch.zeros(1, 32, 2, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", {"in_channels": 64}, r"transformer.in_channels is 64, video_vae.latent_channels is 32"),
        ("transformer", {"audio_in_channels": 64}, "audio_in_channels is 64, audio_vae.token_width is 128"),
        ("transformer", {"caption_channels": 320}, "text width is 320, text_conditioner.video_width is 640"),
        ("upscaler", {"in_channels": 64}, "upscaler.in_channels is 64, video_vae.latent_channels is 32"),
    ],
)
def test_parts_must_fit(part: str, change: dict[str, int], message: str) -> None:
    tiny = preset("tiny")
    with pytest.raises(ValueError, match=message):
        replace(tiny, **{part: replace(getattr(tiny, part), **change)})


def test_projected_text_must_fit_the_blocks() -> None:
    projected = replace(preset("tiny").transformer, caption_channels=None)
    narrow = replace(
        preset("tiny").text_conditioner,
        per_modality_projections=True,
        connector_num_attention_heads=6,
        connector_attention_head_dim=32,
        audio_connector_num_attention_heads=6,
        audio_connector_attention_head_dim=32,
    )
    with pytest.raises(ValueError, match=r"audio text width is 96, text_conditioner\.audio_width is 192"):
        replace(preset("tiny"), transformer=projected, text_conditioner=narrow)
    fitting = replace(narrow, audio_connector_attention_head_dim=16)
    assert isinstance(replace(preset("tiny"), transformer=projected, text_conditioner=fitting), ModelConfig)
