"""Ulysses-style sequence parallelism (DeepSpeed-Ulysses, arXiv 2309.14509 §3): n ranks share the tokens of a sample.

Outside of attention every rank works on its own tokens of both streams. Inside, ranks trade tokens for heads (all to
all): each attends over all tokens with 1/n of the heads, and trades back. Text is whole on every rank, so attention to
it needs no trade. The numbers of tokens need not divide by n; the first ranks have one more.

Ranks r·n … r·n + n − 1 are one group, the r-th of the batch plan. DeepSpeed averages gradients over all ranks while a
sample's loss is spread over n, so each rank's part of it counts n times.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from model.attention import attend
from model.modality import Modality


class SequenceGroup:
    """This rank's place among the `size` ranks that share a sample.

    Every rank of the run makes one, at the same moment.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        number, self.rank = divmod(dist.get_rank(), size)
        groups = [dist.new_group(range(first, first + size)) for first in range(0, dist.get_world_size(), size)]
        self._group = groups[number]
        self._tokens: dict[str, int] = {}

    def part(self, stream: str, modality: Modality) -> Modality:
        """The tokens of a stream ("video", "audio") that are this rank's; `attention` is then for this many."""
        self._tokens[stream] = modality.latent.shape[1]
        own = modality.timesteps.shape[1] > 1
        return replace(
            modality,
            latent=self.own(modality.latent),
            timesteps=self.own(modality.timesteps) if own else modality.timesteps,
            positions=self.own(modality.positions, dim=2),
        )

    def own(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of x, which lie along `dim`."""
        return x.tensor_split(self.size, dim)[self.rank]

    def attention(self, queries: str, keys: str) -> Callable[..., Tensor]:
        """As `model.attention.attend`, for the tokens of one stream over those of another or its own."""
        return partial(self._attend, queries, keys)

    @torch.compiler.disable
    def _attend(
        self, queries: str, keys: str, q_bthd: Tensor, k_bshd: Tensor, v_bshd: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        assert mask is None, "a mask over a stream's tokens is not split"
        asking, asked = (_sizes(self._tokens[stream], self.size) for stream in (queries, keys))
        q = self._traded(q_bthd, _to_heads, _to_tokens, asking)
        k, v = (self._traded(x, _to_heads, _to_tokens, asked) for x in (k_bshd, v_bshd))
        return self._traded(attend(q, k, v), _to_tokens, _to_heads, asking)

    def _traded(self, x: Tensor, there: Callable[..., Tensor], back: Callable[..., Tensor], sizes: list[int]) -> Tensor:
        return cast(Tensor, _Trade.apply(x, there, back, sizes, self.rank, self._group))


def _sizes(tokens: int, parts: int) -> list[int]:
    """As `Tensor.tensor_split` cuts."""
    return [tokens // parts + (part < tokens % parts) for part in range(parts)]


def _to_heads(x_bthd: Tensor, sizes: list[int], rank: int, group: Any) -> Tensor:
    """(B, own tokens, H, d) → (B, all tokens, H/n, d)."""
    batch, _, heads, width = x_bthd.shape
    shapes = [(batch, size, heads // len(sizes), width) for size in sizes]
    return torch.cat(_exchange(x_bthd.chunk(len(sizes), dim=2), shapes, group), dim=1)


def _to_tokens(x_bthd: Tensor, sizes: list[int], rank: int, group: Any) -> Tensor:
    """(B, all tokens, H/n, d) → (B, own tokens, H, d)."""
    batch, _, heads, width = x_bthd.shape
    shapes = [(batch, sizes[rank], heads, width)] * len(sizes)
    return torch.cat(_exchange(x_bthd.split(sizes, dim=1), shapes, group), dim=2)


def _exchange(parts: tuple[Tensor, ...], shapes: list[tuple[int, ...]], group: Any) -> list[Tensor]:
    """Part i to rank i of the group; what they send, of these shapes."""
    sent = torch.cat([part.reshape(-1) for part in parts])
    counts = [torch.Size(shape).numel() for shape in shapes]
    got = sent.new_empty(sum(counts))
    dist.all_to_all_single(got, sent, counts, [part.numel() for part in parts], group=group)
    return [piece.view(shape) for piece, shape in zip(got.split(counts), shapes, strict=True)]


class _Trade(torch.autograd.Function):
    """`there`, whose gradient goes `back`: what is sent and what is received are the same values in another order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[..., Tensor], back: Callable[..., Tensor], *place: Any) -> Tensor:
        ctx.back, ctx.place = back, place
        return there(x, *place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.back(gradients[0], *ctx.place), *[None] * (2 + len(ctx.place))
