"""Tiny models of both releases with random values in every tensor, for tests of the layouts."""

from dataclasses import replace

import torch
from torch import nn

import model
from model.presets import ModelConfig, preset
from model.text_conditioner import TextConditionerConfig
from model.upscaler import UpscalerConfig
from model.vae import LatentStatistics
from model.video_vae import VideoVAEConfig
from model.vocoder import VocoderConfig, VocoderWithBWEConfig


def tiny_2_0() -> ModelConfig:
    """`tiny` with a smaller text encoder; A↔V timesteps as ltx-core 1.0.0 has them."""
    tiny = preset("tiny")
    text = replace(
        tiny.text_conditioner,
        hidden_size=64,
        num_states=3,
        connector_num_attention_heads=4,
        connector_attention_head_dim=16,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=16,
    )
    transformer = replace(tiny.transformer, num_layers=2, caption_channels=64, av_timestep="other")
    return replace(tiny, transformer=transformer, text_conditioner=text)


def tiny_2_3() -> ModelConfig:
    """The 22B release's architecture in every part, at tiny's widths."""
    tiny = tiny_2_0()
    bigvgan = {"activation": "snakebeta", "final_bias": False, "channels": 64}
    return ModelConfig(
        transformer=replace(
            tiny.transformer, caption_channels=None, apply_gated_attention=True, cross_attention_adaln=True
        ),
        text_conditioner=TextConditionerConfig(
            hidden_size=64,
            num_states=3,
            per_modality_projections=True,
            connector_num_attention_heads=6,
            connector_attention_head_dim=32,
            connector_num_layers=2,
            audio_connector_num_attention_heads=6,
            audio_connector_attention_head_dim=16,
            audio_connector_num_layers=2,
            connector_apply_gated_attention=True,
            context_tokens=0,
        ),
        video_vae=replace(
            VideoVAEConfig.ltx2_3(), latent_channels=32, decoder_base_channels=16, encoder_layers=(1, 1, 1, 1, 1)
        ),
        audio_vae=tiny.audio_vae,
        vocoder=VocoderWithBWEConfig(
            vocoder=VocoderConfig(
                upsample_rates=(5, 2, 2, 2, 2, 2),
                upsample_kernels=(11, 4, 4, 4, 4, 4),
                final="clamp",
                sample_rate=16_000,
                **bigvgan,
            ),
            bwe=VocoderConfig(upsample_kernels=(12, 11, 4, 4, 4), final="none", sample_rate=48_000, **bigvgan),
        ),
        upscaler=UpscalerConfig(
            in_channels=32, mid_channels=32, num_blocks_per_stage=1, spatial_scale=1.5, rational_resampler=True
        ),
    )


def random_model(config: ModelConfig, seed: int = 0) -> model.LTX2:
    """Fresh, and noise on every parameter and statistic (a fresh model's gates are zero, and hide what they gate)."""
    torch.manual_seed(seed)
    ltx2 = model.build(config)
    randomise(ltx2, seed)
    return ltx2


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3 * fan_in**-0.5)
    for part in module.modules():
        if isinstance(part, LatentStatistics):
            part.set(
                torch.randn(part.mean.shape, generator=generator),
                torch.rand(part.mean.shape, generator=generator) + 0.5,
            )
