"""RMS norms fused with what always follows them, and the gated residual, each with its own backward.

A transformer block spends its memory traffic here. Written as plain operations, autograd keeps every intermediate
(squares, normalised values, the sum of table row and timestep row, both halves of the rotation); written as one
function, it keeps the input and one number per token, and the rest is formed again in backward. The numerics are
those of the plain form: statistics and rotation in float32, the result in the input's type. Under `torch.compile` the
plain form runs: the compiler fuses it and chooses itself what to keep, and some releases of it lose the gradients of a
custom function whose last operation is in place (torch 2.11: zeros, without a word). On a CPU a (B, T, D) result
in new memory costs several times one in place, so what is fresh is overwritten, and what is done with is dropped first.

Shapes: B batch, T tokens, D width, H heads, d = head_dim, K distinct timesteps of a batch. A modulation is a table row
(D,) of the block plus a timestep row: one per sample (B, 1, D), one per token (B, T, D), or, where the tokens have few
timesteps between them, one per timestep (1, K, D) with `selection`, which says whose it is. Then sums are formed on K
rows, and a product with `selection` hands them to the tokens, or gathers the tokens' gradients: nothing else is ever
(B, T, D).
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.rope import RopeTable, rotate


class AdaRow(NamedTuple):
    """One modulation of a block (see the module's head)."""

    table: Tensor  # (D,)
    row: Tensor  # (B, 1 or T, D), or (1, K, D)
    selection: Tensor | None = None  # (B, T, K), 1 where a token has a timestep and 0 else


def rms_norm(x_btd: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension, without weight."""
    if torch.compiler.is_compiling():
        return _plain_norm(x_btd, eps).to(x_btd.dtype)
    return cast(Tensor, _RMSNorm.apply(x_btd, None, None, None, 1, eps)).flatten(-2)


def rotated_rms_norm(x_btd: Tensor, weight: Tensor, rope: RopeTable | None, heads: int, eps: float) -> Tensor:
    """rms_norm(x)·weight over the whole width, cut into heads and turned where a table is given: → (B, T, H, d)."""
    cos, sin = rope or (None, None)
    if torch.compiler.is_compiling():
        normed = (_plain_norm(x_btd, eps) * weight).unflatten(-1, (heads, -1))
        if cos is not None and sin is not None:
            a, b = normed.chunk(2, -1)
            normed = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return normed.to(x_btd.dtype)
    return cast(Tensor, _RMSNorm.apply(x_btd, weight, cos, sin, heads, eps))


def modulated_rms_norm(x_btd: Tensor, scale: AdaRow, shift: AdaRow, eps: float) -> Tensor:
    """rms_norm(x)·(1 + scale) + shift."""
    if torch.compiler.is_compiling():
        return (_plain_norm(x_btd, eps) * (1 + _each_tokens(scale)) + _each_tokens(shift)).to(x_btd.dtype)
    return cast(
        Tensor, _ModulatedRMSNorm.apply(x_btd, scale.table, scale.row, shift.table, shift.row, scale.selection, eps)
    )


def gated_residual(x_btd: Tensor, y_btd: Tensor, gate: AdaRow) -> Tensor:
    """x + y·gate."""
    if torch.compiler.is_compiling():
        return (x_btd.float() + y_btd.float() * _each_tokens(gate)).to(x_btd.dtype)
    return cast(Tensor, _GatedResidual.apply(x_btd, y_btd, *gate))


def _plain_norm(x: Tensor, eps: float) -> Tensor:
    """x (B, T, D) / its root mean square, float32, differentiated by autograd."""
    x32 = x.float()
    return x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)


def _each_tokens(row: AdaRow) -> Tensor:
    """Table row plus timestep row of each token, float32: (B, T or 1, D)."""
    rows = row.table.float() + row.row.float()
    return rows if row.selection is None else row.selection.float() @ rows


def _rms_reciprocal(x: Tensor, eps: float) -> Tensor:
    """(…, 1) float32: 1/√(mean of squares + eps)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


def _one_plus(table: Tensor, row: Tensor) -> Tensor:
    """1 + table row (D,) + timestep row (B, T or 1, D), float32; the two short terms first."""
    return (table.float() + 1) + row.float()


def _spread(row: Tensor, selection: Tensor | None, column: Tensor) -> Tensor:
    """Each token's row, times its entry of `column` (B, T, 1): → (B, T, D)."""
    return column * row if selection is None else (selection * column) @ row


def _add_rows(x: Tensor, row: Tensor, selection: Tensor | None) -> Tensor:
    """x (B, T, D), overwritten, + each token's row."""
    return x.add_(row) if selection is None else x.baddbmm_(selection.to(x.dtype), row.expand(len(x), -1, -1))


def _times_rows(x: Tensor, row: Tensor, selection: Tensor | None) -> Tensor:
    """x (B, T, D) · each token's row."""
    return x * row if selection is None else (selection.to(row.dtype) @ row).mul_(x)


def _dot(p: Tensor, row: Tensor, selection: Tensor | None = None) -> Tensor:
    """Σ over the width of p·(each token's row): → (B, T, 1)."""
    if selection is not None:
        return (p @ row.transpose(-1, -2)).mul_(selection).sum(-1, keepdim=True)
    if p.is_cuda or row.shape[-2] != 1:
        return (p * row).sum(-1, keepdim=True)
    return p @ row.transpose(-1, -2)  # on a CPU a matrix-vector product reads p once and writes nothing


def _sum_tokens(p: Tensor, selection: Tensor | None, column: Tensor) -> Tensor:
    """Σ of p·column over the tokens that share a row: → (B, K or 1, D)."""
    if selection is not None:
        return (selection * column).transpose(1, 2) @ p
    if p.is_cuda:
        return (p * column).sum(1, keepdim=True)
    return column.transpose(1, 2) @ p


def _reduced(grad: Tensor, table: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient (B, T, K or 1, D) summed to the shapes of a table row and a timestep row."""
    if row.shape[1] == 1:
        grad = grad.sum(1, keepdim=True)
    return grad.sum((0, 1)).to(table.dtype), grad.sum_to_size(row.shape).to(row.dtype)


def _gathered(grad: Tensor, selection: Tensor | None) -> Tensor:
    """Σ of a gradient (B, T, D) over the tokens that share a timestep, where few do: → (B, T or K, D)."""
    return grad if selection is None else selection.to(grad.dtype).transpose(1, 2) @ grad


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
            dot, d_weight = p.sum(-1, keepdim=True), None
        else:
            dot = _dot(p, weight.float().expand(len(p), 1, -1))
            d_weight = _sum_tokens(p, None, rstd).sum((0, 1)).to(weight.dtype)
        del p
        direct = straight * rstd if cos is None else straight.mul_(rstd)
        if weight is not None:
            direct = direct.mul_(weight)
        return _through_norm(x32, rstd, direct, dot).to(x.dtype), d_weight, *(None,) * 4


class _ModulatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, table_scale, row_scale, table_shift, row_shift, selection, eps) -> Tensor:
        rstd = _rms_reciprocal(x, eps)
        ctx.save_for_backward(x, rstd, table_scale, row_scale, table_shift, row_shift, selection)
        scale = _spread(_one_plus(table_scale, row_scale), selection, rstd)
        return _add_rows(scale.mul_(x), table_shift.float() + row_shift.float(), selection).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        x, rstd, table_scale, row_scale, table_shift, row_shift, selection = ctx.saved_tensors
        grad32, x32 = grad.float(), x.float()
        scale = _one_plus(table_scale, row_scale)
        p = grad32 * x32
        dot = _dot(p, scale, selection)
        few = selection is not None or row_scale.shape[1] == 1
        d_scale = _sum_tokens(p, selection, rstd) if few else p.mul_(rstd)
        del p
        d_x = _through_norm(x32, rstd, _spread(scale, selection, rstd).mul_(grad32), dot).to(x.dtype)
        d_shift = _gathered(grad32, selection)
        return (
            d_x,
            *_reduced(d_scale, table_scale, row_scale),
            *_reduced(d_shift, table_shift, row_shift),
            None,
            None,
        )


def _through_norm(x: Tensor, rstd: Tensor, direct: Tensor, dot: Tensor) -> Tensor:
    """Gradient with respect to x of f(x·rstd), given f′·rstd (overwritten) and `dot`, f′·x summed over the width."""
    return direct.addcmul_(x, dot * rstd.pow(3) / -x.shape[-1])


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, y, table, row, selection) -> Tensor:
        ctx.save_for_backward(y, table, row, selection)
        gate = table + row
        return torch.addcmul(x, y, gate) if selection is None else _times_rows(y, gate, selection).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        y, table, row, selection = ctx.saved_tensors
        d_rows = _reduced(_gathered(grad.float() * y, selection), table, row)
        return grad, _times_rows(grad, table + row, selection), *d_rows, None
