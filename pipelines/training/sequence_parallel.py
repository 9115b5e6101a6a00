"""Ulysses-style sequence parallelism (DeepSpeed-Ulysses, arXiv 2309.14509 §3): n ranks share the tokens of a sample.

Outside attention, a rank works on 1/n of the tokens of both streams. For attention, an all-to-all exchange gives each
rank all tokens for 1/n of the heads; a second exchange reverses it. Every rank has all text tokens, so attention to the
text needs no exchange. The number of tokens need not be a multiple of n; the first ranks then have one more.

Ranks r·n … r·n + n − 1 are one group and work on the samples of replica r in the batch plan. A sample's loss is the sum
of the shares of its n ranks, but DeepSpeed averages gradients over all ranks. So each rank multiplies its share by n.
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
    """The `size` ranks, this one included, that share the tokens of the same samples.

    Construct it on every rank at the same point of the program, because it creates process groups.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        number, self.rank = divmod(dist.get_rank(), size)
        groups = [dist.new_group(range(first, first + size)) for first in range(0, dist.get_world_size(), size)]
        self._group = groups[number]
        self._tokens: dict[str, int] = {}

    def part(self, stream: str, modality: Modality) -> Modality:
        """Return this rank's tokens of a stream, and store the stream's number of tokens for `attention`.

        Args:
            stream: "video" or "audio".
            modality: all tokens of the stream.
        """
        self._tokens[stream] = modality.latent.shape[1]
        per_token = modality.timesteps.shape[1] > 1
        return replace(
            modality,
            latent=self.split(modality.latent),
            timesteps=self.split(modality.timesteps) if per_token else modality.timesteps,
            positions=self.split(modality.positions, dim=2),
        )

    def split(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return this rank's slice of x along its token dimension `dim`."""
        return x.tensor_split(self.size, dim)[self.rank]

    def attention(self, queries: str, keys: str) -> Callable[..., Tensor]:
        """Return a replacement of `model.attention.attend` that exchanges tokens and heads with the other ranks.

        Args:
            queries: the stream of the queries, "video" or "audio".
            keys: the stream of the keys and values; the same one for self-attention.
        """
        return partial(self._attend, queries, keys)

    @torch.compiler.disable
    def _attend(
        self, queries: str, keys: str, q_bthd: Tensor, k_bshd: Tensor, v_bshd: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return (B, this rank's query tokens, H, d): attention of these to the keys of all ranks.

        Args:
            queries: the stream of the queries.
            keys: the stream of the keys and values.
            q_bthd: (B, this rank's tokens, H, d).
            k_bshd: (B, this rank's tokens, H, d).
            v_bshd: (B, this rank's tokens, H, d).
            mask: must be None.
        """
        assert mask is None, "a mask over a stream's tokens is not split"
        q_sizes, k_sizes = (_sizes(self._tokens[stream], self.size) for stream in (queries, keys))
        q = self._exchanged(q_bthd, _to_heads, _to_tokens, q_sizes)
        k, v = (self._exchanged(x, _to_heads, _to_tokens, k_sizes) for x in (k_bshd, v_bshd))
        return self._exchanged(attend(q, k, v), _to_tokens, _to_heads, q_sizes)

    def _exchanged(
        self, x: Tensor, forward: Callable[..., Tensor], backward: Callable[..., Tensor], sizes: list[int]
    ) -> Tensor:
        """Return `forward` of x, with `backward` for its gradient: `_to_heads` and `_to_tokens`, or the reverse.

        Args:
            x: (B, ·, ·, d).
            forward: the exchange of x.
            backward: the reverse exchange.
            sizes: number of tokens of each rank.
        """
        return cast(Tensor, _AllToAll.apply(x, forward, backward, sizes, self.rank, self._group))


def _sizes(tokens: int, parts: int) -> list[int]:
    """Return the number of tokens of each rank, when `Tensor.tensor_split` divides them among `parts` ranks."""
    return [tokens // parts + (part < tokens % parts) for part in range(parts)]


def _to_heads(x_bthd: Tensor, sizes: list[int], rank: int, group: Any) -> Tensor:
    """Exchange (B, this rank's tokens, H, d) for (B, all tokens, H/n, d), this rank's heads."""
    batch, _, heads, width = x_bthd.shape
    shapes = [(batch, size, heads // len(sizes), width) for size in sizes]
    return torch.cat(_exchange(x_bthd.chunk(len(sizes), dim=2), shapes, group), dim=1)


def _to_tokens(x_bthd: Tensor, sizes: list[int], rank: int, group: Any) -> Tensor:
    """Exchange (B, all tokens, H/n, d), this rank's heads, for (B, this rank's tokens, H, d)."""
    batch, _, heads, width = x_bthd.shape
    shapes = [(batch, sizes[rank], heads, width)] * len(sizes)
    return torch.cat(_exchange(x_bthd.split(sizes, dim=1), shapes, group), dim=2)


def _exchange(parts: tuple[Tensor, ...], shapes: list[tuple[int, ...]], group: Any) -> list[Tensor]:
    """Send `parts[i]` to rank i of the group; return what each rank sent to this one, in `shapes`."""
    sent = torch.cat([part.reshape(-1) for part in parts])
    counts = [torch.Size(shape).numel() for shape in shapes]
    got = sent.new_empty(sum(counts))
    dist.all_to_all_single(got, sent, counts, [part.numel() for part in parts], group=group)
    return [piece.view(shape) for piece, shape in zip(got.split(counts), shapes, strict=True)]


class _AllToAll(torch.autograd.Function):
    """An exchange with a gradient. An exchange only moves values, so its gradient goes through the reverse exchange.

    `apply` takes x, the exchange, the reverse exchange, and their other arguments (sizes, rank, group).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, exchange: Callable[..., Tensor], reverse: Callable[..., Tensor], *place: Any
    ) -> Tensor:
        ctx.reverse, ctx.place = reverse, place
        return exchange(x, *place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.reverse(gradients[0], *ctx.place), *[None] * (2 + len(ctx.place))
