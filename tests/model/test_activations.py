"""Bytes traced on fake tensors are the bytes that a real block holds."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from model.activations import transformer_activations
from model.modality import Modality, audio_positions, video_positions
from model.transformer import DualStreamTransformer, TransformerConfig
from tests.model.test_transformer import TINY

GRID, T_AUDIO, T_TEXT, BATCH = (3, 4, 5), 16, 24, 2


def live_after_forward(config: TransformerConfig, dtype: torch.dtype) -> int:
    """Bytes that a real forward leaves alive, by the profiler's record of every allocation."""
    model = DualStreamTransformer(config).to(dtype)
    sigma = torch.rand(BATCH)

    def modality(positions: torch.Tensor, channels: int, width: int) -> Modality:
        latent = torch.randn(BATCH, positions.shape[2], channels, dtype=dtype)
        context = torch.randn(BATCH, T_TEXT, config.caption_channels or width, dtype=dtype)
        return Modality(latent, sigma[:, None], sigma, positions, context)

    video = modality(video_positions(*GRID, 24.0, batch=BATCH), config.in_channels, config.cross_attention_dim)
    audio = modality(audio_positions(T_AUDIO, batch=BATCH), config.audio_in_channels, config.audio_cross_attention_dim)
    model(video, audio)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = model(video, audio)
    recorded: Any = profile.profiler
    held = sum(e.nbytes() for e in recorded.kineto_results.events() if e.name() == "[memory]")
    assert out[0] is not None
    return held


@pytest.mark.parametrize("version", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_blocks_saved_bytes_are_what_a_real_one_holds(version: str, dtype: torch.dtype) -> None:
    config = TINY[version]
    one, three = (live_after_forward(replace(config, num_layers=n), dtype) for n in (1, 3))
    traced = transformer_activations(config, GRID, T_AUDIO, T_TEXT, BATCH, dtype)
    assert traced.block == pytest.approx((three - one) / 2, rel=0.05)


def test_recomputation_saves_states_in_the_place_of_blocks() -> None:
    traced = transformer_activations(TINY["2.3"], GRID, T_AUDIO, T_TEXT, BATCH)
    none, half, every = (traced.peak(8, recompute) for recompute in (0, 2, 1))
    assert none - half == 4 * (traced.block - traced.state) - traced.block
    assert half - every == 4 * (traced.block - traced.state)
    assert traced.state == 2 * BATCH * (60 * 128 + 16 * 64)  # bytes of bf16: both streams' states


def test_tracing_leaves_no_fake_tensor_behind() -> None:
    transformer_activations(TINY["2.0"], (2, 2, 2), 7, 8, 1)
    assert type(audio_positions(7)) is torch.Tensor
    assert audio_positions(7).max().item() > 0
