"""Counted FLOPs equal those of torch's FlopCounterMode exactly."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import layers
from model.flops import training_flops, transformer_flops
from model.modality import Modality, audio_positions, video_positions
from model.transformer import DualStreamTransformer, TransformerConfig
from tests.model.test_transformer import TINY


def inputs(
    c: TransformerConfig, batch: int, grid: tuple[int, int, int], audio: int, text: int, per_token: bool, device: str
):
    f, h, w = grid

    def modality(tokens: int, channels: int, positions: torch.Tensor, width: int) -> Modality:
        sigma = torch.zeros(batch, device=device)
        timesteps = torch.zeros(batch, tokens, device=device) if per_token else sigma[:, None].expand(batch, tokens)
        return Modality(
            latent=torch.zeros(batch, tokens, channels, device=device),
            timesteps=timesteps,
            sigma=sigma,
            positions=positions,
            context=torch.zeros(batch, text, c.caption_channels or width, device=device),
        )

    return (
        modality(
            f * h * w, c.in_channels, video_positions(f, h, w, 24.0, batch=batch, device=device), c.cross_attention_dim
        ),
        modality(
            audio, c.audio_in_channels, audio_positions(audio, batch=batch, device=device), c.audio_cross_attention_dim
        ),
    )


def counted(model: DualStreamTransformer, video: Modality | None, audio: Modality | None) -> int:
    math: Any = torch.nn.attention.SDPBackend.MATH  # FlopCounterMode cannot count the flash kernel of the CPU
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(math), FlopCounterMode(display=False) as counter:
        model(video, audio)
    return counter.get_total_flops()


@pytest.mark.parametrize("version", TINY)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("av_timestep", ["own", "other", "gate_other"])
def test_equal_flop_counter_mode(
    version: str, per_token: bool, av_timestep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "FEW_TIMESTEPS", 0)  # as on a GPU, where every token is embedded
    config = replace(TINY[version], av_timestep=av_timestep)
    model = DualStreamTransformer(config)
    video, audio = inputs(config, 2, (3, 2, 3), 5, 7, per_token, "cpu")
    flops = transformer_flops(config, 18, 5, 7, batch=2, per_token=per_token)
    assert counted(model, video, None) == flops.video
    assert counted(model, None, audio) == flops.audio
    assert counted(model, video, audio) == flops.total


def test_published_size_on_the_meta_device() -> None:
    config = replace(TransformerConfig(), num_layers=2)
    with torch.device("meta"):
        model = DualStreamTransformer(config)
    video, audio = inputs(config, 1, (16, 16, 24), 126, 1024, False, "meta")
    assert counted(model, video, audio) == transformer_flops(config, 6144, 126, 1024).total


@pytest.mark.parametrize("trained", [0.0, 1.0])
def test_backward_counts_the_gradients_that_are_computed(trained: float) -> None:
    """Every input has a gradient, except the timesteps of AdaLN."""
    config = next(iter(TINY.values()))
    model = DualStreamTransformer(config).requires_grad_(bool(trained))
    video, audio = inputs(config, 2, (4, 8, 8), 40, 16, False, "cpu")
    for modality in (video, audio):
        modality.latent.requires_grad_()
        modality.context.requires_grad_()
    math: Any = torch.nn.attention.SDPBackend.MATH
    with torch.nn.attention.sdpa_kernel(math), FlopCounterMode(display=False) as counter:
        out = model(video, audio)
        torch.stack([x.sum() for x in out]).sum().backward()
    expected = training_flops(config, 256, 40, 16, 2, trained)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
