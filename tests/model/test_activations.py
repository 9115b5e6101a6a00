"""Activations: the bytes measured with fake tensors equal those that a real block holds."""

from dataclasses import replace

import pytest
import torch

from benchmarks.activations import saved_bytes
from model.activations import transformer_activations
from model.modality import audio_positions
from tests.model.test_transformer import TINY

BATCH = 2
SIZES = (3, 4, 5), 16, 24, BATCH  # grid, audio and text tokens


@pytest.mark.parametrize("version", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_blocks_saved_bytes_are_what_a_real_one_holds(version: str, dtype: torch.dtype) -> None:
    config = TINY[version]
    one, three = (saved_bytes(replace(config, num_layers=n), *SIZES, dtype) for n in (1, 3))
    traced = transformer_activations(config, *SIZES, dtype)
    assert traced.block == pytest.approx((three - one) / 2, rel=0.05)


def test_recomputation_saves_states_in_the_place_of_blocks() -> None:
    traced = transformer_activations(TINY["2.3"], *SIZES)
    none, half, every = (traced.peak(8, recompute) for recompute in (0, 2, 1))
    assert none - half == 4 * (traced.block - traced.state)  # the last block is kept
    assert half - every == 4 * (traced.block - traced.state) - traced.block
    assert traced.peak(7, 2) == traced.peak(6, 2) + traced.state + traced.block  # here the last one is recomputed
    assert traced.state == 2 * BATCH * (60 * 128 + 16 * 64)  # bytes of bf16: both streams' states


def test_tracing_leaves_no_fake_tensor_behind() -> None:
    transformer_activations(TINY["2.0"], (2, 2, 2), 7, 8, 1)
    assert type(audio_positions(7)) is torch.Tensor
    assert audio_positions(7).max().item() > 0
