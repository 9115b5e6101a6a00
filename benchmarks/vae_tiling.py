"""Measure whether the memory of the tiled VAE stays constant for longer clips, and the time that tiling costs.

`python -m benchmarks.vae_tiling [--device cuda] [--preset ltx2-19b] [--size 1088x1920] [--latents 4]`

The benchmark encodes and decodes clips of 1×, 2× and 4× the length, untiled and tiled. It prints the time and the peak
memory beyond weights, input and output. On CUDA the memory is the allocator's; on the CPU it is the size of the live
tensors, without temporary memory inside a kernel.
"""

from __future__ import annotations

import argparse
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.presets import preset
from model.tiling import Tiling, tiled_decode, tiled_encode
from model.video_vae import VideoVAE, pixel_size


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors made inside the `with` block: those alive now (`now`) and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Views and in-place operations return the storage of an input; only other storages are new.
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage.data_ptr() in inputs or storage in self._known:
                continue
            self._known.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._drop, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _drop(self, size: int) -> None:
        self.now -= size


def measure(run: Callable[[], Tensor], device: torch.device) -> tuple[float, int]:
    """Run and measure: (seconds, peak bytes beyond the memory before the run and the result)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        start = time.perf_counter()
        result = run()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        return seconds, torch.cuda.max_memory_allocated(device) - before - result.untyped_storage().nbytes()
    start = time.perf_counter()
    with LiveTensors() as live:
        result = run()
    return time.perf_counter() - start, live.peak - result.untyped_storage().nbytes()


def growth(
    vae: VideoVAE, height: int, width: int, latents: int, tiling: Tiling, *, whole: bool, factors: tuple[int, ...]
) -> list[tuple[str, str, int, float, int]]:
    """Measure clips of `factors` × `latents` latent frames.

    Args:
        vae: the video VAE.
        height: of the clips, pixels.
        width: of the clips, pixels.
        latents: latent frames of the shortest clip.
        tiling: the tiles.
        whole: whether to measure untiled runs too.
        factors: the lengths, as multiples of `latents`.

    Returns:
        Rows of (verb, way, frames, seconds, peak bytes).
    """
    weight = vae.encoder.conv_in.conv.weight
    h, w = height // 32, width // 32
    rows: list[tuple[str, str, int, float, int]] = []
    for factor in factors:
        frames, _, _ = pixel_size(latents * factor, h, w)
        pixels = torch.rand(1, 3, frames, height, width, device=weight.device, dtype=weight.dtype) * 2 - 1
        latent = torch.randn(1, vae.config.latent_channels, latents * factor, h, w).to(weight)
        ways: dict[tuple[str, str], Callable[[], Tensor]] = {
            ("encode", "tiled"): lambda pixels=pixels: tiled_encode(vae, pixels, tiling),
            ("decode", "tiled"): lambda latent=latent: tiled_decode(vae, latent, tiling),
        }
        if whole:
            ways["encode", "whole"] = lambda pixels=pixels: vae.encode(pixels)
            ways["decode", "whole"] = lambda latent=latent: vae.decode(latent)
        for (verb, way), run in ways.items():
            with torch.no_grad():
                rows.append((verb, way, frames, *measure(run, weight.device)))
    return sorted(rows)


def main() -> None:
    """Parse the arguments, measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--preset", default="tiny", help="preset of the video VAE (default tiny)")
    parser.add_argument("--size", default="192x256", help="height x width in pixels (default 192x256)")
    parser.add_argument("--latents", type=int, default=4, help="latent frames of the shortest clip (default 4)")
    parser.add_argument("--tile", type=int, default=128, help="pixels (default 128)")
    parser.add_argument("--overlap", type=int, default=32, help="pixels (default 32)")
    parser.add_argument("--chunk", type=int, default=16, help="frames (default 16)")
    parser.add_argument("--no-whole", action="store_true", help="leave out the untiled runs")
    options = parser.parse_args()

    height, width = map(int, options.size.split("x"))
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae = VideoVAE(preset(options.preset).video_vae).to(device, dtype)
    tiling = Tiling(options.tile, options.overlap, options.chunk)
    print(f"{options.preset} video VAE, {height}x{width}, {dtype}, {device}, {tiling}")
    print(f"{'':14}{'frames':>8}{'seconds':>10}{'peak MiB':>10}")
    table = growth(vae, height, width, options.latents, tiling, whole=not options.no_whole, factors=(1, 2, 4))
    for verb, way, frames, seconds, peak in table:
        print(f"{verb} {way:7}{frames:>8}{seconds:>10.2f}{peak / 2**20:>10.1f}")


if __name__ == "__main__":
    main()
