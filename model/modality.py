"""The input of one stream to the transformer, and the conversion between latents and tokens.

Source: LTX-2 (arXiv 2601.03233 §3).

Shapes: B batch, C latent channels, f/h/w latent frames/height/width, t audio latent frames, T tokens, S text tokens,
D context width, n position axes (video 3: time, height, width; audio 1: time), M mel bins of an audio latent.

A video latent covers 8×32×32 pixels, but the first in time covers one frame (causal VAE). An audio latent covers 4 mel
frames of 10 ms, but the first covers one mel frame. Positions are intervals [start, end): time in seconds for both
streams, so that they share one clock; height and width in pixels.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

VIDEO_STRIDES = (8, 32, 32)  # pixels per latent: time, height, width
MEL_FRAMES_PER_LATENT = 4
MEL_FRAME_S = (160, 16_000)  # hop and sample rate, whose quotient is 10 ms


@dataclass(frozen=True)
class Modality:
    """The noisy tokens of one stream and their conditions.

    Attributes:
        latent: (B, T, C) noisy latent tokens.
        timesteps: (B, T) σ of each token in [0, 1], 0 for a clean (given) token; (B, 1) where all tokens of a sample
            have the same σ.
        sigma: (B,) σ of the sample, which conditions the other stream and the modulation of the prompt.
        positions: (B, n, T, 2) float32, [start, end) in seconds, pixels, pixels (see `video_positions`).
        context: (B, S, D) text context.
        context_mask: (B, S), nonzero where a text token may be attended; None for all.
        attention_mask: (B, T, T) strength of self-attention in [0, 1]; None for all 1.
    """

    latent: Tensor
    timesteps: Tensor
    sigma: Tensor
    positions: Tensor
    context: Tensor
    context_mask: Tensor | None = None
    attention_mask: Tensor | None = None

    def check_shapes(self, name: str, channels: int, axes: int, context_width: int) -> None:
        """Check every shape against the model. Reads no values, so it does not wait for a device.

        Args:
            name: of the stream, for messages.
            channels: C.
            axes: n.
            context_width: D.

        Raises:
            ValueError: a shape does not fit; names the stream, the tensor and the shape that fits.
        """
        if self.latent.ndim != 3 or self.latent.shape[2] != channels:
            raise ValueError(f"{name}.latent is {_shape(self.latent)}; expected (batch, tokens, {channels})")
        batch, tokens, _ = self.latent.shape
        if tuple(self.timesteps.shape) not in ((batch, tokens), (batch, 1)):
            raise ValueError(
                f"{name}.timesteps is {_shape(self.timesteps)}; expected ({batch}, {tokens}) or ({batch}, 1)"
            )
        expected = {
            "sigma": (self.sigma, (batch,)),
            "positions": (self.positions, (batch, axes, tokens, 2)),
            "context": (self.context, (batch, self.context.shape[1] if self.context.ndim > 1 else 0, context_width)),
        }
        if self.context_mask is not None and self.context.ndim == 3:
            expected["context_mask"] = (self.context_mask, (batch, self.context.shape[1]))
        if self.attention_mask is not None:
            expected["attention_mask"] = (self.attention_mask, (batch, tokens, tokens))
        for field, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name}.{field} is {_shape(tensor)}; expected {shape}")
        if self.positions.dtype != torch.float32:
            raise ValueError(f"{name}.positions is {self.positions.dtype}; keep positions in torch.float32")

    def validate(self, name: str) -> None:
        """Check the values of `timesteps`, `sigma` and `positions`; those of latent, context and masks are not checked.

        On a GPU this waits for the device, so `DualStreamTransformer.forward` calls it for CPU tensors only.

        Args:
            name: of the stream, for messages.

        Raises:
            ValueError: a timestep or σ is NaN or outside [0, 1], or an interval is NaN or ends before it starts.
        """
        for field, tensor in (("timesteps", self.timesteps), ("sigma", self.sigma)):
            if not bool(((tensor >= 0) & (tensor <= 1)).all()):
                found = "NaN" if bool(tensor.isnan().any()) else f"[{tensor.min().item():g}, {tensor.max().item():g}]"
                raise ValueError(f"{name}.{field} must be σ in [0, 1], not scaled by 1000; found {found}")
        if not bool((self.positions[..., 1] >= self.positions[..., 0]).all()):
            raise ValueError(f"{name}.positions must be intervals [start, end) with end ≥ start and no NaN")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape as a plain tuple, which reads better in messages than torch.Size."""
    return tuple(tensor.shape)


def patchify_video(latent_bcfhw: Tensor) -> Tensor:
    """Video latent (B, C, f, h, w) → tokens (B, f·h·w, C); patch size 1."""
    return latent_bcfhw.flatten(2).transpose(1, 2)


