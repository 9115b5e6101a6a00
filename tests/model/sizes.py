"""Tiny models of both releases with random values in every tensor, for tests of the layouts."""

from dataclasses import replace

import torch
from torch import nn

import model
from benchmarks.gpu.models import tiny
from model.presets import ModelConfig, preset
from model.vae import LatentStatistics


def tiny_2_0() -> ModelConfig:
    """Return `tiny` with a smaller text encoder and the A↔V timesteps of ltx-core 1.0.0."""
    config = preset("tiny")
    text = replace(
        config.text_conditioner,
        hidden_size=64,
        num_states=3,
        connector_num_attention_heads=4,
        connector_attention_head_dim=16,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=16,
    )
    transformer = replace(config.transformer, num_layers=2, caption_channels=64, av_timestep="other")
    return replace(config, transformer=transformer, text_conditioner=text)


def tiny_2_3() -> ModelConfig:
    """Return the architecture of the 22B release at the widths of `tiny`, with a smaller text encoder."""
    config = tiny("2.3")
    return replace(
        config,
        transformer=replace(config.transformer, num_layers=2, av_timestep="other"),
        text_conditioner=replace(
            config.text_conditioner,
            hidden_size=64,
            num_states=3,
            connector_num_layers=2,
            audio_connector_num_layers=2,
        ),
        upscaler=replace(config.upscaler, spatial_scale=1.5, rational_resampler=True),
    )


def random_model(config: ModelConfig, seed: int = 0) -> model.LTX2:
    """Build a model and add noise to every parameter and statistic; gates start at zero and would hide their branch."""
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
