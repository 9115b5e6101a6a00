"""RMS norms, each fused with the operation that follows it, and the gated residual, with hand-written backward passes.

Why: these operations do little arithmetic and move much memory. From the plain PyTorch operations, autograd keeps
intermediate results for the backward pass, each (B, T, D) in float32: a copy of the input, the normalised values, the
modulation of each token. A fused function keeps its input in the input's type and one number per token, and recomputes
the rest in the backward pass. The docstring of each function says what it keeps, and what the plain form keeps in its
place.

Numerics: those of the plain form; statistics and rotation in float32, the result in the input's type.

Under `torch.compile` the plain form runs. The compiler fuses it and chooses what to keep; and torch 2.11 silently
returns zero gradients for a custom function whose last operation is in place.

On a CPU, writing a (B, T, D) result to new memory costs several times as much as overwriting one. So this file
overwrites temporary tensors, and deletes large ones before it makes the next.

Shapes: B batch, T tokens, D width, H heads, d = D / H, K distinct timesteps of a batch; suffixes b, t, d, k.

A modulation (arXiv 2601.03233 §3; adaLN-single, arXiv 2310.00426 §2.3) is a table row (D,) of the block plus a timestep
row. The timestep row is one per sample (B, 1, D), one per token (B, T, D), or, where a batch has few distinct
timesteps, one per timestep (1, K, D) with `selection` (B, T, K). In the last case sums are formed on K rows, and a
matrix product with `selection` spreads them over the tokens (or sums the tokens' gradients), so that no modulation is
ever (B, T, D).
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.rope import RopeTable, rotate


class AdaRow(NamedTuple):
    """One modulation of a block (a scale, a shift or a gate): for each token, its table row plus its timestep row.

    Attributes:
        table: (D,).
        row: timestep rows, (B, 1 or T, D), or (1, K, D) with `selection`.
        selection: (B, T, K), 1 where a token has a timestep and 0 elsewhere; None where `row` is not (1, K, D).
    """

    table: Tensor
    row: Tensor
    selection: Tensor | None = None


def rms_norm(x_btd: Tensor, eps: float) -> Tensor:
    """Divide each token by the root mean square over its width; no weight.

    Keeps for backward: x and 1/rms (B, T, 1). Plain form: 1/rms and a float32 copy of x, twice the size of a 16-bit x.

    Args:
        x_btd: (B, T, D).
        eps: added to the mean square.

    Returns:
        (B, T, D) in the type of x.
    """
    if torch.compiler.is_compiling():
        return _plain_norm(x_btd, eps).to(x_btd.dtype)
    return cast(Tensor, _RMSNorm.apply(x_btd, None, None, None, 1, eps)).flatten(-2)


def rotated_rms_norm(x_btd: Tensor, weight: Tensor, rope: RopeTable | None, heads: int, eps: float) -> Tensor:
    """Compute rms_norm(x)·weight over the full width, split it into heads, and rotate it where a table is given.

    Keeps for backward: x, 1/rms (B, T, 1), the weight, and the rotary table, which all blocks share. Plain form: in
    place of x, a float32 copy of it and the normalised values, which the gradient of the weight needs, in float32.

    Args:
        x_btd: (B, T, D), queries or keys.
        weight: (D,).
        rope: cos and sin, each (B or 1, T, H, d/2); None for no rotation.
        heads: H.
        eps: added to the mean square.

    Returns:
        (B, T, H, d) in the type of x.
    """
    cos, sin = rope or (None, None)
    if torch.compiler.is_compiling():
        normed = (_plain_norm(x_btd, eps) * weight).unflatten(-1, (heads, -1))
        if cos is not None and sin is not None:
            a, b = normed.chunk(2, -1)
            normed = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return normed.to(x_btd.dtype)
    return cast(Tensor, _RMSNorm.apply(x_btd, weight, cos, sin, heads, eps))


def modulated_rms_norm(x_btd: Tensor, scale: AdaRow, shift: AdaRow, eps: float) -> Tensor:
    """Compute rms_norm(x)·(1 + scale) + shift.

    Keeps for backward: x, 1/rms (B, T, 1), tables and timestep rows as given. Plain form: in place of x, a float32
    copy of it and the normalised values in float32; in place of the rows, 1 + scale of each token in float32.

    Args:
        x_btd: (B, T, D).
        scale: modulation.
        shift: modulation, with the same `selection` as `scale`.
        eps: added to the mean square.

    Returns:
        (B, T, D) in the type of x.
    """
    if torch.compiler.is_compiling():
        return (_plain_norm(x_btd, eps) * (1 + _row_of_each_token(scale)) + _row_of_each_token(shift)).to(x_btd.dtype)
    return cast(
        Tensor, _ModulatedRMSNorm.apply(x_btd, scale.table, scale.row, shift.table, shift.row, scale.selection, eps)
    )


def gated_residual(x_btd: Tensor, y_btd: Tensor, gate: AdaRow) -> Tensor:
    """Compute the gated residual, x + y·gate.

    Keeps for backward: y, table and timestep rows as given. Plain form: a float32 copy of y and the gate of each token
    in float32.

    Args:
        x_btd: (B, T, D), state of the stream.
        y_btd: (B, T, D), output of the branch.
        gate: modulation.

    Returns:
        (B, T, D) in the type of x.
    """
    if torch.compiler.is_compiling():
        return (x_btd.float() + y_btd.float() * _row_of_each_token(gate)).to(x_btd.dtype)
    return cast(Tensor, _GatedResidual.apply(x_btd, y_btd, *gate))


def _plain_norm(x: Tensor, eps: float) -> Tensor:
    """Divide x (B, T, D) by its root mean square over D, in float32; autograd derives the backward pass."""
    x32 = x.float()
    return x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)


def _row_of_each_token(row: AdaRow) -> Tensor:
    """Return the modulation of each token, its table row plus its timestep row: (B, T or 1, D) float32."""
    rows = row.table.float() + row.row.float()
    return rows if row.selection is None else row.selection.float() @ rows


def _rms_reciprocal(x: Tensor, eps: float) -> Tensor:
    """Return 1/√(mean of x² over the last axis + eps), (…, 1) float32, without a float32 copy of x."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


