"""Rotary position embedding, "split" form, over 3-D (video) or 1-D (audio, cross-modal, text) positions.

Shapes: B batch, n position axes, T tokens, H heads, r = head_dim / 2.

The width D of a stream gives D/2 angles. D // 2n frequencies θ^(k/(K−1))·π/2 are spread over the *whole* width and then
cut into heads, so heads see different frequencies. Angles are frequency × (2·middle/max_pos − 1), flattened with the
axis fastest; slots left over stand at the front and do not turn. Frequencies are computed in float64 and cast to
float32; positions and angles stay float32, for θ = 10⁴ makes an angle's rounding in bfloat16 as large as a full turn.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor

RopeTable = tuple[Tensor, Tensor]  # cos and sin, each (B or 1, T, H, r) float32


def rope_table(
    positions: Tensor, dim: int, heads: int, max_pos: tuple[float, ...], theta: float = 10_000.0
) -> RopeTable:
    """cos and sin, each (B, T, heads, dim/(2·heads)) float32, of positions (B, n, T, 2) [start, end) or (B, n, T)."""
    axes = positions.shape[1]
    if axes != len(max_pos):
        raise ValueError(f"positions have {axes} axes but max_pos names {len(max_pos)}")
    if positions.ndim == 4:
        positions = (positions[..., 0] + positions[..., 1]) / 2.0
    count = dim // (2 * axes)
    exponents = torch.linspace(0.0, 1.0, count, dtype=torch.float64, device=positions.device)
    frequencies = (torch.pow(theta, exponents) * math.pi / 2.0).to(torch.float32)
    fractions = torch.stack([positions[:, axis] / limit for axis, limit in enumerate(max_pos)], dim=-1)
    angles = (fractions * 2 - 1).unsqueeze(-2) * frequencies.unsqueeze(-1)  # (B, T, K, n): the axis is fastest
    angles = angles.flatten(2)
    unturned = dim // 2 - angles.shape[-1]
    cos = torch.nn.functional.pad(angles.cos(), (unturned, 0), value=1.0)
    sin = torch.nn.functional.pad(angles.sin(), (unturned, 0), value=0.0)
    return cos.unflatten(-1, (heads, -1)), sin.unflatten(-1, (heads, -1))


def rotate(x_bthd: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Turn (B, T, H, 2r) by the table's angles: halves (a, b) → (a·cos − b·sin, b·cos + a·sin), in float32.

    `back` turns the other way, which is the inverse and the gradient.
    """
    sign = -1 if back else 1
    halves = x_bthd.unflatten(-1, (2, -1))
    turned = halves * cos.unsqueeze(-2)
    turned[..., 0, :].addcmul_(halves[..., 1, :], sin, value=-sign)
    turned[..., 1, :].addcmul_(halves[..., 0, :], sin, value=sign)
    return turned.flatten(-2)


class RopeCache:
    """Rotary tables by the identity of the positions they were made from.

    Comparing values would wait for the device, so a table is found again when the positions are the same memory,
    unchanged (`video_positions` and `audio_positions` hand out such views). The cache holds the positions, so the
    memory cannot become another tensor's meanwhile.
    """

    def __init__(self, size: int = 4):
        self._size = size
        self._tables: OrderedDict[tuple, tuple[Tensor, RopeTable]] = OrderedDict()

    @torch.no_grad()
    def get(self, positions: Tensor, dim: int, heads: int, max_pos: tuple[float, ...], theta: float) -> RopeTable:
        if positions.shape[0] > 1 and positions.stride(0) == 0:
            positions = positions[:1]  # one table serves a batch of alike positions
        if positions.is_inference() or positions.is_meta or torch.compiler.is_compiling():
            return rope_table(positions, dim, heads, max_pos, theta)
        place = (positions.device, positions.data_ptr(), positions.shape, positions.stride(), positions._version)
        key = (place, dim, heads, max_pos, theta)
        found = self._tables.pop(key, None)
        if found is None:
            found = (positions, rope_table(positions, dim, heads, max_pos, theta))
        self._tables[key] = found
        while len(self._tables) > self._size:
            self._tables.popitem(last=False)
        return found[1]
