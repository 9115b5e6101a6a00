"""Models with random weights, made where they are measured."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import model
from model.presets import ModelConfig, preset
from model.transformer import DualStreamTransformer, TransformerConfig
from model.video_vae import VideoVAEConfig
from model.vocoder import VocoderConfig, VocoderWithBWEConfig


def empty_transformer(config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> DualStreamTransformer:
    """A transformer in `dtype` from the start: built whole in float32, 19B parameters would fill the card."""
    built = model.build_component(config, "meta", dtype).to_empty(device=device)
    randomise(built)
    assert isinstance(built, DualStreamTransformer)
    return built


@torch.no_grad()
def randomise(module: nn.Module, std: float = 0.02) -> None:
    """Fill every parameter with noise, on its own device: zeros, as gates begin, would hide what they gate."""
    for parameter in module.parameters():
        parameter.normal_(std=std)


@torch.no_grad()
def perturb(module: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Add noise to every parameter as it was initialised, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        noise = torch.randn(parameter.shape, generator=generator) * scale * fan_in**-0.5
        parameter.add_(noise.to(parameter))


def tiny(release: str) -> ModelConfig:
    """Preset `tiny` with the architecture of a release, "2.0" or "2.3", in every part."""
    config = preset("tiny")
    if release == "2.0":
        return config
    snake: dict[str, Any] = {"activation": "snakebeta", "final_bias": False, "channels": 64}
    text = replace(
        config.text_conditioner,
        per_modality_projections=True,
        connector_num_attention_heads=6,
        connector_attention_head_dim=32,
        audio_connector_num_attention_heads=6,
        audio_connector_attention_head_dim=16,
        connector_apply_gated_attention=True,
    )
    return replace(
        config,
        transformer=replace(
            config.transformer, caption_channels=None, apply_gated_attention=True, cross_attention_adaln=True
        ),
        text_conditioner=text,
        video_vae=replace(
            VideoVAEConfig.ltx2_3(), latent_channels=32, decoder_base_channels=16, encoder_layers=(1, 1, 1, 1, 1)
        ),
        vocoder=VocoderWithBWEConfig(
            vocoder=VocoderConfig(
                upsample_rates=(5, 2, 2, 2, 2, 2),
                upsample_kernels=(11, 4, 4, 4, 4, 4),
                final="clamp",
                sample_rate=16_000,
                **snake,
            ),
            bwe=VocoderConfig(upsample_kernels=(12, 11, 4, 4, 4), final="none", sample_rate=48_000, **snake),
        ),
    )


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ in float64; NaN where either has one."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())