def unpatchify_video(tokens: Tensor, f: int, h: int, w: int) -> Tensor:
    """Tokens (B, f·h·w, C) → video latent (B, C, f, h, w); raises ValueError for another number of tokens."""
    if tokens.shape[1] != f * h * w:
        raise ValueError(f"{tokens.shape[1]} video tokens do not fill {f}×{h}×{w} = {f * h * w} latents")
    return tokens.transpose(1, 2).unflatten(2, (f, h, w))


def patchify_audio(latent_bctm: Tensor) -> Tensor:
    """Audio latent (B, C, t, M) → tokens (B, t, C·M), channel-major."""
    return latent_bctm.transpose(1, 2).flatten(2)


def unpatchify_audio(tokens: Tensor, channels: int, mel_bins: int) -> Tensor:
    """Tokens (B, t, C·M) → audio latent (B, C, t, M); raises ValueError for another width."""
    if tokens.shape[2] != channels * mel_bins:
        raise ValueError(f"audio token width {tokens.shape[2]} is not {channels} channels × {mel_bins} mel bins")
    return tokens.unflatten(2, (channels, mel_bins)).transpose(1, 2)


def video_positions(
    f: int, h: int, w: int, fps: float, *, batch: int = 1, device: torch.device | str | None = None
) -> Tensor:
    """Return the positions of video tokens.

    The first latent frame covers one pixel frame, each later one covers 8: latent frame i starts at
    max(0, 8i − 7) / fps seconds. The batch is an expanded view of one cached tensor, so that `RopeCache` recognises it.

    Args:
        f: latent frames.
        h: latent height.
        w: latent width.
        fps: pixel frames per second.
        batch: B.
        device: None for the CPU.

    Returns:
        (B, 3, f·h·w, 2) float32, [start, end) in seconds, pixels, pixels.

    Raises:
        ValueError: a size is below 1 or `fps` is not positive.
    """
    if min(f, h, w, batch) < 1 or not fps > 0:
        raise ValueError(f"video positions need f, h, w, batch ≥ 1 and fps > 0; got {f}, {h}, {w}, {batch} and {fps}")
    return _video_positions(f, h, w, float(fps), str(torch.device(device or "cpu"))).expand(batch, -1, -1, -1)


def audio_positions(t: int, *, batch: int = 1, device: torch.device | str | None = None) -> Tensor:
    """Return the positions of audio tokens. Token i starts at mel frame max(0, 4i − 3), of 10 ms each.

    Args:
        t: audio latent frames.
        batch: B; the batch is an expanded view, as in `video_positions`.
        device: None for the CPU.

    Returns:
        (B, 1, t, 2) float32, [start, end) in seconds.

    Raises:
        ValueError: a size is below 1.
    """
    if min(t, batch) < 1:
        raise ValueError(f"audio positions need t, batch ≥ 1; got {t}, {batch}")
    return _audio_positions(t, str(torch.device(device or "cpu"))).expand(batch, -1, -1, -1)


def _bounds(count: int, stride: int, *, causal: bool) -> Tensor:
    """Return the intervals [start, end) of `count` latents along one axis, (count, 2) float32.

    Each latent covers `stride` units; with `causal` the first one covers a single unit.
    """
    edges = torch.arange(count + 1, dtype=torch.float32) * stride
    if causal:
        edges = (edges + 1 - stride).clamp(min=0)
    return torch.stack([edges[:-1], edges[1:]], dim=-1)


# One shape per bucket is in use at a time, and a table takes 24 B per token.
@lru_cache(maxsize=64)
def _video_positions(f: int, h: int, w: int, fps: float, device: str) -> Tensor:
    """Compute `video_positions` of one sample, (1, 3, f·h·w, 2); cached."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        time = _bounds(f, VIDEO_STRIDES[0], causal=True) / fps
        height = _bounds(h, VIDEO_STRIDES[1], causal=False)
        width = _bounds(w, VIDEO_STRIDES[2], causal=False)
        grid = torch.stack(
            [
                time[:, None, None].expand(f, h, w, 2),
                height[None, :, None].expand(f, h, w, 2),
                width[None, None, :].expand(f, h, w, 2),
            ]
        )
        return grid.reshape(1, 3, f * h * w, 2).to(device)


@lru_cache(maxsize=64)
def _audio_positions(t: int, device: str) -> Tensor:
    """Compute `audio_positions` of one sample, (1, 1, t, 2); cached."""
    with torch.inference_mode(False):
        hop, rate = MEL_FRAME_S
        return (_bounds(t, MEL_FRAMES_PER_LATENT, causal=True) * hop / rate).reshape(1, 1, t, 2).to(device)
