"""Tiled and chunked VAE: equal to one pass outside of blends, no seams, memory independent of the length."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from benchmarks.vae_tiling import growth
from model.tiling import Tiling, _spans, tiled_decode, tiled_encode
from model.video_vae import ResBlock3d, VideoVAE, VideoVAEConfig

SMALL = VideoVAEConfig(
    latent_channels=8, encoder_layers=(1, 1, 1, 1, 1), decoder_base_channels=8, decoder_layers=(1, 1, 1, 1)
)
CONFIGS = {
    "2.0": SMALL,
    "2.3": replace(
        SMALL,
        **{k: getattr(VideoVAEConfig.ltx2_3(), k) for k in ("upsample", "upsample_residual", "decoder_padding")},
        decoder_layers=(1,) * 5,
    ),
}


def alive(config: VideoVAEConfig) -> VideoVAE:
    """Build a VAE with active residual blocks; as initialised they are the identity, which spreads no edge effect."""
    torch.manual_seed(0)
    vae = VideoVAE(config)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResBlock3d):
                weight = module.conv2.conv.weight
                weight.copy_(torch.randn_like(weight) * (2 / weight[0].numel()) ** 0.5)
        vae.decoder.conv_out.conv.weight.mul_(5)  # pixels of unit scale
        vae.set_statistics(torch.randn(config.latent_channels), torch.rand(config.latent_channels) + 0.5)
    return vae


@pytest.mark.parametrize("name", CONFIGS)
def test_time_alone_is_exact(name: str) -> None:
    vae = alive(CONFIGS[name])
    latent = torch.randn(2, 8, 5, 2, 3)
    pixels = torch.rand(2, 3, 33, 64, 96) * 2 - 1
    with torch.no_grad():
        decoded, encoded = vae.decode(latent), vae.encode(pixels)
    for chunk in (8, 24):
        tiling = Tiling(tile=96, overlap=32, chunk=chunk)
        torch.testing.assert_close(tiled_decode(vae, latent, tiling), decoded, atol=1e-5, rtol=0)
        torch.testing.assert_close(tiled_encode(vae, pixels, tiling), encoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_decode_equals_the_whole_away_from_the_blend_and_shows_no_seam(name: str) -> None:
    vae = alive(CONFIGS[name])
    size, tile, overlap = 24, 16, 5
    latent = torch.randn(1, 8, 2, 2, size)
    with torch.no_grad():
        whole = vae.decode(latent)
    tiled = tiled_decode(vae, latent, Tiling(tile * 32, overlap * 32, 8))
    # Tiles are [0, 16) and [8, 24); the weight moves between 12 − 2.5 and 12 + 2.5 latents.
    blend = slice(int(9.5 * 32), int(14.5 * 32))
    error = tiled - whole
    error[..., blend] = 0
    assert error.abs().max().item() <= 1e-3

    # A seam is a jump to the next column that one pass does not have. Compared with no overlap, there is almost none
    # where tiles and ramps end, and little within the ramp.
    def seams(decoded: torch.Tensor) -> torch.Tensor:
        return (decoded - whole).diff(dim=4).abs().amax(dim=(0, 1, 2, 3))

    borders = [32 * 8 - 1, 32 * 16 - 1, blend.start - 1, blend.stop - 1]
    with torch.no_grad():
        cut = torch.cat([vae.decode(part) for part in latent.split(12, dim=4)], dim=4)
    assert seams(cut)[32 * 12 - 1] > 0.5
    assert seams(tiled)[borders].max() < 0.01 * seams(cut)[32 * 12 - 1]
    assert seams(tiled).max() < 0.2 * seams(cut)[32 * 12 - 1]


def test_encode_equals_the_whole_away_from_the_blend() -> None:
    vae = alive(SMALL)
    pixels = torch.rand(1, 3, 9, 64, 768) * 2 - 1
    with torch.no_grad():
        whole = vae.encode(pixels)
    error = (tiled_encode(vae, pixels, Tiling(512, 128, 8)) - whole).abs()
    assert error[..., 10:14].max().item() < 0.1
    error[..., 10:14] = 0
    assert error.max().item() <= 1e-3


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [(10, 16, 4), (17, 16, 4), (29, 16, 4), (60, 16, 5), (34, 8, 2), (33, 4, 1), (33, 4, 0)],
)
@pytest.mark.parametrize("scale", [1, 32])
def test_weights_sum_to_one(size: int, tile: int, overlap: int, scale: int) -> None:
    spans = _spans(size, tile, overlap, scale)
    total = torch.zeros(size * scale)
    for span in spans:
        assert span.stop - span.start == min(size, tile)
        assert (span.weight >= 0).all()
        total[span.start * scale : span.stop * scale] += span.weight
    torch.testing.assert_close(total, torch.ones_like(total))
    assert all(a.stop - b.start >= overlap for a, b in itertools.pairwise(spans))


def test_memory_does_not_grow_with_the_length() -> None:
    vae = alive(replace(SMALL, encoder_layers=(0, 0, 0, 0, 1), decoder_layers=(0, 1, 0, 0)))
    tiling = Tiling(tile=64, overlap=0, chunk=8)
    rows = growth(vae, 64, 64, 6, tiling, whole=True, factors=(1, 2, 4))
    peaks = {(verb, way): [row[4] for row in rows if row[:2] == (verb, way)] for verb, way, *_ in rows}
    for verb in ("encode", "decode"):
        one, two, four = peaks[verb, "tiled"]
        assert max(one, two, four) <= 1.02 * min(one, two, four)
        one, _, four = peaks[verb, "whole"]
        assert four > 3 * one  # the measure detects memory that grows
        assert peaks[verb, "tiled"][2] < four / 4


def test_other_dtype_stays_where_it_is() -> None:
    vae = alive(SMALL)
    decoded = tiled_decode(vae, torch.randn(1, 8, 2, 2, 2).bfloat16(), Tiling(64, 0, 8))
    assert decoded.dtype == torch.bfloat16
    assert decoded.shape == (1, 3, 9, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 500}, "tile = 500 is not a multiple of 32 .* use 512"),
        ({"overlap": 20}, "overlap = 20 .* use 32"),
        ({"chunk": 12}, "chunk = 12 is not a multiple of 8 .* use 16"),
        ({"chunk": 0}, "use 8"),
        ({"tile": 128, "overlap": 64}, "more than a third of tile = 128; use at most 32"),
    ],
)
def test_bad_tilings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling(**options)


def test_bad_sizes_are_named() -> None:
    vae = alive(SMALL)
    with pytest.raises(ValueError, match="frames = 10 is not 1"):
        tiled_encode(vae, torch.zeros(1, 3, 10, 64, 64))
    with pytest.raises(ValueError, match="latent height = 1"):
        tiled_decode(vae, torch.zeros(1, 8, 2, 1, 2))
