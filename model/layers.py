"""The small modules that the streams and the connectors share, with their initialisation.

Initialisation (upstream has none): weights are truncated normal with variance 1/fan_in, cut at two standard deviations;
biases are zero; a layer that closes a residual branch or makes modulations may start at zero (adaLN-Zero, Peebles & Xie
2023, §3.2). Every module initialises its own parameters in its constructor, so that a parameter which is partitioned
as soon as it exists (ZeRO-3) has its values by then.
"""

import math

import torch
from torch import Tensor, nn

SINUSOID_WIDTH = 256


def truncated_normal_(tensor: Tensor, fan_in: int) -> Tensor:
    """In place: normal with variance 1/fan_in, cut at two standard deviations."""
    std = fan_in**-0.5
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


class Linear(nn.Linear):
    """nn.Linear with this family's initialisation; `zero` starts it at zero."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, zero: bool = False):
        self.zero = zero
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        if self.zero:
            nn.init.zeros_(self.weight)
        else:
            truncated_normal_(self.weight, self.in_features)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _GELUProjection(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = Linear(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """D → 4D → D with tanh-approximated GELU. Keys `net.0.proj`, `net.2`, as published."""

    def __init__(self, dim: int, mult: int = 4):
        super().__init__()
        self.net = nn.Sequential(_GELUProjection(dim, mult * dim), nn.Identity(), Linear(mult * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CaptionProjection(nn.Module):
    """Text features → the stream's width, two layers with GELU between (2.0)."""

    def __init__(self, in_features: int, dim: int):
        super().__init__()
        self.linear_1 = Linear(in_features, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(features), approximate="tanh"))


def sinusoid(timesteps: Tensor, width: int = SINUSOID_WIDTH) -> Tensor:
    """(…) scaled timesteps → (…, width) float32, cosines first, frequencies 10⁴^(−k/(width/2))."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) * -math.log(10_000.0)
    angles = timesteps.float().unsqueeze(-1) * torch.exp(exponents / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class _TimestepMLP(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.linear_1 = Linear(SINUSOID_WIDTH, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


class _TimestepEmbedding(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.timestep_embedder = _TimestepMLP(dim)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        return self.timestep_embedder(sinusoid(timesteps).to(dtype))


class AdaLNSingle(nn.Module):
    """Timesteps → the modulation rows that all blocks share (PixArt-α §2.3); each block adds its own table.

    The rows start at zero.
    """

    def __init__(self, dim: int, rows: int):
        super().__init__()
        self.rows = rows
        self.emb = _TimestepEmbedding(dim)
        self.linear = Linear(dim, rows * dim, zero=True)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
        """(B, K) scaled timesteps → (`rows` tensors (B, K, D), embedded timestep (B, K, D))."""
        embedded = self.emb(timesteps, dtype)
        rows = self.linear(nn.functional.silu(embedded))
        return rows.unflatten(-1, (self.rows, -1)).unbind(-2), embedded


# Up to so many timesteps in a batch are embedded once each, not once per token.
FEW_TIMESTEPS = 16


def distinct_timesteps(timesteps_bt: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The timesteps to be embedded, and `selection` of `model.norms`: (B, 1), None where a sample's tokens share one
    memory; (1, K), (B, T, K) of `dtype` where few differ; else as they are, with None.

    Tokens that are given as conditions have another timestep than the rest, so a batch has many tokens and few
    timesteps; embedding them per token costs as much as several blocks. Values are looked at on a CPU only, where that
    costs no waiting.
    """
    if timesteps_bt.shape[1] == 1 or timesteps_bt.stride(1) == 0:
        return timesteps_bt[:, :1], None
    if timesteps_bt.device.type == "cpu" and not torch.compiler.is_compiling():
        distinct = timesteps_bt.unique()
        if len(distinct) <= FEW_TIMESTEPS:
            return distinct.unsqueeze(0), (timesteps_bt.unsqueeze(-1) == distinct).to(dtype)
    return timesteps_bt, None
