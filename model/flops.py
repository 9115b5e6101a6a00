"""Floating-point operations of the transformer, per stream, equal to those of torch's `FlopCounterMode`.

A multiply-add counts as two. Matrix products and attention are counted; norms, activations and RoPE are not. The
backward pass counts twice the forward pass, because each product needs two of the same size for its gradients. A
product with a frozen weight needs only one, for the gradient of its input.
"""

from dataclasses import dataclass

from model.layers import SINUSOID_WIDTH
from model.transformer import TransformerConfig


@dataclass(frozen=True)
class StreamFlops:
    """FLOPs of one forward pass.

    Attributes:
        video: of the video stream without A↔V attention.
        audio: of the audio stream without A↔V attention.
        cross_modal: of A↔V attention, in both directions.
    """

    video: int
    audio: int
    cross_modal: int

    @property
    def total(self) -> int:
        """FLOPs of both streams and of A↔V attention."""
        return self.video + self.audio + self.cross_modal


def transformer_flops(
    config: TransformerConfig,
    video_tokens: int,
    audio_tokens: int,
    text_tokens: int,
    batch: int = 1,
    *,
    per_token: bool = False,
) -> StreamFlops:
    """Count the FLOPs of one forward pass.

    Args:
        config: of the transformer.
        video_tokens: per sample.
        audio_tokens: per sample.
        text_tokens: per sample.
        batch: samples.
        per_token: timesteps differ between the tokens of a sample, so that AdaLN runs once per token and not once per
            sample.
    """
    c = config
    video = batch * _stream(
        c, video_tokens, text_tokens, c.in_channels, c.out_channels, c.width, c.cross_attention_dim,
        c.num_attention_heads, per_token=per_token,
    )  # fmt: skip
    audio = batch * _stream(
        c, audio_tokens, text_tokens, c.audio_in_channels, c.audio_out_channels, c.audio_width,
        c.audio_cross_attention_dim, c.audio_num_attention_heads, per_token=per_token,
    )  # fmt: skip
    inner, heads = c.audio_width, c.audio_num_attention_heads
    a2v = _attention(c, video_tokens, audio_tokens, c.width, c.audio_width, inner, heads)
    v2a = _attention(c, audio_tokens, video_tokens, c.audio_width, c.width, inner, heads)
    modulation = 0
    for width, tokens in ((c.width, video_tokens), (c.audio_width, audio_tokens)):
        scale_shift = 1 if c.av_timestep == "other" or not per_token else tokens
        gate = tokens if c.av_timestep == "own" and per_token else 1
        modulation += _adaln(scale_shift, width, 4) + _adaln(gate, width, 1)
    return StreamFlops(video, audio, batch * (c.num_layers * (a2v + v2a) + modulation))


def training_flops(
    config: TransformerConfig, video_tokens: int, audio_tokens: int, text_tokens: int, batch: int, trained: float = 1.0
) -> float:
    """Count the FLOPs of one forward and backward pass with one timestep per sample.

    Args:
        config: of the transformer.
        video_tokens: per sample.
        audio_tokens: per sample.
        text_tokens: per sample.
        batch: samples.
        trained: share of the weights that need gradients, in [0, 1].
    """
    total = transformer_flops(config, video_tokens, audio_tokens, text_tokens, batch).total
    video_scores = _scores(video_tokens, video_tokens + text_tokens, config.width)
    audio_scores = _scores(audio_tokens, audio_tokens + text_tokens + 2 * video_tokens, config.audio_width)  # with A↔V
    scores = batch * config.num_layers * (video_scores + audio_scores)
    return 3 * total - (1 - trained) * (total - scores)


def _scores(queries: int, keys: int, inner: int) -> int:
    """Return the FLOPs of q·kᵀ and of the product with v; `inner` is heads × head width."""
    return 2 * (2 * queries * keys * inner)


def _linear(rows: int, wide_in: int, wide_out: int) -> int:
    """Return the FLOPs of a linear layer `wide_in` → `wide_out` on `rows` vectors."""
    return 2 * rows * wide_in * wide_out


def _attention(
    c: TransformerConfig, queries: int, keys: int, query_dim: int, context_dim: int, inner: int, heads: int
) -> int:
    """Return the FLOPs of one attention layer for one sample: projections, gates, scores.

    Args:
        c: of the transformer.
        queries: query tokens.
        keys: key tokens.
        query_dim: width of a query token.
        context_dim: width of a key token.
        inner: heads × head width.
        heads: number of heads.
    """
    gates = _linear(queries, query_dim, heads) if c.apply_gated_attention else 0
    projections = 2 * _linear(queries, query_dim, inner) + 2 * _linear(keys, context_dim, inner)
    return projections + gates + _scores(queries, keys, inner)


def _adaln(rows: int, width: int, coefficient: int) -> int:
    """Return the FLOPs of an `AdaLNSingle` that makes `coefficient` modulation rows for each of `rows` timesteps."""
    return (
        _linear(rows, SINUSOID_WIDTH, width) + _linear(rows, width, width) + _linear(rows, width, coefficient * width)
    )


def _stream(
    c: TransformerConfig,
    tokens: int,
    text: int,
    channels_in: int,
    channels_out: int,
    width: int,
    context: int,
    heads: int,
    *,
    per_token: bool,
) -> int:
    """Return the FLOPs of one stream for one sample, without A↔V attention: all blocks and the layers around them."""
    block = _attention(c, tokens, tokens, width, width, width, heads)
    block += _attention(c, tokens, text, width, context, width, heads)
    block += 2 * _linear(tokens, width, 4 * width)
    ends = _linear(tokens, channels_in, width) + _linear(tokens, width, channels_out)
    ends += _adaln(tokens if per_token else 1, width, 9 if c.cross_attention_adaln else 6)
    if c.cross_attention_adaln:
        ends += _adaln(1, width, 2)
    if c.caption_channels is not None:
        ends += _linear(text, c.caption_channels, width) + _linear(text, width, width)
    return c.num_layers * block + ends
