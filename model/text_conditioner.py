"""Text features for the transformer: all hidden states of the text encoder → one projection → one connector per stream
(arXiv 2601.03233, §3: multi-layer feature extractor and thinking tokens).

Shapes: B batch, S text tokens (left-padded), D hidden size and L number of encoder states, W width of a connector.

Feature extractor: in 2.0 each sample's layer is centred and divided by its range over all its valid tokens and
channels, 8·(x − mean)/(max − min); in 2.3 each token's layer is RMS-normed. Layers are flattened D×L with L fastest
and projected, in 2.0 once for both streams, in 2.3 once per stream.

Connector: the valid tokens move to the front and learned registers ("thinking tokens") fill the rest, so that every
slot is attended; two (2.3: eight) pre-norm transformer blocks with 1-D RoPE follow. Without pads there is no mask:
the context mask is None.

State-dict keys are the published ones, `text_embedding_projection.*`, `video_embeddings_connector.*` and
`audio_embeddings_connector.*` (the connectors without `model.diffusion_model.`).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.layers import FeedForward, Linear
from model.norms import rms_norm
from model.rope import RopeCache, RopeTable

_EPS = 1e-6


@dataclass(frozen=True)
class TextConditionerConfig:
    """Sizes; the defaults are LTX-2 19B (2.0) over Gemma 3 12B. Connector names are those of the published
    configuration.

    2.3 differs by `per_modality_projections=True`, 8 gated layers, video 32×128 and audio 32×64.

    Attributes:
        hidden_size, num_states: of the text encoder (embedding and every layer: 49 states for 48 layers).
        per_modality_projections: 2.3's extractor instead of 2.0's.
        connector_num_learnable_registers: thinking tokens; contexts are a multiple of them long.
        context_tokens: contexts are at least this long, as published; 0 for the shortest multiple that holds the batch.
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
    def __init__(self, heads: int, head_dim: int, gated: bool):
        super().__init__()
        self.attn1 = Attention(heads * head_dim, heads, head_dim, gated=gated)
        self.ff = FeedForward(heads * head_dim)

    def forward(self, x: Tensor, rope: RopeTable) -> Tensor:
        x = x + self.attn1(rms_norm(x, _EPS), rope=rope)
        return x + self.ff(rms_norm(x, _EPS))


