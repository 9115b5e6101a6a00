"""RMS norms fused with what always follows them, and the gated residual, each with its own backward.

A transformer block spends its memory traffic here. Written as plain operations, autograd keeps every intermediate
(squares, normalised values, the sum of table row and timestep row, both halves of the rotation); written as one
function, it keeps the input and one number per token, and the rest is formed again in backward. The numerics are
those of the plain form: statistics and rotation in float32, the result in the input's type.

Shapes: B batch, T tokens, D width, H heads, d = head_dim; AdaLN rows are a table row (D,) of the block plus a timestep
row (B, T, D) or (B, 1, D) of the sample.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.rope import RopeTable, rotate

AdaRow = tuple[Tensor, Tensor]  # a block's table row (D,) and the sample's timestep row (B, T or 1, D)


def rms_norm(x_btd: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension, without weight."""
    return cast(Tensor, _RMSNorm.apply(x_btd, None, None, None, 1, eps)).flatten(-2)


def rotated_rms_norm(x_btd: Tensor, weight: Tensor, rope: RopeTable | None, heads: int, eps: float) -> Tensor:
    """rms_norm(x)·weight over the whole width, cut into heads and turned where a table is given: → (B, T, H, d)."""
    cos, sin = rope or (None, None)
    return cast(Tensor, _RMSNorm.apply(x_btd, weight, cos, sin, heads, eps))


def modulated_rms_norm(x_btd: Tensor, scale: AdaRow, shift: AdaRow, eps: float) -> Tensor:
    """rms_norm(x)·(1 + scale) + shift."""
    return cast(Tensor, _ModulatedRMSNorm.apply(x_btd, *scale, *shift, eps))


def gated_residual(x_btd: Tensor, y_btd: Tensor, gate: AdaRow) -> Tensor:
    """x + y·gate."""
    return cast(Tensor, _GatedResidual.apply(x_btd, y_btd, *gate))


def _rms_reciprocal(x: Tensor, eps: float) -> Tensor:
    """(…, 1) float32: 1/√(mean of squares + eps)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


def _one_plus(table: Tensor, row: Tensor) -> Tensor:
    """1 + table row (D,) + timestep row (B, T or 1, D), float32; the two short terms first."""
    return (table.float() + 1) + row.float()


def _norm_backward(x: Tensor, rstd: Tensor, grad_hat: Tensor, dot: Tensor) -> Tensor:
    """Gradient of x̂ = x·rstd with respect to x, given that of x̂ (overwritten) and `dot`, its product with x summed."""
    return grad_hat.mul_(rstd).addcmul_(x, dot * rstd.pow(3) / -x.shape[-1])


def _sum_width(p: Tensor, row: Tensor) -> Tensor:
    """Σ over the width of p·row: (B, T, D), (B, T or 1, D) → (B, T, 1)."""
    if p.is_cuda or row.shape[-2] != 1:
        return (p * row).sum(-1, keepdim=True)
    return p @ row.transpose(-1, -2)  # on a CPU a matrix-vector product reads p once and writes nothing


def _sum_tokens(p: Tensor, column: Tensor) -> Tensor:
    """Σ over tokens of p·column: (B, T, D), (B, T, 1) → (B, 1, D)."""
    if p.is_cuda:
        return (p * column).sum(1, keepdim=True)
    return column.transpose(1, 2) @ p


def _reduce_row(grad: Tensor, table: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient (B, T or 1, D) summed to the shapes of a table row (D,) and a timestep row (B, T or 1, D)."""
    if row.shape[1] == 1 and grad.shape[1] != 1:
        grad = grad.sum(1, keepdim=True)
    return grad.sum((0, 1)).to(table.dtype), grad.to(row.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, cos, sin, heads, eps) -> Tensor:
        x32 = x.float()
        rstd = _rms_reciprocal(x, eps)
        ctx.save_for_backward(x, rstd, weight, cos, sin)
        normed = x32 * rstd
        if weight is not None:
            normed = normed.mul_(weight)
        normed = normed.unflatten(-1, (heads, -1))
        return (normed if cos is None else rotate(normed, cos, sin)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        x, rstd, weight, cos, sin = ctx.saved_tensors
        x32 = x.float()
        straight = grad.float() if cos is None else rotate(grad.float(), cos, sin, back=True)
        straight = straight.flatten(-2)
        p = straight * x32
        if weight is None:
            return _norm_backward(x32, rstd, straight.clone(), p.sum(-1, keepdim=True)).to(x.dtype), *(None,) * 5
        d_weight = _sum_tokens(p, rstd).sum((0, 1)).to(weight.dtype)
        weight = weight.float()
        dot = _sum_width(p, weight.expand(len(p), 1, -1))
        return _norm_backward(x32, rstd, straight * weight, dot).to(x.dtype), d_weight, *(None,) * 4


class _ModulatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, table_scale, row_scale, table_shift, row_shift, eps) -> Tensor:
        rstd = _rms_reciprocal(x, eps)
        ctx.save_for_backward(x, rstd, table_scale, row_scale, table_shift, row_shift)
        shift = table_shift.float() + row_shift.float()
        return torch.addcmul(shift, x.float() * rstd, _one_plus(table_scale, row_scale)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        x, rstd, table_scale, row_scale, table_shift, row_shift = ctx.saved_tensors
        grad32, x32 = grad.float(), x.float()
        scale = _one_plus(table_scale, row_scale)
        p = grad32 * x32
        dot = _sum_width(p, scale)
        d_scale = _sum_tokens(p, rstd) if row_scale.shape[1] == 1 else p.mul_(rstd)
        d_x = _norm_backward(x32, rstd, grad32 * scale, dot).to(x.dtype)
        return d_x, *_reduce_row(d_scale, table_scale, row_scale), *_reduce_row(grad32, table_shift, row_shift), None


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, y, table, row) -> Tensor:
        ctx.save_for_backward(y, table, row)
        return torch.addcmul(x, y, table + row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        y, table, row = ctx.saved_tensors
        return grad, grad * (table + row), *_reduce_row(grad.float() * y, table, row)
