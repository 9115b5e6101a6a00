"""Text contexts for the transformer, from all hidden states of the text encoder.

A feature extractor projects the states, then one connector per stream makes the context. Source: LTX-2 (arXiv
2601.03233 §3: multi-layer feature extractor, thinking tokens).

Shapes: B batch, S text tokens (left-padded), S' slots of a context, D hidden size and L number of encoder states,
W width of a connector; suffixes b, s, d, w.

Feature extractor. 2.0 centres each state of each sample and divides it by its range over all valid tokens and
channels, 8·(x − mean)/(max − min); 2.3 RMS-norms each state of each token. The states are flattened D×L with L fastest
and projected, once for both streams in 2.0, once per stream in 2.3.

Connector. The valid tokens move to the front, and learned registers ("thinking tokens") fill the remaining slots. Two
(2.3: eight) pre-norm transformer blocks with 1-D RoPE follow. Every slot is attended, so the context mask is None.

State-dict keys are the published ones, `text_embedding_projection.*`, `video_embeddings_connector.*` and
`audio_embeddings_connector.*` (the connectors without `model.diffusion_model.`).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.layers import FeedForward, Linear
from model.norms import rms_norm
from model.rope import RopeCache, RopeTable

_EPS = 1e-6


@dataclass(frozen=True)
class TextConditionerConfig:
    """Sizes of the text conditioner; the defaults are LTX-2 19B (2.0) with Gemma 3 12B.

    Names of the connectors' fields are those of the published configuration. 2.3 differs by
    `per_modality_projections=True`, 8 gated layers, and heads of 32×128 (video) and 32×64 (audio).

    Attributes:
        hidden_size: D, width of the text encoder.
        num_states: L, states of the text encoder: the embedding and every layer.
        per_modality_projections: use the feature extractor of 2.3 in place of that of 2.0.
        connector_num_attention_heads: of the video connector.
        connector_attention_head_dim: of the video connector.
        connector_num_layers: of the video connector.
        audio_connector_num_attention_heads: of the audio connector.
        audio_connector_attention_head_dim: of the audio connector.
        audio_connector_num_layers: of the audio connector.
        connector_apply_gated_attention: per-head output gates in both connectors.
        connector_num_learnable_registers: number of thinking tokens; the length of a context is a multiple of it.
        connector_positional_embedding_max_pos: of RoPE, in tokens.
        context_tokens: least number of slots of a context, rounded up to a multiple of the registers; with 0, the
            longest text of the batch determines the number.
    """

    hidden_size: int = 3840
    num_states: int = 49
    per_modality_projections: bool = False
    connector_num_attention_heads: int = 30
    connector_attention_head_dim: int = 128
    connector_num_layers: int = 2
    audio_connector_num_attention_heads: int = 30
    audio_connector_attention_head_dim: int = 128
    audio_connector_num_layers: int = 2
    connector_apply_gated_attention: bool = False
    connector_num_learnable_registers: int = 128
    connector_positional_embedding_max_pos: tuple[int] = (4096,)
    context_tokens: int = 1024

    def __post_init__(self) -> None:
        # JSON gives lists; tuples keep the configuration hashable.
        object.__setattr__(
            self, "connector_positional_embedding_max_pos", tuple(self.connector_positional_embedding_max_pos)
        )
        if self.connector_num_learnable_registers < 1:
            raise ValueError("connector_num_learnable_registers must be at least 1")
        if not self.per_modality_projections and self.video_width != self.audio_width:
            raise ValueError(
                f"one projection feeds both connectors, so their widths must be equal; found {self.video_width} and "
                f"{self.audio_width} (or set per_modality_projections)"
            )

    @property
    def video_width(self) -> int:
        """Width of the video features and of the video context."""
        return self.connector_num_attention_heads * self.connector_attention_head_dim

    @property
    def audio_width(self) -> int:
        """Width of the audio features and of the audio context."""
        return self.audio_connector_num_attention_heads * self.audio_connector_attention_head_dim


class _ConnectorBlock(nn.Module):
    """Pre-norm transformer block: self-attention with RoPE, then feed-forward; (B, S', W) → (B, S', W)."""

    def __init__(self, heads: int, head_dim: int, gated: bool):
        super().__init__()
        self.attn1 = Attention(heads * head_dim, heads, head_dim, gated=gated)
        self.ff = FeedForward(heads * head_dim)

    def forward(self, x_bsw: Tensor, rope: RopeTable) -> Tensor:
        x_bsw = x_bsw + self.attn1(rms_norm(x_bsw, _EPS), rope=rope)
        return x_bsw + self.ff(rms_norm(x_bsw, _EPS))


class Connector(nn.Module):
    """Transformer that makes a context, in which every slot is filled, from left-padded features.

    Args:
        heads: attention heads; W is this times `head_dim`.
        head_dim: width of a head.
        layers: number of blocks.
        gated: per-head output gates.
        registers: number of thinking tokens.
        max_pos: of RoPE, in tokens.
    """

    def __init__(self, heads: int, head_dim: int, layers: int, *, gated: bool, registers: int, max_pos: tuple[int]):
        super().__init__()
        self.heads = heads
        self.max_pos = max_pos
        self.learnable_registers = nn.Parameter(torch.empty(registers, heads * head_dim).uniform_(-1, 1))
        self.transformer_1d_blocks = nn.ModuleList([_ConnectorBlock(heads, head_dim, gated) for _ in range(layers)])
        self._rope = RopeCache(size=2)

    def forward(self, features: Tensor, valid: Tensor, length: int) -> Tensor:
        """Make the context of one stream.

        Args:
            features: (B, S, W), left-padded.
            valid: (B,), number of valid tokens of each sample.
            length: S', at least S.

        Returns:
            (B, S', W).
        """
        x_bsw = self._fill(features.to(self.learnable_registers.dtype), valid, length)
        positions = _text_positions(length, str(x_bsw.device))
        rope = self._rope.get(positions, x_bsw.shape[-1], self.heads, self.max_pos, 10_000.0)
        for block in self.transformer_1d_blocks:
            x_bsw = block(x_bsw, rope)
        return rms_norm(x_bsw, _EPS)

    def _fill(self, features: Tensor, valid: Tensor, length: int) -> Tensor:
        """Return (B, S', W): the valid tokens moved to the front, learned registers in the remaining slots."""
        slots = torch.arange(length, device=features.device)
        source = slots + (features.shape[1] - valid)[:, None]  # (B, S'): index of the token that moves to each slot
        source = source.clamp(max=features.shape[1] - 1)
        front = features.gather(1, source.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
        registers = self.learnable_registers[slots % len(self.learnable_registers)]
        return torch.where((slots < valid[:, None]).unsqueeze(-1), front, registers)


@lru_cache(maxsize=16)
def _text_positions(length: int, device: str) -> Tensor:
    """Return the positions 0 … length − 1, (1, 1, length) float32; cached, so that `RopeCache` recognises them."""
    with torch.inference_mode(False):
        return torch.arange(length, dtype=torch.float32, device=device)[None, None, :]


class TextConditioner(nn.Module):
    """Feature extractor and both connectors.

    `project` runs the feature extractor, whose result can be stored with a clip. `connect` runs the connectors; the
    trainer runs it on the stored features.
    """

    def __init__(self, config: TextConditionerConfig):
        super().__init__()
        self.config = config
        flat = config.hidden_size * config.num_states
        if config.per_modality_projections:
            projections = {
                "video_aggregate_embed": Linear(flat, config.video_width),
                "audio_aggregate_embed": Linear(flat, config.audio_width),
            }
        else:
            projections = {"aggregate_embed": Linear(flat, config.video_width, bias=False)}
        self.text_embedding_projection = nn.ModuleDict(projections)
        shared: dict[str, Any] = {
            "gated": config.connector_apply_gated_attention,
            "registers": config.connector_num_learnable_registers,
            "max_pos": config.connector_positional_embedding_max_pos,
        }
        self.video_embeddings_connector = Connector(
            config.connector_num_attention_heads,
            config.connector_attention_head_dim,
            config.connector_num_layers,
            **shared,
        )
        self.audio_embeddings_connector = Connector(
            config.audio_connector_num_attention_heads,
            config.audio_connector_attention_head_dim,
            config.audio_connector_num_layers,
            **shared,
        )

    def forward(self, hidden_states: tuple[Tensor, ...], mask: Tensor) -> tuple[Tensor, Tensor, None]:
        """Run `project` on the states, then `connect` on the features; return the result of `connect`."""
        return self.connect(*self.project(hidden_states, mask), mask)

    def project(self, hidden_states: tuple[Tensor, ...], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project the states of the text encoder to features.

        The features of a token depend on all valid tokens of its sample in 2.0 (mean and range of a state), on the
        token alone in 2.3, and never on other samples. Pads are projected from zeros.

        Args:
            hidden_states: L tensors (B, S, D).
            mask: (B, S), left-padded, nonzero for a token.

        Returns:
            Features (B, S, W) of video and audio; in 2.0 the same tensor twice.

        Raises:
            ValueError: the states are of another text encoder, or the mask does not fit.
        """
        config = self.config
        if len(hidden_states) != config.num_states or hidden_states[0].shape[-1] != config.hidden_size:
            raise ValueError(
                f"the text encoder gives {len(hidden_states)} states of width {hidden_states[0].shape[-1]}; "
                f"this model was made for {config.num_states} of width {config.hidden_size}"
            )
        valid = self._check_mask(mask, hidden_states[0].shape[1])
        normalise = _rms_normalised if config.per_modality_projections else _range_normalised
        # (B, S, D·L), L fastest.
        states = torch.stack([normalise(state.float(), valid) for state in hidden_states], dim=-1).flatten(2)
        projection = self.text_embedding_projection
        if not config.per_modality_projections:
            features = projection["aggregate_embed"](_like(states, projection["aggregate_embed"]))
            return features, features
        video, audio = projection["video_aggregate_embed"], projection["audio_aggregate_embed"]
        return (
            video(_like(states * math.sqrt(config.video_width / config.hidden_size), video)),
            audio(_like(states * math.sqrt(config.audio_width / config.hidden_size), audio)),
        )

    def connect(self, video_features: Tensor, audio_features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, None]:
        """Make the contexts of both streams.

        Args:
            video_features: (B, S, W), left-padded.
            audio_features: (B, S, W), left-padded.
            mask: (B, S), nonzero for a token.

        Returns:
            Contexts (B, S', W) of video and audio, and the context mask, which is None: registers fill every pad, so
            every slot is attended. S' is the next multiple of the number of registers that holds S and
            `context_tokens`.

        Raises:
            ValueError: the mask does not fit.
        """
        valid = self._check_mask(mask, video_features.shape[1]).sum(1)
        registers = self.config.connector_num_learnable_registers
        length = registers * math.ceil(max(video_features.shape[1], self.config.context_tokens) / registers)
        return (
            self.video_embeddings_connector(video_features, valid, length),
            self.audio_embeddings_connector(audio_features, valid, length),
            None,
        )

    def _check_mask(self, mask: Tensor, tokens: int) -> Tensor:
        """Return the mask as bool; raises ValueError unless it is (B, tokens) and left-padded.

        The padding is checked on a CPU only.
        """
        if mask.ndim != 2 or mask.shape[1] != tokens:
            raise ValueError(f"text mask is {tuple(mask.shape)}; expected (batch, {tokens})")
        mask = mask.bool()
        # Read values on a CPU only: on a GPU this would make the host wait.
        if mask.device.type == "cpu" and bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise ValueError("text mask must be left-padded: pads (0) first, then tokens (1)")
        return mask


def _like(x: Tensor, linear: nn.Module) -> Tensor:
    """Convert x to the type of the weights of `linear`."""
    assert isinstance(linear, Linear)
    return x.to(linear.weight.dtype)


def _range_normalised(state_bsd: Tensor, valid_bs: Tensor) -> Tensor:
    """Return 8·(x − mean)/(max − min) of a state (B, S, D), and 0 for pads.

    Mean, max and min are taken over all channels of a sample's valid tokens. `valid_bs`: (B, S) bool.
    """
    pad = ~valid_bs.unsqueeze(-1)
    mean = state_bsd.masked_fill(pad, 0).sum((1, 2), keepdim=True) / (
        valid_bs.sum(1)[:, None, None] * state_bsd.shape[-1] + _EPS
    )
    low = state_bsd.masked_fill(pad, math.inf).amin((1, 2), keepdim=True)
    high = state_bsd.masked_fill(pad, -math.inf).amax((1, 2), keepdim=True)
    return (8 * (state_bsd - mean) / (high - low + _EPS)).masked_fill(pad, 0)


def _rms_normalised(state_bsd: Tensor, valid_bs: Tensor) -> Tensor:
    """Return each token of a state (B, S, D) divided by its root mean square over channels, and 0 for pads."""
    return rms_norm(state_bsd, _EPS).masked_fill(~valid_bs.unsqueeze(-1), 0)