def _one_plus(table: Tensor, row: Tensor) -> Tensor:
    """Return 1 + table row (D,) + timestep rows (B, T or 1, D), float32.

    Adds 1 to the table row first, because the timestep rows can be large and are then read once.
    """
    return (table.float() + 1) + row.float()


def _spread(row: Tensor, selection: Tensor | None, column: Tensor) -> Tensor:
    """Multiply the row of each token by its entry of `column` (B, T, 1) → (B, T, D). See `AdaRow` for `selection`."""
    return column * row if selection is None else (selection * column) @ row


def _add_rows(x: Tensor, row: Tensor, selection: Tensor | None) -> Tensor:
    """Add to each token of x (B, T, D) its row, in place; return x."""
    return x.add_(row) if selection is None else x.baddbmm_(selection.to(x.dtype), row.expand(len(x), -1, -1))


def _times_rows(x: Tensor, row: Tensor, selection: Tensor | None) -> Tensor:
    """Multiply each token of x (B, T, D) by its row → (B, T, D); x stays unchanged."""
    return x * row if selection is None else (selection.to(row.dtype) @ row).mul_(x)


def _dot(p: Tensor, row: Tensor, selection: Tensor | None = None) -> Tensor:
    """Return the dot product of each token of p (B, T, D) and its row → (B, T, 1)."""
    if selection is not None:
        return (p @ row.transpose(-1, -2)).mul_(selection).sum(-1, keepdim=True)
    if p.is_cuda or row.shape[-2] != 1:
        return (p * row).sum(-1, keepdim=True)
    return p @ row.transpose(-1, -2)  # on a CPU, a matrix-vector product reads p once and makes no (B, T, D) result


def _sum_tokens(p: Tensor, selection: Tensor | None, column: Tensor) -> Tensor:
    """Sum p·column, (B, T, D) · (B, T, 1), over the tokens that share a row → (B, K, D), or (B, 1, D) for one row."""
    if selection is not None:
        return (selection * column).transpose(1, 2) @ p
    if p.is_cuda:
        return (p * column).sum(1, keepdim=True)
    return column.transpose(1, 2) @ p


