"""Small modules and initialisers that several components of the model share.

Shapes (suffixes of the tensors below): b batch, t tokens; D width of a stream, K timesteps of a batch.

Initialisation (the published code has none). Linear layers: truncated normal with variance 1/fan_in, cut at two
standard deviations; biases are zero; a layer that ends a residual branch or makes modulation rows may start at zero
(adaLN-Zero, Peebles & Xie 2023, arXiv 2212.09748 §3.2). Each module initialises its parameters in its constructor:
ZeRO-3 partitions a parameter as soon as it exists, and it must have its values by then. Convolutions:
`init_convolution_`, called by the `init_weights` of each component.
"""

import math

import torch
from torch import Tensor, nn

SINUSOID_WIDTH = 256
TRUNCATED_STD = 0.8796  # a normal of σ = 1 that is cut at ±2 has this standard deviation


def truncated_normal_(tensor: Tensor, fan_in: int) -> Tensor:
    """Fill `tensor` in place from a normal of variance 1/fan_in, cut at two standard deviations; return it."""
    std = fan_in**-0.5
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def init_convolution_(layer: nn.Module, *, gain_squared: float) -> None:
    """Initialise a convolution in place: truncated normal weights of variance `gain_squared` / fan_in, bias 0.

    The normal is cut at two standard deviations and has this variance after the cut.

    Args:
        layer: with `weight` and `bias`.
        gain_squared: 1 / mean square of the layer's input, so that its output has variance 1: 2.8 after SiLU of a unit
            normal, 1 after no activation.
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    fan_in = weight[0].numel()
    std = math.sqrt(gain_squared / fan_in) / TRUNCATED_STD
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)


def repeat_rows_(weight: Tensor, times: int) -> None:
    """Copy, in place, the weights of the first of each `times` consecutive output channels to the others.

    Depth-to-space turns such channels into neighbouring positions. These then start equal, so the first output has no
    checkerboard (ICNR, Aitken et al. 2017, arXiv 1707.02937).
    """
    weight.copy_(weight[::times].repeat_interleave(times, dim=0))


class Linear(nn.Linear):
    """nn.Linear with the initialisation of this file.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: add a bias.
        zero: start the weights at zero.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, zero: bool = False):
        self.zero = zero
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Initialise weights and bias; nn.Linear's constructor calls this."""
        if self.zero:
            nn.init.zeros_(self.weight)
        else:
            truncated_normal_(self.weight, self.in_features)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _GELUProjection(nn.Module):
    """Linear layer and tanh-approximated GELU; a module, because the published key is `net.0.proj`."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = Linear(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Feed-forward layer: linear D → mult·D, tanh-approximated GELU, linear mult·D → D.

    The published keys are `net.0.proj` and `net.2`; the identity at index 1 replaces a dropout.
    """

    def __init__(self, dim: int, mult: int = 4):
        super().__init__()
        self.net = nn.Sequential(_GELUProjection(dim, mult * dim), nn.Identity(), Linear(mult * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        return self.net(x)


class CaptionProjection(nn.Module):
    """Projection of text features to a stream's width: two linear layers with a GELU between them (2.0 only)."""

    def __init__(self, in_features: int, dim: int):
        super().__init__()
        self.linear_1 = Linear(in_features, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, in_features) → (B, S, D)."""
        return self.linear_2(nn.functional.gelu(self.linear_1(features), approximate="tanh"))


def sinusoid(timesteps: Tensor, width: int = SINUSOID_WIDTH) -> Tensor:
    """Embed scaled timesteps (…) → (…, width) float32: cosines, then sines, of timestep × frequency.

    The frequencies are 10⁴^(−k/(width/2)) for k = 0 … width/2 − 1.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) * -math.log(10_000.0)
    angles = timesteps.float().unsqueeze(-1) * torch.exp(exponents / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class _TimestepMLP(nn.Module):
    """Two linear layers with a SiLU between them: sinusoids (…, 256) → (…, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear_1 = Linear(SINUSOID_WIDTH, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


class _TimestepEmbedding(nn.Module):
    """Sinusoids and MLP: scaled timesteps (…) → (…, D) in `dtype`. The nesting is that of the published keys."""

    def __init__(self, dim: int):
        super().__init__()
        self.timestep_embedder = _TimestepMLP(dim)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        return self.timestep_embedder(sinusoid(timesteps).to(dtype))


class AdaLNSingle(nn.Module):
    """Layer that makes modulation rows from timesteps. All blocks share the rows; each block adds its table to them.

    PixArt-α's adaLN-single (Chen et al. 2023, arXiv 2310.00426 §2.3). The rows start at zero.

    Args:
        dim: D.
        rows: number of rows per timestep.
    """

    def __init__(self, dim: int, rows: int):
        super().__init__()
        self.rows = rows
        self.emb = _TimestepEmbedding(dim)
        self.linear = Linear(dim, rows * dim, zero=True)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
        """Scaled timesteps (B, K) → `rows` tensors (B, K, D), and the embedded timesteps (B, K, D)."""
        embedded = self.emb(timesteps, dtype)
        rows = self.linear(nn.functional.silu(embedded))
        return rows.unflatten(-1, (self.rows, -1)).unbind(-2), embedded


# With at most this many distinct timesteps in a batch, each is embedded once and not once per token.
FEW_TIMESTEPS = 16


def distinct_timesteps(timesteps_bt: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Choose the timesteps to embed, so that equal ones are embedded once.

    Tokens that are given as conditions have another timestep than the rest, so a batch has many tokens and few
    timesteps; embedding them per token costs as much as several blocks.

    Args:
        timesteps_bt: (B, T), or (B, 1) where the tokens of a sample agree.
        dtype: type of the selection.

    Returns:
        The timesteps to embed and the `selection` of `AdaRow`:
        (B, 1) and None for one timestep per sample, given as (B, 1) or as an expanded view of it;
        (1, K) and (B, T, K) for at most `FEW_TIMESTEPS` distinct values (on a CPU only);
        (B, T) and None otherwise.
    """
    if timesteps_bt.shape[1] == 1 or timesteps_bt.stride(1) == 0:
        return timesteps_bt[:, :1], None
    # Read values on a CPU only: on a GPU, `unique` would make the host wait.
    if timesteps_bt.device.type == "cpu" and not torch.compiler.is_compiling():
        distinct = timesteps_bt.unique()
        if len(distinct) <= FEW_TIMESTEPS:
            return distinct.unsqueeze(0), (timesteps_bt.unsqueeze(-1) == distinct).to(dtype)
    return timesteps_bt, None
