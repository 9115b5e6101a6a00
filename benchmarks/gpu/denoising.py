"""Seconds per denoising step beside Wan 2.2, and of a whole clip from noise to picture and sound.

The text encoder (Gemma 3) is not ours and is left out: contexts are random. One large model is in memory at a time.
"""

import gc
import statistics
import time
from typing import Any, cast

import torch

import model
from benchmarks.gpu.measurement import Session, at_least, at_most, measurement
from benchmarks.gpu.models import empty_transformer, randomise
from benchmarks.gpu.timing import seconds, wait
from benchmarks.gpu.training_step import DRY, LARGE, MIDDLE, TEXT_TOKENS
from benchmarks.train_step import make_inputs
from model.flops import transformer_flops
from model.flow import DISTILLED_SCHEDULE, inference_schedule
from model.guidance import Guidance
from model.modality import audio_positions, unpatchify_audio, unpatchify_video, video_positions
from model.presets import ModelConfig, preset
from model.sampler import UNGUIDED, SampleStream, TextContext, sample
from model.transformer import DualStreamTransformer

# 121 frames of 1280 × 720 in Wan's VAE, 4 × 8 × 8, before its patches of 2 × 2.
WAN_LATENT, WAN_TEXT_TOKENS = (31, 90, 160), 512


@measurement("denoising-step", "Seconds per denoising step, whole transformer, bf16, batch 1, one pass", seconds=110)
def denoising_step(session: Session) -> None:
    """The whole `ltx2-19b` at 121 frames of 1280 × 704 with sound, and Wan 2.2 A14B at 121 frames of 1280 × 720."""
    ours: list[float] = []
    session.attempt("ltx2-19b", lambda: ours.append(_ltx2(session)))
    gc.collect()
    session.attempt("Wan 2.2 A14B", lambda: _wan(session, ours), 0 if session.dry else 50)


def _ltx2(session: Session) -> float:
    """Seconds per pass, the lesser of eager and compiled."""
    config = preset("tiny" if session.dry else "ltx2-19b").transformer
    size, text = (DRY, 16) if session.dry else (LARGE, TEXT_TOKENS)
    (f, h, w), audio = size
    transformer = empty_transformer(config, session.device, torch.bfloat16).eval()
    inputs = make_inputs(config, (f, h, w), audio, text, device=session.device, dtype=torch.bfloat16)
    flops = transformer_flops(config, f * h * w, audio, text).total
    best = float("inf")
    for way in ("eager", "compiled"):
        if way == "compiled":
            transformer.compile_blocks(dynamic=False, **({"backend": "eager"} if session.dry else {}))
        with torch.no_grad():
            times = seconds(lambda: transformer(inputs.video, inputs.audio), session.device, warm_up=1, repeat=3)
        took = statistics.median(times)
        best = min(best, took)
        note = f"{f * h * w:,} + {audio} + {text:,} tokens, {flops / took / 1e12:.0f} TFLOP/s"
        session.figure(f"ltx2-19b, {way}", took, "s", note=note)
    return best


def _wan(session: Session, ours: list[float]) -> None:
    """One expert with random weights, warmed up on 9 frames: one pass of 121 takes about half a minute."""
    from diffusers import WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]

    small = {"num_layers": 2, "num_attention_heads": 2, "ffn_dim": 64} if session.dry else {}
    build = cast(Any, WanTransformer3DModel)
    with torch.device("meta"):
        wan = build(**small).to(torch.bfloat16)
    wan = wan.to_empty(device=session.device).eval()
    wan.rope = build(**small | {"num_layers": 0}).rope.to(session.device)  # tables that no weight file holds
    randomise(wan)
    f, h, w = (3, 6, 8) if session.dry else WAN_LATENT

    def one_pass(frames: int) -> None:
        latent = torch.randn(1, 16, frames, h, w, device=session.device, dtype=torch.bfloat16)
        context = torch.randn(1, WAN_TEXT_TOKENS, 4096, device=session.device, dtype=torch.bfloat16)
        with torch.no_grad():
            wan(latent, torch.full((1,), 500, device=session.device), context, return_dict=False)

    seconds(lambda: one_pass(3), session.device, warm_up=1, repeat=1)
    took = seconds(lambda: one_pass(f), session.device, warm_up=0, repeat=1)[0]
    tokens = f * h * w // 4
    session.figure("Wan 2.2 A14B (diffusers), eager", took, "s", note=f"{tokens:,} + {WAN_TEXT_TOKENS} tokens, one run")
    if ours:
        session.figure("Wan 2.2 A14B / ltx2-19b", took / ours[0], "", aim=at_least(18), note="the paper says about 18")


