"""Rotary position embedding (RoPE), "split" form, over 3-D (video) or 1-D (audio, cross-modal, text) positions.

Source: RoFormer (arXiv 2104.09864 §3.2); axes and fractional positions as in LTX-Video (arXiv 2501.00103 §2.2) and
LTX-2 (arXiv 2601.03233 §3).

Shapes: B batch, n position axes, T tokens, H heads, r = head_dim / 2, K frequencies per axis; suffixes b, n, t, h.

The width D of a stream gives D/2 angles. K = D // 2n frequencies θ^(k/(K−1))·π/2 cover the complete width, which is
then split into heads, so heads see different frequencies. An angle is frequency × (2·middle/max_pos − 1), where middle
is the middle of the token's interval. Angles are flattened with the axis fastest; where n does not divide D/2, the
first slots are not rotated.

Frequencies are computed in float64 and cast to float32. Positions and angles stay float32: with θ = 10⁴, bfloat16
rounds an angle by up to a full turn.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor

RopeTable = tuple[Tensor, Tensor]  # cos and sin, each (B or 1, T, H, r) float32


def rope_table(
    positions: Tensor, dim: int, heads: int, max_pos: tuple[float, ...], theta: float = 10_000.0
) -> RopeTable:
    """Compute the rotary table of positions.

    Args:
        positions: (B, n, T, 2) intervals [start, end), or (B, n, T).
        dim: width D.
        heads: H.
        max_pos: (n,), for each axis the position at which an angle equals its frequency.
        theta: θ.

    Returns:
        cos and sin, each (B, T, H, r) float32.

    Raises:
        ValueError: `max_pos` has another length than the positions have axes.
    """
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
    unrotated = dim // 2 - angles.shape[-1]
    cos = torch.nn.functional.pad(angles.cos(), (unrotated, 0), value=1.0)
    sin = torch.nn.functional.pad(angles.sin(), (unrotated, 0), value=0.0)
    return cos.unflatten(-1, (heads, -1)), sin.unflatten(-1, (heads, -1))


def rotate(x_bthd: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Rotate by the angles of a table: halves (a, b) of each head → (a·cos − b·sin, b·cos + a·sin).

    Args:
        x_bthd: (B, T, H, 2r) float32.
        cos: (B or 1, T, H, r).
        sin: (B or 1, T, H, r).
        back: rotate by the negative angles, which is the inverse and the backward pass.

    Returns:
        (B, T, H, 2r) float32.
    """
    sign = -1 if back else 1
    halves = x_bthd.unflatten(-1, (2, -1))
    rotated = halves * cos.unsqueeze(-2)
    rotated[..., 0, :].addcmul_(halves[..., 1, :], sin, value=-sign)
    rotated[..., 1, :].addcmul_(halves[..., 0, :], sin, value=sign)
    return rotated.flatten(-2)


class RopeCache:
    """Cache of rotary tables; the key is the memory of the positions, not their values.

    Comparing values would make the host wait for the device. So a cached table is used when the positions have the same
    memory and were not changed since; `video_positions` and `audio_positions` return views of cached tensors. The cache
    keeps a reference to the positions, so that their memory cannot be reused for another tensor.

    Args:
        size: number of tables kept; the least recently used one is dropped.
    """

    def __init__(self, size: int = 4):
        self._size = size
        self._tables: OrderedDict[tuple, tuple[Tensor, RopeTable]] = OrderedDict()

    @torch.no_grad()
    def get(self, positions: Tensor, dim: int, heads: int, max_pos: tuple[float, ...], theta: float) -> RopeTable:
        """Return the rotary table of `positions` (see `rope_table`), with batch 1 where all samples share memory."""
        if positions.shape[0] > 1 and positions.stride(0) == 0:
            positions = positions[:1]
        # These tensors have no memory or no version to compare, so compute the table at each call.
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