def _sum_to_rows(grad: Tensor, table: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Sum a gradient, (B, T, D), (B, K, D) or (B, 1, D), to the gradients of a table row and of a timestep row.

    They have the shape and type of `table`, (D,), and of `row`.
    """
    if row.shape[1] == 1:
        grad = grad.sum(1, keepdim=True)
    return grad.sum((0, 1)).to(table.dtype), grad.sum_to_size(row.shape).to(row.dtype)


def _sum_by_timestep(grad: Tensor, selection: Tensor | None) -> Tensor:
    """Sum a gradient (B, T, D) over the tokens that share a timestep → (B, K, D); keep it without a selection."""
    return grad if selection is None else selection.to(grad.dtype).transpose(1, 2) @ grad


class _RMSNorm(torch.autograd.Function):
    """Autograd function of `rms_norm` (with weight, cos and sin None) and of `rotated_rms_norm`."""

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
    def backward(ctx: Any, *grads: Tensor):
        (grad,) = grads
        x, rstd, weight, cos, sin = ctx.saved_tensors
        x32 = x.float()
        # The gradient before the rotation: rotating back is the transpose of rotating.
        d_normed = grad.float() if cos is None else rotate(grad.float(), cos, sin, back=True)
        d_normed = d_normed.flatten(-2)
        p = d_normed * x32
        if weight is None:
            dot, d_weight = p.sum(-1, keepdim=True), None
        else:
            dot = _dot(p, weight.float().expand(len(p), 1, -1))
            d_weight = _sum_tokens(p, None, rstd).sum((0, 1)).to(weight.dtype)
        del p
        # Without a rotation, `d_normed` may be the memory of `grad`, which must not change.
        direct = d_normed * rstd if cos is None else d_normed.mul_(rstd)
        if weight is not None:
            direct = direct.mul_(weight)
        return _through_norm(x32, rstd, direct, dot).to(x.dtype), d_weight, *(None,) * 4


class _ModulatedRMSNorm(torch.autograd.Function):
    """Autograd function of `modulated_rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x, table_scale, row_scale, table_shift, row_shift, selection, eps) -> Tensor:
        rstd = _rms_reciprocal(x, eps)
        # Save the two terms, not their sum, which may have one row per token: a table row is (D,), and all blocks
        # share the timestep rows.
        ctx.save_for_backward(x, rstd, table_scale, row_scale, table_shift, row_shift, selection)
        scale = _spread(_one_plus(table_scale, row_scale), selection, rstd)
        return _add_rows(scale.mul_(x), table_shift.float() + row_shift.float(), selection).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        (grad,) = grads
        x, rstd, table_scale, row_scale, table_shift, row_shift, selection = ctx.saved_tensors
        grad32, x32 = grad.float(), x.float()
        scale = _one_plus(table_scale, row_scale)
        p = grad32 * x32
        dot = _dot(p, scale, selection)
        few = selection is not None or row_scale.shape[1] == 1
        d_scale = _sum_tokens(p, selection, rstd) if few else p.mul_(rstd)
        del p  # (B, T, D) float32: free it before the next one is made
        d_x = _through_norm(x32, rstd, _spread(scale, selection, rstd).mul_(grad32), dot).to(x.dtype)
        d_shift = _sum_by_timestep(grad32, selection)
        return (
            d_x,
            *_sum_to_rows(d_scale, table_scale, row_scale),
            *_sum_to_rows(d_shift, table_shift, row_shift),
            None,
            None,
        )


def _through_norm(x: Tensor, rstd: Tensor, direct: Tensor, dot: Tensor) -> Tensor:
    """Return the gradient of f(x·rstd) with respect to x. f′ is the gradient with respect to x·rstd.

    Args:
        x: (B, T, D) float32.
        rstd: 1/rms of x, (B, T, 1).
        direct: f′·rstd, (B, T, D), the gradient if rstd were constant; overwritten with the result.
        dot: f′·x summed over the width, (B, T, 1), for the dependence of rstd on x.
    """
    return direct.addcmul_(x, dot * rstd.pow(3) / -x.shape[-1])


class _GatedResidual(torch.autograd.Function):
    """Autograd function of `gated_residual`."""

    @staticmethod
    def forward(ctx: Any, x, y, table, row, selection) -> Tensor:
        ctx.save_for_backward(y, table, row, selection)
        gate = table + row
        return torch.addcmul(x, y, gate) if selection is None else _times_rows(y, gate, selection).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        (grad,) = grads
        y, table, row, selection = ctx.saved_tensors
        d_rows = _sum_to_rows(_sum_by_timestep(grad.float() * y, selection), table, row)
        return grad, _times_rows(grad, table + row, selection), *d_rows, None
