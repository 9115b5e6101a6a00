"""The dual-stream diffusion transformer of LTX-2.

It has a wide video stream and a narrow audio stream, joined in every block by attention in both directions. Source:
LTX-2 (arXiv 2601.03233 §3).

Shapes: B batch, T tokens of a stream, S text tokens, D width of a stream (video 4096, audio 2048 in `ltx2-19b`);
suffixes b, t, s, d. States x_video and x_audio are (B, T, D).

A block: self-attention (RoPE over the stream's positions) → text cross-attention → A↔V attention (RoPE over time only;
both directions read the states from before this attention) → feed-forward. The rows of the AdaLN tables have the
published order, which differs between tables: shift, scale, gate for self-attention and feed-forward; scale before
shift for A↔V attention. That order is that of the published weights; it has no meaning of its own.

What is the same for all blocks (rotary tables, AdaLN rows, projected captions, masks) is computed once per forward and
stored in `_Stream`.

Initialisation: adaLN-Zero (Peebles & Xie 2023, arXiv 2212.09748 §3.2). The shared AdaLN layers, the gate rows of every
table, the output projection of the text attention in 2.0, which has no gate, and the final projections start at zero.
So every block starts as the identity and the first prediction is 0. The other tables and linear weights are truncated
normal (see `model.layers`).

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
    """Sizes and variants of the transformer; the defaults are LTX-2 19B (2.0).

    Field names are those of the published configuration.

    2.3 differs by `apply_gated_attention=True`, `cross_attention_adaln=True` and `caption_channels=None`.

    Attributes:
        num_layers: number of blocks.
        num_attention_heads: of the video stream; its width is this times `attention_head_dim`.
        attention_head_dim: of the video stream.
        in_channels: channels of a video token.
        out_channels: channels of a predicted video velocity.
        cross_attention_dim: width of the text context that the video stream attends to.
        audio_num_attention_heads: of the audio stream and of A↔V attention.
        audio_attention_head_dim: of the audio stream and of A↔V attention.
        audio_in_channels: channels of an audio token.
        audio_out_channels: channels of a predicted audio velocity.
        audio_cross_attention_dim: width of the text context that the audio stream attends to.
        caption_channels: width of the text features, which the model projects to both widths above (2.0); None when
            the features have these widths already (2.3).
        apply_gated_attention: per-head output gates in every attention.
        cross_attention_adaln: modulate text cross-attention by timestep (queries, gate) and by σ (keys and values).
        norm_eps: ε of every norm.
        positional_embedding_theta: θ of RoPE.
        positional_embedding_max_pos: `max_pos` of `rope_table` for the video: seconds, pixels, pixels.
        audio_positional_embedding_max_pos: the same for the audio: seconds.
        timestep_scale_multiplier: factor on σ before the AdaLN layers embed it.
        av_ca_timestep_scale_multiplier: the same factor for the gates of A↔V attention.
        av_timestep: what conditions A↔V attention. "gate_other" (the authors' intention: ltx-core main since 2026-05;
            a Lightricks engineer confirmed it in LTX-2 issue 60): scale and shift from the timesteps of the stream
            itself, gate from σ of the other stream. "own": all from the timesteps of the stream itself (diffusers'
            default). "other": all from σ of the other stream (ltx-core 1.0.0).
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
                raise ValueError(f"{name} {width} must be even, because RoPE rotates halves")
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
        """Width of the video stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def audio_width(self) -> int:
        """Width of the audio stream."""
        return self.audio_num_attention_heads * self.audio_attention_head_dim


@dataclass(frozen=True)
class _CrossModal:
    """Conditions of one stream for A↔V attention. `selection` and `gate_selection` are as in `AdaRow`."""

    rows: tuple[Tensor, ...]  # timestep rows: scale and shift for audio → video, scale and shift for video → audio
    selection: Tensor | None
    gate: Tensor  # timestep row of the gate on what this stream receives
    gate_selection: Tensor | None
    rope: RopeTable  # over time only
    keep: Tensor | None  # (B, 1, 1), 0 where a sample skips A↔V attention


@dataclass(frozen=True)
class _Stream:
    """Conditions of one stream that are the same for all blocks; computed once per forward."""

    rows: tuple[Tensor, ...]  # 6 or 9 timestep rows; with `selection` as in `AdaRow`
    selection: Tensor | None
    embedded: Tensor  # embedded timesteps, for the final modulation
    context: Tensor  # (B, S, ·)
    context_mask: Tensor | None  # bool (B, 1, 1, S)
    prompt_rows: tuple[Tensor, ...] | None  # shift, scale (B, 1, D) of the context
    rope: RopeTable
    mask: Tensor | None  # (B, 1, T, T)
    cross: _CrossModal | None


class DualStreamBlock(nn.Module):
    """One block of both streams. The module docstring gives the order of its layers and of its table rows."""

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
        """Run the block.

        Args:
            x_video: (B, T, D), state of the video stream; None where it does not run.
            x_audio: (B, T, D), state of the audio stream; None where it does not run.
            video: conditions of the video stream.
            audio: conditions of the audio stream.
            pass_value: see `Attention.forward`; applies to self-attention only.

        Returns:
            The next states of the two streams; None for a stream that does not run.
        """
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
        x_btd: Tensor,
        stream: _Stream,
        self_attention: Attention,
        text_attention: Attention,
        table: Tensor,
        prompt_table: Tensor | None,
        pass_value: Tensor | bool,
    ) -> Tensor:
        """Run self-attention, then text cross-attention, of one stream; return its next state (B, T, D)."""
        row = _rows(table, stream.rows, stream.selection)
        normed_btd = modulated_rms_norm(x_btd, scale=row[1], shift=row[0], eps=self.eps)
        y_btd = self_attention(normed_btd, rope=stream.rope, mask=stream.mask, pass_value=pass_value)
        x_btd = gated_residual(x_btd, y_btd, row[2])
        if prompt_table is None:  # 2.0
            return x_btd + text_attention(rms_norm(x_btd, self.eps), stream.context, mask=stream.context_mask)
        assert stream.prompt_rows is not None
        shift, scale = (one.table + one.row for one in _rows(prompt_table, stream.prompt_rows))
        context_bsd = torch.addcmul(shift, stream.context, 1 + scale)
        normed_btd = modulated_rms_norm(x_btd, scale=row[7], shift=row[6], eps=self.eps)
        return gated_residual(x_btd, text_attention(normed_btd, context_bsd, mask=stream.context_mask), row[8])

    def _attend_across(
        self, x_video: Tensor, x_audio: Tensor, video: _CrossModal, audio: _CrossModal
    ) -> tuple[Tensor, Tensor]:
        """Run A↔V attention in both directions; return the next states of video and audio."""
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

    def _feed_forward(self, x_btd: Tensor, stream: _Stream, ff: FeedForward, table: Tensor) -> Tensor:
        """Run the modulated feed-forward layer of one stream; return its next state (B, T, D)."""
        row = _rows(table, stream.rows, stream.selection)
        y_btd = ff(modulated_rms_norm(x_btd, scale=row[4], shift=row[3], eps=self.eps))
        return gated_residual(x_btd, y_btd, row[5])


def _table(rows: int, dim: int, gates: Sequence[int] = ()) -> nn.Parameter:
    """Return a trainable AdaLN table (rows, dim): zero in the rows `gates`, truncated normal in the others."""
    table = truncated_normal_(torch.empty(rows, dim), dim)
    for gate in gates:
        table[gate].zero_()
    return nn.Parameter(table)


def _rows(table: Tensor, rows: tuple[Tensor, ...], selection: Tensor | None = None) -> list[AdaRow]:
    """Return one `AdaRow` per row of `table`, (rows, D): table row, timestep row (from `rows`) and `selection`."""
    return [AdaRow(*pair, selection) for pair in zip(table.unbind(0), rows, strict=True)]


class DualStreamTransformer(nn.Module):
    """LTX-2's denoiser: predicts the velocities of noisy video and audio tokens (see `model.flow`)."""

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
        """Choose the blocks that recompute their activations in the backward pass, to save memory (non-reentrant).

        Args:
            every: 0 for no block, 1 for every block, n for every n-th block.

        Raises:
            ValueError: `every` is negative.
        """
        if every < 0:
            raise ValueError(f"checkpoint every {every} blocks: choose 0 (none), 1 (all) or n (every n-th)")
        self.checkpoint_every = every

    def set_attention(self, kernel: Callable[[str, str], Callable[..., Tensor]]) -> None:
        """Replace the kernel of self-attention and of A↔V attention; text attention keeps the default.

        Args:
            kernel: called with the stream of the queries and that of the keys ("video" or "audio"); returns a function
                with the signature of `model.attention.attend`.
        """
        for block in cast(Iterable[DualStreamBlock], self.transformer_blocks):
            block.attn1.attend = kernel("video", "video")
            block.audio_attn1.attend = kernel("audio", "audio")
            block.audio_to_video_attn.attend = kernel("video", "audio")
            block.video_to_audio_attn.attend = kernel("audio", "video")

    def compile_blocks(self, **options: Any) -> None:
        """Compile each block's forward in place. All blocks share one graph; the keys of the state dict do not change.

        Module hooks stay outside the graph, so DeepSpeed's hooks still gather a block's parameters before it runs.

        Args:
            options: of `torch.compile`.
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
        """Predict the velocities of one stream or of both.

        Args:
            video: tokens and conditions of the video; None to run the audio alone.
            audio: tokens and conditions of the audio; None to run the video alone.
            skip_cross_modal: True skips A↔V attention in both directions, so that each stream runs as if alone; a bool
                tensor (B,) skips it for single samples.
            stg_blocks: indices of the blocks whose self-attention returns its values instead of the attended ones
                (spatio-temporal guidance).
            stg_samples: bool (B,), the samples to which `stg_blocks` applies; None for all.

        Returns:
            Velocities (B, T, out_channels) of video and audio, None for a stream that is None.

        Raises:
            ValueError: no stream is given, sizes do not fit the configuration or each other, or, for CPU tensors only,
                timesteps are NaN or outside [0, 1]. On a GPU, call `Modality.validate` where this matters; it waits
                for the device.
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
        """Compute the first state of one stream, and its conditions for all blocks.

        Args:
            modality: tokens and conditions of the stream.
            other: tokens and conditions of the other stream; None where no A↔V attention runs.
            keep: (B, 1, 1), 0 where a sample skips A↔V attention; None for no such sample.
            prefix: "" for the video, "audio_" for the audio.

        Returns:
            State (B, T, D) and conditions.
        """
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
            from_self, from_other = (timesteps, selection), (other.sigma[:, None], None)
            cross_timesteps, cross_selection = from_other if config.av_timestep == "other" else from_self
            gate_timesteps, gate_selection = from_self if config.av_timestep == "own" else from_other
            cross_rows, _ = scale_shift(cross_timesteps * config.timestep_scale_multiplier, dtype)
            (gate_row,), _ = gate(gate_timesteps * config.av_ca_timestep_scale_multiplier, dtype)
            seconds = (max(config.positional_embedding_max_pos[0], config.audio_positional_embedding_max_pos[0]),)
            cross = _CrossModal(
                rows=cross_rows,
                selection=cross_selection,
                gate=gate_row,
                gate_selection=gate_selection,
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
        """Return the rotary table of `positions` (see `RopeCache.get`)."""
        return self._rope.get(positions, width, heads, max_pos, self.config.positional_embedding_theta)

    def _output(self, x_btd: Tensor | None, stream: _Stream | None, table: Tensor, proj_out: Linear) -> Tensor | None:
        """Apply the last modulation and projection to a state (B, T, D).

        Return the velocity (B, T, out_channels), or None for a stream that does not run.
        """
        if x_btd is None or stream is None:
            return None
        shift, scale = table[0] + stream.embedded, 1 + table[1] + stream.embedded
        if stream.selection is not None:
            shift, scale = stream.selection @ shift, stream.selection @ scale
        # LayerNorm, not RMS norm, as published: the last norm also subtracts the mean.
        normed_btd = nn.functional.layer_norm(x_btd, (x_btd.shape[-1],), eps=self.config.norm_eps)
        return proj_out(torch.addcmul(shift, normed_btd, scale))

    def _check(
        self, video: Modality | None, audio: Modality | None, skip: bool | Tensor, stg_blocks: Sequence[int]
    ) -> None:
        """Raise ValueError where the arguments of `forward` do not fit the configuration or each other."""
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
    """Convert the `attention_mask` of a `Modality`, (B, T, T), to the mask (B, 1, T, T) of `attend`.

    A bool mask keeps its values. A strength in [0, 1] becomes a bias on the logits, its logarithm; 0 becomes the lowest
    number of `dtype`.
    """
    if strength is None:
        return None
    if strength.dtype == torch.bool:
        return strength.unsqueeze(1)
    info = torch.finfo(dtype)
    bias = strength.float().clamp(min=info.tiny).log()
    return torch.where(strength > 0, bias, info.min).to(dtype).unsqueeze(1)
