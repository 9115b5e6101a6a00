"""Rotary tables equal those of diffusers, and the cache finds them without reading values."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from model.modality import audio_positions, video_positions
from model.norms import AdaRow, gated_residual, modulated_rms_norm, rotated_rms_norm
from model.rope import RopeCache, rope_table, rotate


@pytest.mark.parametrize(("dim", "heads"), [(4096, 32), (128, 4), (96, 6)])
def test_video_table_equals_diffusers(dim: int, heads: int) -> None:
    from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed, apply_split_rotary_emb

    theirs = LTX2AudioVideoRotaryPosEmbed(dim=dim, rope_type="split", num_attention_heads=heads)
    positions = video_positions(4, 3, 5, 24.0, batch=2)
    expected = theirs(positions)
    cos, sin = rope_table(positions, dim, heads, (20, 2048, 2048))
    torch.testing.assert_close(cos, expected[0].transpose(1, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, expected[1].transpose(1, 2), atol=1e-6, rtol=0)
    x = torch.randn(2, 60, dim)
    turned = apply_split_rotary_emb(x, expected)
    torch.testing.assert_close(rotate(x.unflatten(-1, (heads, -1)), cos, sin).flatten(2), turned, atol=1e-5, rtol=0)


def test_time_table_equals_diffusers_and_needs_no_pad() -> None:
    from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed

    theirs = LTX2AudioVideoRotaryPosEmbed(
        dim=2048, scale_factors=(4,), modality="audio", rope_type="split", num_attention_heads=32
    )
    positions = audio_positions(9)
    cos, sin = rope_table(positions, 2048, 32, (20,))
    expected = theirs(positions)
    torch.testing.assert_close(cos, expected[0].transpose(1, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, expected[1].transpose(1, 2), atol=1e-6, rtol=0)


def test_slots_left_over_stand_in_front_unturned() -> None:
    cos, sin = rope_table(video_positions(2, 2, 2, 24.0), 4096, 32, (20, 2048, 2048))
    assert torch.equal(cos[:, :, 0, :2], torch.ones(1, 8, 2))
    assert torch.equal(sin[:, :, 0, :2], torch.zeros(1, 8, 2))
    assert sin[:, :, 0, 2].abs().min() > 0


def test_turning_keeps_length_and_turns_back() -> None:
    x = torch.randn(1, 8, 4, 32)
    cos, sin = rope_table(video_positions(2, 2, 2, 24.0), 128, 4, (20, 2048, 2048))
    turned = rotate(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(turned, cos, sin, back=True), x)


def test_cache_finds_the_same_memory_and_nothing_else() -> None:
    cache = RopeCache(size=2)

    def get(positions: torch.Tensor):
        return cache.get(positions, 128, 4, (20, 2048, 2048), 10_000.0)

    first = get(video_positions(2, 2, 2, 24.0, batch=3))
    assert first[0].shape == (1, 8, 4, 16)  # one table serves a batch of equal positions
    assert get(video_positions(2, 2, 2, 24.0, batch=5))[0] is first[0]
    assert get(video_positions(2, 2, 2, 30.0))[0] is not first[0]
    own = video_positions(2, 2, 2, 24.0, batch=3).contiguous()
    before = get(own)
    assert before[0].shape[0] == 3
    own[1] += 1
    after = get(own)
    assert not torch.equal(before[0][1], after[0][1])
    torch.testing.assert_close(after[0][0], first[0][0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("timesteps", ["sample", "token", "few"])
def test_fused_norms_equal_their_plain_form(timesteps: str, compiled: bool) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(2, 5, 12, requires_grad=True) for _ in range(2))
    selection = torch.eye(3)[torch.tensor([[0, 0, 1, 2, 0], [2, 2, 2, 1, 1]])] if timesteps == "few" else None
    shape = {"sample": (2, 1), "token": (2, 5), "few": (1, 3)}[timesteps]
    rows = [
        AdaRow(torch.randn(12, requires_grad=True), torch.randn(*shape, 12, requires_grad=True), selection)
        for _ in range(3)
    ]
    scale, shift, gate = (table + (row if selection is None else selection @ row) for table, row, selection in rows)
    leaves = [x, y, *(t for row in rows for t in row[:2])]
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    plain = x + torch.tanh(normed * (1 + scale) + shift) * y * gate

    def norms(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return gated_residual(x, torch.tanh(modulated_rms_norm(x, rows[0], rows[1], 1e-6)) * y, rows[2])

    fused = _as_called(norms, compiled)(x, y)
    torch.testing.assert_close(fused, plain)
    weight = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weight).sum(), leaves)
    for ours, theirs in zip(torch.autograd.grad((fused * weight).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _as_called(norm: Callable[..., torch.Tensor], compiled: bool) -> Callable[..., torch.Tensor]:
    """The function as it is, or as `torch.compile` traces it."""
    return torch.compile(norm, backend="aot_eager", fullgraph=True) if compiled else norm


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("turned", [True, False])
def test_fused_rotated_norm_equals_its_plain_form(turned: bool, compiled: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 24, requires_grad=True), torch.randn(24, requires_grad=True)
    rope = rope_table(video_positions(2, 2, 2, 24.0), 24, 3, (20, 2048, 2048)) if turned else None
    plain = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight).unflatten(-1, (3, -1))
    if rope is not None:
        a, b = plain.chunk(2, dim=-1)
        plain = torch.cat([a * rope[0] - b * rope[1], b * rope[0] + a * rope[1]], dim=-1)
    fused = _as_called(partial(rotated_rms_norm, rope=rope, heads=3, eps=1e-6), compiled)(x, weight)
    torch.testing.assert_close(fused, plain)
    direction = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * direction).sum(), (x, weight))
    for ours, theirs in zip(torch.autograd.grad((fused * direction).sum(), (x, weight)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
