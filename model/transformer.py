"""The dual-stream diffusion transformer of LTX-2 (arXiv 2601.03233, §3): a wide video stream and a narrow audio stream,
joined in every block by attention in both directions.

Shapes: B batch, T tokens of a stream, S text tokens, D width of a stream (video 4096, audio 2048 in `ltx2-19b`).

A block: self-attention (RoPE over the stream's positions) → text cross-attention → A↔V attention (RoPE over time alone;
both directions read the state before either has written) → feed-forward. AdaLN rows come in the published order, which
differs between tables: self-attention and feed-forward have shift, scale, gate; A↔V has scale before shift.

What depends only on the step (rotary tables, AdaLN rows, projected captions, masks) is made once per forward, in
`_Stream`, never in a block.

Initialisation: adaLN-Zero. The shared AdaLN layers, the gate rows of every table, the ungated text attention's output
projection (2.0) and the final projections start at zero, so that every block starts as the identity and the first
prediction is 0; all else is truncated normal (see `model/layers.py`).

State-dict keys are those of the published checkpoints without the prefix `model.diffusion_model.`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import Attention
from model.layers import AdaLNSingle, CaptionProjection, FeedForward, Linear, distinct_timesteps, truncated_normal_
from model.modality import Modality
from model.norms import AdaRow, gated_residual, modulated_rms_norm, rms_norm
from model.rope import RopeCache, RopeTable

AVTimestep = Literal["own", "other", "gate_other"]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and variants; the defaults are LTX-2 19B (2.0). Names are those of the published configuration.

    2.3 differs by `apply_gated_attention=True`, `cross_attention_adaln=True` and `caption_channels=None`.

    Attributes:
        cross_attention_dim, audio_cross_attention_dim: width of the text context that the blocks attend to.
        caption_channels: width of the text features that the model projects to the above itself; None when they come
            projected (2.3).
        apply_gated_attention: per-head output gates in every attention.
        cross_attention_adaln: text cross-attention modulated by timestep (queries, gate) and by σ (keys and values).
        positional_embedding_max_pos: seconds, pixels, pixels; audio: seconds.
        av_ca_timestep_scale_multiplier: scales σ for the A↔V gates.
        av_timestep: what conditions A↔V attention. "gate_other" (c, intended by the authors): scale and shift from the
            stream's own timesteps, gate from the other stream's σ. "own" (a): all from the stream's own timesteps.
            "other" (b): all from the other stream's σ.
    """

    num_layers: int = 48
    num_attention_heads: int = 32
    attention_head_dim: int = 128
    in_channels: int = 128
    out_channels: int = 128
    cross_attention_dim: int = 4096
    audio_num_attention_heads: int = 32
    audio_attention_head_dim: int = 64
    audio_in_channels: int = 128
    audio_out_channels: int = 128
    audio_cross_attention_dim: int = 2048
    caption_channels: int | None = 3840
    apply_gated_attention: bool = False
    cross_attention_adaln: bool = False
    norm_eps: float = 1e-6
    positional_embedding_theta: float = 10_000.0
    positional_embedding_max_pos: tuple[int, int, int] = (20, 2048, 2048)
    audio_positional_embedding_max_pos: tuple[int] = (20,)
    timestep_scale_multiplier: int = 1000
    av_ca_timestep_scale_multiplier: int = 1000
    av_timestep: AVTimestep = "gate_other"

    def __post_init__(self) -> None:
        # JSON gives lists; tuples keep the configuration hashable.
        object.__setattr__(self, "positional_embedding_max_pos", tuple(self.positional_embedding_max_pos))
        object.__setattr__(self, "audio_positional_embedding_max_pos", tuple(self.audio_positional_embedding_max_pos))
        if self.av_timestep not in ("own", "other", "gate_other"):
            raise ValueError(f"av_timestep {self.av_timestep!r}: choose 'own', 'other' or 'gate_other'")
        for name, width in (
            ("attention_head_dim", self.attention_head_dim),
            ("audio_attention_head_dim", self.audio_attention_head_dim),
        ):
            if width % 2:
                raise ValueError(f"{name} {width} must be even, for RoPE turns halves")
        if self.caption_channels is not None:
            for name, found, width in (
                ("cross_attention_dim", self.cross_attention_dim, self.width),
                ("audio_cross_attention_dim", self.audio_cross_attention_dim, self.audio_width),
            ):
                if found != width:
                    raise ValueError(
                        f"{name} {found} must be the stream's width {width}, which captions are projected to"
                    )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def audio_width(self) -> int:
        return self.audio_num_attention_heads * self.audio_attention_head_dim


