"""Multi-head attention of every kind in the model: self, text, A↔V, and the connectors' self-attention.

Source: LTX-2 (arXiv 2601.03233 §3).

Shapes: B batch, T query tokens, S key tokens, D query width, H heads, d head width; suffixes b, t, s, d, h.

Queries and keys are RMS-normed with a weight over the full inner width H·d, then split into heads, then rotated
(RoPE). The kernel is PyTorch's scaled_dot_product_attention, which chooses flash, cuDNN or memory-efficient attention.
FlashAttention-3 runs instead where it is installed, the device is an NVIDIA GPU, the type is 16-bit and there is no
mask.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.layers import Linear
from model.norms import rotated_rms_norm
from model.rope import RopeTable

try:
    from flash_attn_interface import flash_attn_func as _flash_attention_3  # pyright: ignore[reportMissingImports]
except ImportError:
    _flash_attention_3 = None


def attend(q_bthd: Tensor, k_bshd: Tensor, v_bshd: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute softmax(q·kᵀ/√d)·v.

    Args:
        q_bthd: (B, T, H, d).
        k_bshd: (B, S, H, d).
        v_bshd: (B, S, H, d).
        mask: broadcasts to (B, H, T, S); bool (True attends), or floats that are added to the logits.

    Returns:
        (B, T, H, d).
    """
    if _flash_attention_3 is not None and mask is None and q_bthd.is_cuda and q_bthd.dtype in _HALF:
        out = _flash_attention_3(q_bthd, k_bshd, v_bshd)
        return out[0] if isinstance(out, tuple) else out
    q, k, v = (x.transpose(1, 2) for x in (q_bthd, k_bshd, v_bshd))
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


_HALF = (torch.float16, torch.bfloat16)


class QKNorm(nn.RMSNorm):
    """RMS norm of queries or keys over the full width, then split into heads and rotation (see `rotated_rms_norm`)."""

    def __init__(self, heads: int, head_dim: int, eps: float):
        super().__init__(heads * head_dim, eps=eps)
        self.heads = heads

    def forward(self, x: Tensor, rope: RopeTable | None = None) -> Tensor:
        """(B, T, H·d) → (B, T, H, d), rotated where `rope` is given."""
        assert self.eps is not None
        return rotated_rms_norm(x, self.weight, rope, self.heads, self.eps)


class Attention(nn.Module):
    """Multi-head attention with QK norm and optional output gates.

    Attributes:
        attend: the kernel, with the signature of the function `attend`; replace it to divide the tokens among
            processes.

    Args:
        query_dim: width of the queries' tokens and of the output.
        heads: H.
        head_dim: d.
        context_dim: width of the keys' tokens; None for `query_dim`.
        gated: multiply each head's output by 2·sigmoid(Linear(x)), which is 1 at initialisation (2.3).
        zero_out: start the output projection at zero, for a residual branch without an AdaLN gate.
        eps: of the QK norm.
    """

    def __init__(
        self,
        query_dim: int,
        heads: int,
        head_dim: int,
        *,
        context_dim: int | None = None,
        gated: bool = False,
        zero_out: bool = False,
        eps: float = 1e-6,
    ):
        super().__init__()
        inner = heads * head_dim
        context_dim = context_dim or query_dim
        self.heads = heads
        self.attend: Callable[..., Tensor] = attend
        self.q_norm = QKNorm(heads, head_dim, eps)
        self.k_norm = QKNorm(heads, head_dim, eps)
        self.to_q = Linear(query_dim, inner)
        self.to_k = Linear(context_dim, inner)
        self.to_v = Linear(context_dim, inner)
        self.to_gate_logits = Linear(query_dim, heads, zero=True) if gated else None
        self.to_out = nn.Sequential(Linear(inner, query_dim, zero=zero_out))

    def forward(
        self,
        x_btd: Tensor,
        context: Tensor | None = None,
        *,
        rope: RopeTable | None = None,
        context_rope: RopeTable | None = None,
        mask: Tensor | None = None,
        pass_value: Tensor | bool = False,
    ) -> Tensor:
        """Attend from `x_btd` to `context`.

        Args:
            x_btd: (B, T, D), tokens of the queries.
            context: (B, S, ·), tokens of keys and values; None for self-attention.
            rope: table of the queries; None for no rotation.
            context_rope: table of the keys; None for that of the queries.
            mask: see `attend`.
            pass_value: samples for which the values replace the result of attention (spatio-temporal guidance): all
                (True), none (False), or a bool tensor (B,). For self-attention only.

        Returns:
            (B, T, D).
        """
        source = x_btd if context is None else context
        v = self.to_v(source).unflatten(-1, (self.heads, -1))
        if pass_value is True:
            out = v
        else:
            q = self.q_norm(self.to_q(x_btd), rope)
            k = self.k_norm(self.to_k(source), rope if context_rope is None else context_rope)
            out = self.attend(q, k, v, mask)
            if isinstance(pass_value, Tensor):
                out = torch.where(pass_value[:, None, None, None], v, out)
        if self.to_gate_logits is not None:
            out = out * (2.0 * torch.sigmoid(self.to_gate_logits(x_btd))).unsqueeze(-1)
        return self.to_out(out.flatten(2))
