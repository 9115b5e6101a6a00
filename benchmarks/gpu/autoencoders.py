"""Seconds, memory and rates of the published VAEs and vocoders, random weights."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import model
from benchmarks.gpu.measurement import Session, measurement
from benchmarks.gpu.timing import peak_bytes, seconds
from model.presets import preset
from model.tiling import Tiling, tiled_decode, tiled_encode
from model.video_vae import latent_size


@measurement("autoencoders", "VAEs in bf16 and vocoders in fp32, batch 1, 121 frames", seconds=90)
def autoencoders(session: Session) -> None:
    """Encode and decode 768 × 512 whole and 1920 × 1088 in tiles; sound against its own length."""
    names = ("tiny",) if session.dry else ("ltx2-19b", "ltx2.3-22b")
    for name in names:
        session.attempt(f"{name}, audio", lambda name=name: _audio(session, name))
    for name in names:
        session.attempt(f"{name}, video", lambda name=name: _video(session, name))


def _video(session: Session, name: str) -> None:
    vae = cast(Any, model.build_component(preset(name).video_vae, session.device, torch.bfloat16)).eval()
    frames, whole, tiled = (9, (64, 96), (64, 128)) if session.dry else (121, (512, 768), (1088, 1920))
    tiling = Tiling(64, 0, 8) if session.dry else Tiling()

    def pixels(height: int, width: int) -> Tensor:
        return torch.rand(1, 3, frames, height, width, device=session.device, dtype=torch.bfloat16) * 2 - 1

    def latent(height: int, width: int) -> Tensor:
        shape = latent_size(frames, height, width)
        return torch.randn(1, vae.config.latent_channels, *shape, device=session.device, dtype=torch.bfloat16)

    def encode(way: Callable[[Tensor], Tensor], size: tuple[int, int], title: str, *, once: bool = False) -> None:
        x = pixels(*size)
        _report(session, f"{name}, encode {title}", lambda: way(x), frames, once=once)

    def decode(way: Callable[[Tensor], Tensor], size: tuple[int, int], title: str, *, once: bool = False) -> None:
        z = latent(*size)
        _report(session, f"{name}, decode {title}", lambda: way(z), frames, once=once)

    encode(vae.encode, whole, f"{whole[1]} × {whole[0]}")
    decode(vae.decode, whole, f"{whole[1]} × {whole[0]}")
    title = f"{tiled[1]} × {tiled[0]} in tiles of {tiling.tile}"
    decode(partial(tiled_decode, vae, tiling=tiling), tiled, title, once=True)
    encode(partial(tiled_encode, vae, tiling=tiling), tiled, title, once=True)


def _report(session: Session, name: str, run: Callable[[], Any], frames: int, *, once: bool = False) -> None:
    """Seconds of a run after one that warms up (`once`: of the first, whose tiles warm each other up)."""

    def measured() -> None:
        with torch.no_grad():
            took = min(seconds(run, session.device, warm_up=0 if once else 1, repeat=1 if once else 2))
            note = f"{frames / took:.1f} frames/s"
            if session.gpu and not once:
                note += f", {peak_bytes(run, session.device) / 2**30:.2f} GiB beyond weights and input"
            elif session.gpu:
                note += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB in all"
        session.figure(name, took, "s", note=note)

    if session.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    session.attempt(name, measured, 0 if session.dry else 8)


def _audio(session: Session, name: str) -> None:
    """The audio VAE both ways and the vocoder, on five seconds of stereo (a dry run: less than one)."""
    config = preset(name)
    frames = 41 if session.dry else 501
    mel = torch.randn(1, 2, frames, 64, device=session.device) * 2 - 5
    vae = cast(Any, model.build_component(config.audio_vae, session.device, torch.bfloat16)).eval()
    vocoder = model.build_component(config.vocoder, session.device, torch.float32).eval()
    length = frames / 100

    def report(what: str, run: Callable[[], Any]) -> None:
        with torch.no_grad():
            took = min(seconds(run, session.device, warm_up=1, repeat=3))
        session.figure(f"{name}, {what}", took * 1e3, "ms", note=f"{length / took:.0f} × real time")

    with torch.no_grad():
        latent = vae.encode(mel.to(torch.bfloat16))
    report("audio VAE encodes", lambda: vae.encode(mel.to(torch.bfloat16)))
    report("audio VAE decodes", lambda: vae.decode(latent))
    report("vocoder, cuDNN's default (TF32)", lambda: vocoder(mel))
    if session.gpu:
        from benchmarks.gpu.correctness import full_float32

        with full_float32():
            report("vocoder, fp32 proper", lambda: vocoder(mel))