@measurement(
    "whole-clip", "A whole clip: 121 frames of 768 × 512 with stereo sound, bf16, without the text encoder", seconds=130
)
def whole_clip(session: Session) -> None:
    """Eight steps of the distilled schedule, and 40 steps with four guidance passes, each decoded to its end."""
    config = preset("tiny" if session.dry else "ltx2-19b")
    clip = _Clip(session, config)
    session.attempt("8 steps", lambda: clip.distilled("eager"))
    if not session.dry:
        session.attempt("8 steps, compiled", lambda: clip.distilled("compiled"), 30)
    session.attempt("40 steps with guidance", clip.guided, 0 if session.dry else 85)


class _Clip:
    """The parts of one model, and the way from noise to pixels and samples."""

    def __init__(self, session: Session, config: ModelConfig) -> None:
        self.session, self.config = session, config
        device = session.device
        self.size, self.text = (DRY, 16) if session.dry else (MIDDLE, TEXT_TOKENS)
        self.transformer = empty_transformer(config.transformer, device, torch.bfloat16).eval()
        self.video_vae = cast(Any, model.build_component(config.video_vae, device, torch.bfloat16)).eval()
        self.audio_vae = cast(Any, model.build_component(config.audio_vae, device, torch.bfloat16)).eval()
        self.vocoder = model.build_component(config.vocoder, device, torch.float32).eval()

    def distilled(self, way: str) -> None:
        if way == "compiled":
            self.transformer.compile_blocks(dynamic=False)
            self._sample(DISTILLED_SCHEDULE[:2], UNGUIDED)
        self._whole(f"8 steps, {way}", DISTILLED_SCHEDULE, UNGUIDED, aim=at_most(9.5) if way == "compiled" else None)

    def guided(self) -> None:
        # Compiled blocks would be compiled anew for four passes at once.
        self.transformer = _uncompiled(self.transformer)
        steps = 2 if self.session.dry else 40
        stg = (len(self.transformer.transformer_blocks) - 1,) if self.session.dry else (29,)
        self._whole(f"{steps} steps, four guidance passes, eager", inference_schedule(steps), Guidance(stg_blocks=stg))

    def _whole(self, name: str, schedule: Any, guidance: Guidance, aim: Any = None) -> None:
        """Sample and decode; the first decoding, which picks its convolutions, is done before."""
        device = self.session.device
        video, audio = self._sample(tuple(float(s) for s in schedule)[-2:], guidance)
        self._decode(video, audio)
        wait(device)
        start = time.perf_counter()
        video, audio = self._sample(schedule, guidance)
        wait(device)
        sampled = time.perf_counter()
        pixels, wave = self._decode(video, audio)
        wait(device)
        whole, denoised = time.perf_counter() - start, sampled - start
        note = f"of it {denoised:.2f} s denoising; {pixels.shape[2]} frames, {wave.shape[2]} samples in stereo"
        self.session.figure(name, whole, "s", aim=aim, note=note, again=lambda: self._sample(schedule[:3], guidance))

    def _sample(self, schedule: Any, guidance: Guidance) -> tuple[torch.Tensor, torch.Tensor]:
        (f, h, w), audio = self.size
        device, config = self.session.device, self.config.transformer
        generator = torch.Generator(device).manual_seed(0)
        width = config.caption_channels or config.cross_attention_dim

        def context() -> TextContext:
            both = torch.randn(1, self.text, width, device=device, dtype=torch.bfloat16, generator=generator)
            return TextContext(both, both)

        video, sound = sample(
            self.transformer,
            video=SampleStream(video_positions(f, h, w, 24.0, device=device), config.in_channels),
            audio=SampleStream(audio_positions(audio, device=device), config.audio_in_channels),
            context=context(),
            negative=context(),
            schedule=schedule,
            guidance=guidance,
            generator=generator,
        )
        assert video is not None
        assert sound is not None
        return video, sound

    @torch.no_grad()
    def _decode(self, video: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latent = unpatchify_video(video, *self.size[0]).to(torch.bfloat16)
        vae = self.config.audio_vae
        sound = unpatchify_audio(audio, vae.latent_channels, vae.latent_bins).to(torch.bfloat16)
        return self.video_vae.decode(latent), self.vocoder(self.audio_vae.decode(sound).float())


def _uncompiled(transformer: DualStreamTransformer) -> DualStreamTransformer:
    """The same transformer with its blocks' own forward again."""
    for block in transformer.transformer_blocks:
        block.__dict__.pop("forward", None)
    return transformer
