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


def rms_norm(x_btd: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension, without weight."""
    return torch.nn.functional.rms_norm(x_btd, (x_btd.shape[-1],), eps=eps)


def modulated_rms_norm(x_btd: Tensor, scale: "AdaRow", shift: "AdaRow", eps: float) -> Tensor:
    """rms_norm(x)·(1 + scale) + shift."""
    return cast(Tensor, _ModulatedRMSNorm.apply(x_btd, *scale, *shift, eps))


def gated_residual(x_btd: Tensor, y_btd: Tensor, gate: "AdaRow") -> Tensor:
    """x + y·gate."""
    return cast(Tensor, _GatedResidual.apply(x_btd, y_btd, *gate))


def rotated_rms_norm(x_btd: Tensor, weight: Tensor, rope: RopeTable, eps: float) -> Tensor:
    """rms_norm(x)·weight over the whole width, cut into heads and turned: (B, T, D) → (B, T, H, d)."""
    return cast(Tensor, _RotatedRMSNorm.apply(x_btd, weight, *rope, eps))


AdaRow = tuple[Tensor, Tensor]  # a block's table row (D,) and the sample's timestep row (B, T or 1, D)


def _rms_reciprocal(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _norm_backward(x_hat: Tensor, rstd: Tensor, grad_hat: Tensor) -> Tensor:
    """Gradient of x̂ = x·rstd with respect to x; overwrites `grad_hat`."""
    projection = (grad_hat * x_hat).mean(-1, keepdim=True)
    return grad_hat.addcmul_(x_hat, projection, value=-1).mul_(rstd)


def _reduce_row(grad: Tensor, table: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient (B, T, D) summed to the shapes of a table row (D,) and a timestep row (B, T or 1, D)."""
    if row.shape[1] == 1:
        grad = grad.sum(1, keepdim=True)
    return grad.sum((0, 1)).to(table.dtype), grad.to(row.dtype)


class _ModulatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, table_scale, row_scale, table_shift, row_shift, eps) -> Tensor:
        x32 = x.float()
        rstd = _rms_reciprocal(x32, eps)
        ctx.save_for_backward(x, rstd, table_scale, row_scale, table_shift, row_shift)
        scale = table_scale.float() + row_scale.float() + 1
        shift = table_shift.float() + row_shift.float()
        return torch.addcmul(shift, x32 * rstd, scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        x, rstd, table_scale, row_scale, table_shift, row_shift = ctx.saved_tensors
        grad32 = grad.float()
        x_hat = x.float() * rstd
        scale = table_scale.float() + row_scale.float() + 1
        d_scale = _reduce_row(grad32 * x_hat, table_scale, row_scale)
        d_shift = _reduce_row(grad32, table_shift, row_shift)
        return _norm_backward(x_hat, rstd, grad32 * scale).to(x.dtype), *d_scale, *d_shift, None


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, y, table, row) -> Tensor:
        ctx.save_for_backward(y, table, row)
        return torch.addcmul(x, y, table + row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        y, table, row = ctx.saved_tensors
        return grad, grad * (table + row), *_reduce_row(grad * y, table, row)


class _RotatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, cos, sin, eps) -> Tensor:
        x32 = x.float()
        rstd = _rms_reciprocal(x32, eps)
        ctx.save_for_backward(x, rstd, weight, cos, sin)
        normed = (x32 * rstd).mul_(weight)
        return rotate(normed.unflatten(-1, (cos.shape[2], -1)), cos, sin).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        x, rstd, weight, cos, sin = ctx.saved_tensors
        back = rotate(grad.float(), cos, -sin).flatten(2)
        x_hat = x.float() * rstd
        d_weight = (back * x_hat).sum((0, 1)).to(weight.dtype)
        return _norm_backward(x_hat, rstd, back.mul_(weight)).to(x.dtype), d_weight, None, None, None