@dataclass(frozen=True)
class _CrossModal:
    """One stream's part in A↔V attention: AdaLN rows as query or key of each direction, and RoPE over time."""

    rows: tuple[Tensor, ...]  # a2v scale, a2v shift, v2a scale, v2a shift
    selection: Tensor | None
    gate: Tensor
    gate_selection: Tensor | None
    rope: RopeTable
    keep: Tensor | None  # (B, 1, 1), 0 where a sample skips A↔V attention


@dataclass(frozen=True)
class _Stream:
    """What every block needs of a stream beside its state."""

    rows: tuple[Tensor, ...]  # 6 or 9 AdaLN rows, as in `AdaRow`
    selection: Tensor | None
    embedded: Tensor  # timesteps, for the final modulation
    context: Tensor
    context_mask: Tensor | None  # bool (B, 1, 1, S)
    prompt_rows: tuple[Tensor, ...] | None  # shift, scale (B, 1, D) of the context
    rope: RopeTable
    mask: Tensor | None  # (B, 1, T, T)
    cross: _CrossModal | None


class DualStreamBlock(nn.Module):
    """One block of both streams. Tables: see the module's head."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.modulated_text = config.cross_attention_adaln
        video, audio = config.width, config.audio_width
        heads: dict[str, Any] = {"heads": config.num_attention_heads, "head_dim": config.attention_head_dim}
        audio_heads: dict[str, Any] = {
            "heads": config.audio_num_attention_heads,
            "head_dim": config.audio_attention_head_dim,
        }
        shared: dict[str, Any] = {"gated": config.apply_gated_attention, "eps": config.norm_eps}
        text: dict[str, Any] = shared | {"zero_out": not self.modulated_text}
        self.attn1 = Attention(video, **heads, **shared)
        self.audio_attn1 = Attention(audio, **audio_heads, **shared)
        self.attn2 = Attention(video, context_dim=config.cross_attention_dim, **heads, **text)
        self.audio_attn2 = Attention(audio, context_dim=config.audio_cross_attention_dim, **audio_heads, **text)
        self.audio_to_video_attn = Attention(video, context_dim=audio, **audio_heads, **shared)
        self.video_to_audio_attn = Attention(audio, context_dim=video, **audio_heads, **shared)
        self.ff = FeedForward(video)
        self.audio_ff = FeedForward(audio)
        gates = (2, 5, 8) if self.modulated_text else (2, 5)
        self.scale_shift_table = _table(3 * len(gates), video, gates)
        self.audio_scale_shift_table = _table(3 * len(gates), audio, gates)
        self.scale_shift_table_a2v_ca_video = _table(5, video, (4,))
        self.scale_shift_table_a2v_ca_audio = _table(5, audio, (4,))
        if self.modulated_text:
            self.prompt_scale_shift_table = _table(2, video)
            self.audio_prompt_scale_shift_table = _table(2, audio)

    def forward(
        self,
        x_video: Tensor | None,
        x_audio: Tensor | None,
        video: _Stream | None,
        audio: _Stream | None,
        pass_value: Tensor | bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """States (B, T, D) of the streams at hand → their next states."""
        if x_video is not None and video is not None:
            prompt_table = self.prompt_scale_shift_table if self.modulated_text else None
            x_video = self._attend_self_and_text(
                x_video, video, self.attn1, self.attn2, self.scale_shift_table, prompt_table, pass_value
            )
        if x_audio is not None and audio is not None:
            prompt_table = self.audio_prompt_scale_shift_table if self.modulated_text else None
            x_audio = self._attend_self_and_text(
                x_audio,
                audio,
                self.audio_attn1,
                self.audio_attn2,
                self.audio_scale_shift_table,
                prompt_table,
                pass_value,
            )
        if (
            x_video is not None
            and x_audio is not None
            and video is not None
            and audio is not None
            and video.cross is not None
        ):
            assert audio.cross is not None
            x_video, x_audio = self._attend_across(x_video, x_audio, video.cross, audio.cross)
        if x_video is not None and video is not None:
            x_video = self._feed_forward(x_video, video, self.ff, self.scale_shift_table)
        if x_audio is not None and audio is not None:
            x_audio = self._feed_forward(x_audio, audio, self.audio_ff, self.audio_scale_shift_table)
        return x_video, x_audio

    def _attend_self_and_text(
        self,
        x: Tensor,
        stream: _Stream,
        self_attention: Attention,
        text_attention: Attention,
        table: Tensor,
        prompt_table: Tensor | None,
        pass_value: Tensor | bool,
    ) -> Tensor:
        row = _rows(table, stream.rows, stream.selection)
        normed = modulated_rms_norm(x, scale=row[1], shift=row[0], eps=self.eps)
        y = self_attention(normed, rope=stream.rope, mask=stream.mask, pass_value=pass_value)
        x = gated_residual(x, y, row[2])
        if prompt_table is None:
            return x + text_attention(rms_norm(x, self.eps), stream.context, mask=stream.context_mask)
        assert stream.prompt_rows is not None
        shift, scale = (one.table + one.row for one in _rows(prompt_table, stream.prompt_rows))
        context = torch.addcmul(shift, stream.context, 1 + scale)
        normed = modulated_rms_norm(x, scale=row[7], shift=row[6], eps=self.eps)
        return gated_residual(x, text_attention(normed, context, mask=stream.context_mask), row[8])

    def _attend_across(
        self, x_video: Tensor, x_audio: Tensor, video: _CrossModal, audio: _CrossModal
    ) -> tuple[Tensor, Tensor]:
        video_table, audio_table = self.scale_shift_table_a2v_ca_video, self.scale_shift_table_a2v_ca_audio
        video_row = _rows(video_table[:4], video.rows, video.selection)
        audio_row = _rows(audio_table[:4], audio.rows, audio.selection)
        video_a2v, video_v2a, audio_a2v, audio_v2a = (
            modulated_rms_norm(x, scale=row[at], shift=row[at + 1], eps=self.eps)
            for x, row in ((x_video, video_row), (x_audio, audio_row))
            for at in (0, 2)
        )
        to_video = self.audio_to_video_attn(video_a2v, audio_a2v, rope=video.rope, context_rope=audio.rope)
        to_audio = self.video_to_audio_attn(audio_v2a, video_v2a, rope=audio.rope, context_rope=video.rope)
        if video.keep is not None:
            to_video, to_audio = to_video * video.keep, to_audio * video.keep
        return (
            gated_residual(x_video, to_video, AdaRow(video_table[4], video.gate, video.gate_selection)),
            gated_residual(x_audio, to_audio, AdaRow(audio_table[4], audio.gate, audio.gate_selection)),
        )

    def _feed_forward(self, x: Tensor, stream: _Stream, ff: FeedForward, table: Tensor) -> Tensor:
        row = _rows(table, stream.rows, stream.selection)
        return gated_residual(x, ff(modulated_rms_norm(x, scale=row[4], shift=row[3], eps=self.eps)), row[5])


def _table(rows: int, dim: int, gates: Sequence[int] = ()) -> nn.Parameter:
    table = truncated_normal_(torch.empty(rows, dim), dim)
    for gate in gates:
        table[gate].zero_()
    return nn.Parameter(table)


def _rows(table: Tensor, rows: tuple[Tensor, ...], selection: Tensor | None = None) -> list[AdaRow]:
    return [AdaRow(*pair, selection) for pair in zip(table.unbind(0), rows, strict=True)]


class DualStreamTransformer(nn.Module):
    """LTX-2's denoiser: noisy video and audio tokens → their velocities."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.checkpoint_every = 0
        self._rope = RopeCache()
        rows = 9 if config.cross_attention_adaln else 6
        video, audio = config.width, config.audio_width
        self.patchify_proj = Linear(config.in_channels, video)
        self.audio_patchify_proj = Linear(config.audio_in_channels, audio)
        if config.caption_channels is not None:
            self.caption_projection = CaptionProjection(config.caption_channels, video)
            self.audio_caption_projection = CaptionProjection(config.caption_channels, audio)
        self.adaln_single = AdaLNSingle(video, rows)
        self.audio_adaln_single = AdaLNSingle(audio, rows)
        if config.cross_attention_adaln:
            self.prompt_adaln_single = AdaLNSingle(video, 2)
            self.audio_prompt_adaln_single = AdaLNSingle(audio, 2)
        self.av_ca_video_scale_shift_adaln_single = AdaLNSingle(video, 4)
        self.av_ca_audio_scale_shift_adaln_single = AdaLNSingle(audio, 4)
        self.av_ca_a2v_gate_adaln_single = AdaLNSingle(video, 1)
        self.av_ca_v2a_gate_adaln_single = AdaLNSingle(audio, 1)
        self.transformer_blocks = nn.ModuleList([DualStreamBlock(config) for _ in range(config.num_layers)])
        self.scale_shift_table = _table(2, video)
        self.audio_scale_shift_table = _table(2, audio)
        self.proj_out = Linear(video, config.out_channels, zero=True)
        self.audio_proj_out = Linear(audio, config.audio_out_channels, zero=True)

    def set_activation_checkpointing(self, every: int) -> None:
        """Recompute in backward: 0 no block, 1 every block, n every n-th block. Non-reentrant."""
        if every < 0:
            raise ValueError(f"checkpoint every {every} blocks: choose 0 (none), 1 (all) or n (every n-th)")
        self.checkpoint_every = every

    def set_attention(self, kernel: Callable[[str, str], Callable[..., Tensor]]) -> None:
        """Another kernel for the attention between the streams' own tokens; text attention keeps its own.

        Args:
            kernel: called with the streams ("video", "audio") of queries and of keys; gives what is called as
                `model.attention.attend`.
        """
        for block in cast(Iterable[DualStreamBlock], self.transformer_blocks):
            block.attn1.attend = kernel("video", "video")
            block.audio_attn1.attend = kernel("audio", "audio")
            block.audio_to_video_attn.attend = kernel("video", "audio")
            block.video_to_audio_attn.attend = kernel("audio", "video")

    def compile_blocks(self, **options: Any) -> None:
        """torch.compile each block's forward in place (one graph serves all); keys of the state dict stay.

        Hooks run outside of the graph: DeepSpeed's gather the block's parameters before it.
        """
        for block in self.transformer_blocks:
            cast(Any, block).forward = torch.compile(block.forward, **options)

    def forward(
        self,
        video: Modality | None,
        audio: Modality | None,
        skip_cross_modal: bool | Tensor = False,
        *,
        stg_blocks: Sequence[int] = (),
        stg_samples: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocities (B, T, out_channels) of the streams given; None for a stream that is None, the other runs alone.

        Args:
            skip_cross_modal: True skips both A↔V attentions, which makes each stream equal to its running alone; a bool
                (B,) skips them for single samples.
            stg_blocks: blocks whose self-attentions pass their values through (spatio-temporal guidance).
            stg_samples: bool (B,), the samples that this concerns; None for all.

        Raises:
            ValueError: no stream is given, sizes do not fit the configuration or each other, or (on CPU tensors, where
                looking is free) timesteps are NaN or outside [0, 1]. On a GPU call `Modality.validate` where it
                matters.
        """
        self._check(video, audio, skip_cross_modal, stg_blocks)
        cross = video is not None and audio is not None and skip_cross_modal is not True
        keep = None
        if cross and isinstance(skip_cross_modal, Tensor):
            keep = (~skip_cross_modal)[:, None, None].to(self.patchify_proj.weight.dtype)
        x_video = x_audio = video_stream = audio_stream = None
        if video is not None:
            x_video, video_stream = self.prepare(video, audio if cross else None, keep, "")
        if audio is not None:
            x_audio, audio_stream = self.prepare(audio, video if cross else None, keep, "audio_")
        stg = frozenset(stg_blocks)
        for index, block in enumerate(self.transformer_blocks):
            pass_value = index in stg and (True if stg_samples is None else stg_samples)
            arguments = (x_video, x_audio, video_stream, audio_stream, pass_value)
            if self.checkpoint_every and index % self.checkpoint_every == 0 and torch.is_grad_enabled():
                recomputed = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
                x_video, x_audio = cast(tuple[Tensor | None, Tensor | None], recomputed)
            else:
                x_video, x_audio = block(*arguments)
        return (
            self._output(x_video, video_stream, self.scale_shift_table, self.proj_out),
            self._output(x_audio, audio_stream, self.audio_scale_shift_table, self.audio_proj_out),
        )

    def prepare(
        self, modality: Modality, other: Modality | None, keep: Tensor | None, prefix: Literal["", "audio_"]
    ) -> tuple[Tensor, _Stream]:
        """State and conditions of one stream; `other` is None where no A↔V attention runs."""
        config = self.config
        if prefix:
            width, heads, max_pos = (
                config.audio_width,
                config.audio_num_attention_heads,
                config.audio_positional_embedding_max_pos,
            )
            scale_shift, gate = self.av_ca_audio_scale_shift_adaln_single, self.av_ca_v2a_gate_adaln_single
        else:
            width, heads, max_pos = config.width, config.num_attention_heads, config.positional_embedding_max_pos
            scale_shift, gate = self.av_ca_video_scale_shift_adaln_single, self.av_ca_a2v_gate_adaln_single
        patchify: Linear = getattr(self, f"{prefix}patchify_proj")
        dtype = patchify.weight.dtype
        timesteps, selection = distinct_timesteps(modality.timesteps, dtype)
        scaled = timesteps * config.timestep_scale_multiplier
        rows, embedded = getattr(self, f"{prefix}adaln_single")(scaled, dtype)
        prompt_rows = None
        if config.cross_attention_adaln:
            prompt_sigma = modality.sigma[:, None] * config.timestep_scale_multiplier
            prompt_rows, _ = getattr(self, f"{prefix}prompt_adaln_single")(prompt_sigma, dtype)
        context = modality.context.to(dtype)
        if config.caption_channels is not None:
            context = getattr(self, f"{prefix}caption_projection")(context)
        cross = None
        if other is not None:
            foreign = other.sigma[:, None]
            modulating, modulating_selection = (
                (foreign, None) if config.av_timestep == "other" else (timesteps, selection)
            )
            gating, gating_selection = (timesteps, selection) if config.av_timestep == "own" else (foreign, None)
            cross_rows, _ = scale_shift(modulating * config.timestep_scale_multiplier, dtype)
            (gate_row,), _ = gate(gating * config.av_ca_timestep_scale_multiplier, dtype)
            seconds = (max(config.positional_embedding_max_pos[0], config.audio_positional_embedding_max_pos[0]),)
            cross = _CrossModal(
                rows=cross_rows,
                selection=modulating_selection,
                gate=gate_row,
                gate_selection=gating_selection,
                rope=self._table(
                    modality.positions[:, :1], config.audio_width, config.audio_num_attention_heads, seconds
                ),
                keep=keep,
            )
        stream = _Stream(
            rows=rows,
            selection=selection,
            embedded=embedded,
            context=context,
            context_mask=None if modality.context_mask is None else modality.context_mask.bool()[:, None, None, :],
            prompt_rows=prompt_rows,
            rope=self._table(modality.positions, width, heads, max_pos),
            mask=_attention_bias(modality.attention_mask, dtype),
            cross=cross,
        )
        return patchify(modality.latent.to(dtype)), stream

    def _table(self, positions: Tensor, width: int, heads: int, max_pos: tuple[int, ...]) -> RopeTable:
        return self._rope.get(positions, width, heads, max_pos, self.config.positional_embedding_theta)

    def _output(self, x: Tensor | None, stream: _Stream | None, table: Tensor, proj_out: Linear) -> Tensor | None:
        if x is None or stream is None:
            return None
        shift, scale = table[0] + stream.embedded, 1 + table[1] + stream.embedded
        if stream.selection is not None:
            shift, scale = stream.selection @ shift, stream.selection @ scale
        normed = nn.functional.layer_norm(x, (x.shape[-1],), eps=self.config.norm_eps)
        return proj_out(torch.addcmul(shift, normed, scale))

    def _check(
        self, video: Modality | None, audio: Modality | None, skip: bool | Tensor, stg_blocks: Sequence[int]
    ) -> None:
        config = self.config
        if video is None and audio is None:
            raise ValueError("give the transformer a video modality, an audio modality, or both")
        contexts = (
            config.caption_channels or config.cross_attention_dim,
            config.caption_channels or config.audio_cross_attention_dim,
        )
        if video is not None:
            video.check_shapes("video", config.in_channels, 3, contexts[0])
        if audio is not None:
            audio.check_shapes("audio", config.audio_in_channels, 1, contexts[1])
        if video is not None and audio is not None and len(video.latent) != len(audio.latent):
            raise ValueError(f"batch of video is {len(video.latent)}, of audio {len(audio.latent)}; they must be equal")
        if isinstance(skip, Tensor) and skip.dtype != torch.bool:
            raise ValueError(f"skip_cross_modal is a {skip.dtype} tensor; give a bool or a bool tensor (batch,)")
        if any(not 0 <= index < config.num_layers for index in stg_blocks):
            raise ValueError(f"stg_blocks {list(stg_blocks)}: the model has blocks 0 to {config.num_layers - 1}")
        for name, modality in (("video", video), ("audio", audio)):
            if modality is not None and modality.timesteps.device.type == "cpu" and not torch.compiler.is_compiling():
                modality.validate(name)


def _attention_bias(strength: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Strengths in [0, 1], (B, T, T) → additive log-space bias (B, 1, T, T); a bool mask stays one."""
    if strength is None:
        return None
    if strength.dtype == torch.bool:
        return strength.unsqueeze(1)
    info = torch.finfo(dtype)
    bias = strength.float().clamp(min=info.tiny).log()
    return torch.where(strength > 0, bias, info.min).to(dtype).unsqueeze(1)
