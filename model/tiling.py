"""The video VAE over clips that are too long or too large for one pass: exact in time, blended in space.

Time is exact. The clip runs in chunks, and each convolution keeps the two frames that it needs of the previous chunk
(`model.video_vae.TimeStream`); the centred convolutions of the decoder delay their output by one frame. So the result
is that of one pass, and the kept frames do not grow with the length of the clip.

Space is blended. Tiles overlap; the edge of a tile is padded instead of seeing its neighbour, an error that fades with
the distance from the edge. Across the middle of each overlap the weight moves linearly from one tile to the next. The
weights of all tiles sum to 1 everywhere.

Memory beyond the clip and the latent: activations and kept frames of one chunk of one tile.

Shapes (suffixes of the tensors below): b batch, c channels, f frames, h height, w width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.video_vae import SPACE_STRIDE, TIME_STRIDE, TimeStream, VideoVAE, check_pixel_size, pixel_size


@dataclass(frozen=True)
class Tiling:
    """Sizes of tiles and chunks. The defaults decode 1080p in the memory of 32 frames of 512 × 512.

    Attributes:
        tile: side of a tile in pixels, a multiple of 32.
        overlap: of neighbouring tiles in pixels, a multiple of 32, at most a third of `tile`.
        chunk: pixel frames that run at once, a multiple of 8.
    """

    tile: int = 512
    overlap: int = 128
    chunk: int = 32

    def __post_init__(self) -> None:
        for name, value, stride, least in (
            ("tile", self.tile, SPACE_STRIDE, 2 * SPACE_STRIDE),
            ("overlap", self.overlap, SPACE_STRIDE, 0),
            ("chunk", self.chunk, TIME_STRIDE, TIME_STRIDE),
        ):
            if value < least or value % stride:
                nearest = max(least, stride * round(value / stride))
                raise ValueError(f"{name} = {value} is not a multiple of {stride} of at least {least}; use {nearest}")
        if self.tile < 3 * self.overlap:
            raise ValueError(
                f"overlap = {self.overlap} is more than a third of tile = {self.tile}; "
                f"use at most {self.tile // 3 // SPACE_STRIDE * SPACE_STRIDE}"
            )


@dataclass(frozen=True)
class _Span:
    """Place of a tile along height or width, and its blending weight there.

    Attributes:
        start: first latent.
        stop: last latent + 1.
        weight: (n,), weight at each latent or, for decoding, at each pixel of the tile.
    """

    start: int
    stop: int
    weight: Tensor


def _spans(size: int, tile: int, overlap: int, scale: int) -> list[_Span]:
    """Place tiles of equal length evenly along one side, and compute their blending weights.

    Neighbours overlap by at least `overlap` latents. In the middle of their overlap, over a length of `overlap`
    latents, the weight moves linearly from one to the other.

    Args:
        size: length of the side in latents.
        tile: length of a tile in latents.
        overlap: in latents.
        scale: number of weights per latent: 1 to encode, 32 (one per pixel) to decode.
    """
    if size <= tile:
        return [_Span(0, size, torch.ones(size * scale))]
    count = -(-(size - overlap) // (tile - overlap))
    starts = [round(i * (size - tile) / (count - 1)) for i in range(count)]
    position = (torch.arange(size * scale) + 0.5) / scale
    # Rising ramps, one per border. The weight of tile i is the ramp before it minus the ramp after it.
    ramps = [torch.ones_like(position)]
    for left, right in itertools.pairwise(starts):
        middle = (right + left + tile) / 2
        if overlap:
            ramps.append(((position - middle) / overlap + 0.5).clamp(0, 1))
        else:
            ramps.append((position > round(middle)).float())
    ramps.append(torch.zeros_like(position))
    weights = [ramps[i] - ramps[i + 1] for i in range(count)]
    return [
        _Span(start, start + tile, weight[start * scale : (start + tile) * scale])
        for start, weight in zip(starts, weights, strict=True)
    ]


def _tiles(height: int, width: int, tiling: Tiling, scale: int) -> Iterator[tuple[_Span, _Span, Tensor]]:
    """Yield rows, columns and blending weights (2-D, rows × columns) of each tile of a latent.

    Args:
        height: of the latent.
        width: of the latent.
        tiling: sizes in pixels.
        scale: see `_spans`.
    """
    tile, overlap = tiling.tile // SPACE_STRIDE, tiling.overlap // SPACE_STRIDE
    for rows in _spans(height, tile, overlap, scale):
        for columns in _spans(width, tile, overlap, scale):
            yield rows, columns, torch.outer(rows.weight, columns.weight)


@torch.no_grad()
def tiled_decode(vae: VideoVAE, latent: Tensor, tiling: Tiling | None = None) -> Tensor:
    """Decode a normalised latent as `vae.decode` does, in tiles and chunks.

    The latent may be on another device than the VAE, to which only chunks are copied.

    Args:
        vae: the video VAE.
        latent: (b, c, f, h, w), normalised.
        tiling: None for the defaults.

    Returns:
        Pixels (b, 3, F, H, W), about in [−1, 1], on the device and in the type of the latent.

    Raises:
        ValueError: the VAE cannot take the latent.
    """
    tiling = tiling or Tiling()
    vae.check_latent(latent)
    weight = vae.decoder.conv_in.conv.weight
    b, _, f, h, w = latent.shape
    frames, height, width = pixel_size(f, h, w)
    pixels = latent.new_zeros(b, 3, frames, height, width)
    for rows, columns, blend_hw in _tiles(h, w, tiling, SPACE_STRIDE):
        blend_hw = blend_hw.to(weight.device)  # float32: in half precision the weights would not sum to 1
        target = pixels[..., _pixels(rows), _pixels(columns)]
        source = latent[..., rows.start : rows.stop, columns.start : columns.stop]
        stream, done, read, step = TimeStream(), 0, 0, tiling.chunk // TIME_STRIDE
        while done < frames:
            if read == f:  # the clip has ended: release the last frame of `step` layers in each pass
                stream.release(step)
            chunk = source[:, :, read : read + step].to(weight)
            read += chunk.shape[2]
            part = vae.decoder(vae.denormalize(chunk), stream) * blend_hw
            target[:, :, done : done + part.shape[2]] += part.to(pixels)
            done += part.shape[2]
        assert done == frames
    return pixels


@torch.no_grad()
def tiled_encode(vae: VideoVAE, pixels: Tensor, tiling: Tiling | None = None) -> Tensor:
    """Encode pixels as `vae.encode` does, in tiles and chunks.

    The pixels may be on another device than the VAE, to which only chunks are copied.

    Args:
        vae: the video VAE.
        pixels: (b, 3, F, H, W) in [−1, 1].
        tiling: None for the defaults.

    Returns:
        Normalised latent (b, c, f, h, w), on the device and in the type of the pixels.

    Raises:
        ValueError: F is not 1 + 8k, or 32 does not divide H or W.
    """
    tiling = tiling or Tiling()
    if pixels.dim() != 5 or pixels.shape[1] != 3:
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; expected (batch, 3, frames, height, width)")
    b, _, frames, height, width = pixels.shape
    check_pixel_size(frames, height, width)
    weight = vae.encoder.conv_in.conv.weight
    channels = vae.config.latent_channels
    h, w = height // SPACE_STRIDE, width // SPACE_STRIDE
    latent = pixels.new_zeros(b, channels, 1 + (frames - 1) // TIME_STRIDE, h, w)
    # The first latent holds one frame: a first chunk that is 7 frames shorter aligns all others with latents.
    bounds = [0, *range(min(frames, tiling.chunk - TIME_STRIDE + 1), frames, tiling.chunk), frames]
    for rows, columns, blend_hw in _tiles(h, w, tiling, 1):
        blend_hw = blend_hw.to(weight.device)  # float32: in half precision the weights would not sum to 1
        source = pixels[..., _pixels(rows), _pixels(columns)]
        target = latent[..., rows.start : rows.stop, columns.start : columns.stop]
        stream, done = TimeStream(), 0
        for start, stop in itertools.pairwise(bounds):
            if start == stop:
                continue
            mean = vae.encoder(source[:, :, start:stop].to(weight), stream)[:, :channels]
            part = vae.normalize(mean) * blend_hw
            target[:, :, done : done + part.shape[2]] += part.to(latent)
            done += part.shape[2]
        assert done == latent.shape[2]
    return latent


def _pixels(span: _Span) -> slice:
    """Convert the place of a tile from latents to pixels."""
    return slice(span.start * SPACE_STRIDE, span.stop * SPACE_STRIDE)