class Connector(nn.Module):
    """Features (B, S, W), left-padded → context (B, S', W), every slot filled."""

    def __init__(self, heads: int, head_dim: int, layers: int, *, gated: bool, registers: int, max_pos: tuple[int]):
        super().__init__()
        self.heads = heads
        self.max_pos = max_pos
        self.learnable_registers = nn.Parameter(torch.empty(registers, heads * head_dim).uniform_(-1, 1))
        self.transformer_1d_blocks = nn.ModuleList([_ConnectorBlock(heads, head_dim, gated) for _ in range(layers)])
        self._rope = RopeCache(size=2)

    def forward(self, features: Tensor, valid: Tensor, length: int) -> Tensor:
        """`valid` (B,) counts the valid tokens at the end of each row; `length` is S'."""
        x = self._fill(features.to(self.learnable_registers.dtype), valid, length)
        positions = _text_positions(length, str(x.device))
        rope = self._rope.get(positions, x.shape[-1], self.heads, self.max_pos, 10_000.0)
        for block in self.transformer_1d_blocks:
            x = block(x, rope)
        return rms_norm(x, _EPS)

    def _fill(self, features: Tensor, valid: Tensor, length: int) -> Tensor:
        slots = torch.arange(length, device=features.device)
        source = (
            slots + (features.shape[1] - valid)[:, None]
        )  # (B, S'): valid tokens from the end of the row to the front
        source = source.clamp(max=features.shape[1] - 1)
        front = features.gather(1, source.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
        registers = self.learnable_registers[slots % len(self.learnable_registers)]
        return torch.where((slots < valid[:, None]).unsqueeze(-1), front, registers)


@lru_cache(maxsize=16)
def _text_positions(length: int, device: str) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(length, dtype=torch.float32, device=device)[None, None, :]


class TextConditioner(nn.Module):
    """Hidden states of the text encoder → contexts of both streams."""

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
        self.video_embeddings_connector = Connector(
            config.connector_num_attention_heads,
            config.connector_attention_head_dim,
            config.connector_num_layers,
            gated=config.connector_apply_gated_attention,
            registers=config.connector_num_learnable_registers,
            max_pos=config.connector_positional_embedding_max_pos,
        )
        self.audio_embeddings_connector = Connector(
            config.audio_connector_num_attention_heads,
            config.audio_connector_attention_head_dim,
            config.audio_connector_num_layers,
            gated=config.connector_apply_gated_attention,
            registers=config.connector_num_learnable_registers,
            max_pos=config.connector_positional_embedding_max_pos,
        )

    def forward(self, hidden_states: tuple[Tensor, ...], mask: Tensor) -> tuple[Tensor, Tensor, None]:
        """`connect` of `project`."""
        return self.connect(*self.project(hidden_states, mask), mask)

    def project(self, hidden_states: tuple[Tensor, ...], mask: Tensor) -> tuple[Tensor, Tensor]:
        """The cacheable half: L states (B, S, D) and mask (B, S) → features (B, S, W) of video and audio.

        The same tensor twice in 2.0. Pads are projected from zeros. A token's features depend on the whole sample in
        2.0 (its layer's mean and range), on the token alone in 2.3; never on the batch.
        """
        config = self.config
        if len(hidden_states) != config.num_states or hidden_states[0].shape[-1] != config.hidden_size:
            raise ValueError(
                f"the text encoder gives {len(hidden_states)} states of width {hidden_states[0].shape[-1]}; "
                f"this model was made for {config.num_states} of width {config.hidden_size}"
            )
        valid = self._check_mask(mask, hidden_states[0].shape[1])
        normalise = _rms_normalised if config.per_modality_projections else _range_normalised
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
        """Features (B, S, W) and mask (B, S), left-padded → contexts (B, S', W) of video and audio, context mask.

        S' is the next multiple of the registers' count that holds S and `context_tokens`; no feature need be padded
        that far. The context mask is None: registers fill every pad, so every slot is attended.
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
        if mask.ndim != 2 or mask.shape[1] != tokens:
            raise ValueError(f"text mask is {tuple(mask.shape)}; expected (batch, {tokens})")
        mask = mask.bool()
        if mask.device.type == "cpu" and bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise ValueError("text mask must be left-padded: pads (0) first, then tokens (1)")
        return mask


def _like(x: Tensor, linear: nn.Module) -> Tensor:
    assert isinstance(linear, Linear)
    return x.to(linear.weight.dtype)


def _range_normalised(state_bsd: Tensor, valid_bs: Tensor) -> Tensor:
    """8·(x − mean)/(max − min) over a sample's valid tokens and all channels; pads zero."""
    pad = ~valid_bs.unsqueeze(-1)
    mean = state_bsd.masked_fill(pad, 0).sum((1, 2), keepdim=True) / (
        valid_bs.sum(1)[:, None, None] * state_bsd.shape[-1] + _EPS
    )
    low = state_bsd.masked_fill(pad, math.inf).amin((1, 2), keepdim=True)
    high = state_bsd.masked_fill(pad, -math.inf).amax((1, 2), keepdim=True)
    return (8 * (state_bsd - mean) / (high - low + _EPS)).masked_fill(pad, 0)


def _rms_normalised(state_bsd: Tensor, valid_bs: Tensor) -> Tensor:
    """Each token by its root mean square over channels; pads zero."""
    return rms_norm(state_bsd, _EPS).masked_fill(~valid_bs.unsqueeze(-1), 0)
