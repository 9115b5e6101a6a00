"""A training step of eight blocks of full width beside diffusers' class, and its memory beside what `plan` says."""

import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.measurement import Aim, Session, at_least, at_most, measurement
from benchmarks.gpu.models import empty_transformer
from benchmarks.gpu.timing import peak_bytes, peak_tflops, seconds
from benchmarks.train_step import Inputs, diffusers_step, diffusers_twin, make_inputs, of_release, ours_step
from model.activations import transformer_activations
from model.flops import transformer_flops
from model.presets import preset
from model.transformer import DualStreamTransformer, TransformerConfig

# (latent frames, height, width) and audio tokens of 121 frames: 768 × 512, 512 × 288, 1280 × 704.
MIDDLE, SMALL, LARGE = ((16, 16, 24), 126), ((16, 9, 16), 126), ((16, 22, 40), 126)
DRY = ((2, 3, 5), 13)
TEXT_TOKENS = 1024
BLOCKS = 8


@measurement("training-step", "Training step: 8 blocks of full width, bf16, batch 1", seconds=240)
def training_step(session: Session) -> None:
    """Ours and diffusers', eager and compiled, at 6,144 + 126 + 1,024 tokens; then other sizes, ours alone."""
    for release in ("2.3",) if session.dry else ("2.3", "2.0"):
        session.attempt(release, _Release(session, release).run)


@measurement("attention", "Attention kernels, forward and backward", seconds=25)
def attention(session: Session) -> None:
    """What each of PyTorch's kernels reaches at the sizes of the step; PyTorch's own choice is "default"."""
    backends = {
        "default": None,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    shapes = {"6,144 on 6,144": (6144, 6144, 128), "6,144 on 1,024": (6144, 1024, 128), "6,144 on 126": (6144, 126, 64)}
    if session.dry:
        backends, shapes = {"default": None}, {"30 on 16": (30, 16, 32)}
    for (shape, sizes), (name, backend) in itertools.product(shapes.items(), backends.items()):
        title = f"{shape} tokens, {name}"
        session.attempt(title, partial(_attention_kernel, session, title, *sizes, backend))


def _attention_kernel(
    session: Session,
    title: str,
    queries: int,
    keys: int,
    width: int,
    backend: Any,  # SDPBackend or None: torch 2.8 declares the enumeration as a variable, which is no type
) -> None:
    q, k, v = (
        torch.randn(1, tokens, 32, width, device=session.device, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for tokens in (queries, keys, keys)
    )

    def both() -> None:
        nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()

    with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
        took = statistics.median(seconds(both, session.device, repeat=10))
    # Backward forms five products for forward's two.
    rate = 3.5 * 4 * queries * keys * width * 32 / took / 1e12
    session.figure(title, took * 1e3, "ms", note=f"{rate:.0f} TFLOP/s")


class _Release:
    """The measurements of one release, "2.0" or "2.3"."""

    def __init__(self, session: Session, release: str) -> None:
        self.session, self.release = session, release
        name, blocks = ("tiny", 2) if session.dry else ("ltx2-19b", BLOCKS)
        self.config = replace(of_release(preset(name).transformer, release), num_layers=blocks)
        self.text = 16 if session.dry else TEXT_TOKENS
        self.middle = DRY if session.dry else MIDDLE

    def run(self) -> None:
        """Compiled and beside diffusers first, which the aims are about; then recomputation, then other sizes."""
        session = self.session
        ours = empty_transformer(self.config, session.device, torch.bfloat16)
        need = 0 if session.dry else 40  # seconds to compile and to measure
        times: dict[str, float] = {}
        session.attempt(f"{self.release}, compiled", partial(self._compiled, times), need)
        session.attempt(f"{self.release}, eager", partial(self._eager, ours, times))
        session.attempt(f"{self.release}, diffusers", partial(self._beside_diffusers, ours, times), need)
        del ours
        if not session.dry:
            for size in (SMALL, LARGE):
                name = f"{self.release}, {_tokens(size):,} tokens"
                session.attempt(name, partial(self._other_size, size), need)

    def _eager(self, ours: DualStreamTransformer, times: dict[str, float]) -> None:
        """Eager steps with every, every second and no block recomputed; each peak beside the planned one."""
        inputs = self._inputs(self.middle)
        for every in (1, 2, 0):
            ours.set_activation_checkpointing(every)
            times["eager"] = self._report("ours, eager", ours, ours_step(ours, inputs), self.middle, every)
            self._beside_plan("eager", ours, ours_step(ours, inputs), every)
        per_token = self._inputs(self.middle, per_token=True)
        self._report("ours, eager, timesteps per token", ours, ours_step(ours, per_token), self.middle, per_token=True)

    def _compiled(self, times: dict[str, float]) -> None:
        ours = self._compile_ours()
        inputs = self._inputs(self.middle)
        aim = at_least(45)
        times["compiled"] = self._report("ours, compiled", ours, ours_step(ours, inputs), self.middle, aim=aim)
        self._beside_plan("compiled", ours, ours_step(ours, inputs), 0)
        for every in (1, 2):
            ours.set_activation_checkpointing(every)
            self._report("ours, compiled", ours, ours_step(ours, inputs), self.middle, every)

    def _beside_diffusers(self, ours: DualStreamTransformer, times: dict[str, float]) -> None:
        """Both ratios; where one misses its aim, our eager step is profiled, whose kernels have names."""
        inputs = self._inputs(self.middle)
        theirs = diffusers_twin(ours)
        step = diffusers_step(theirs, inputs)
        for way in ("eager", "compiled"):
            if way == "compiled":
                _compile_each(cast(list[nn.Module], theirs.transformer_blocks), self.session)
            took = self._report(f"diffusers, {way}", theirs, step, self.middle)
            if way in times:
                again = _with_backward(ours_step(ours, inputs)) if way == "eager" else None
                name = f"{self.release}, {way}: ours / diffusers"
                self.session.figure(name, times[way] / took, "", aim=at_most(0.75), again=again)

    def _other_size(self, size: tuple[tuple[int, int, int], int]) -> None:
        ours = self._compile_ours()
        self._report("ours, compiled", ours, ours_step(ours, self._inputs(size)), size)

    def _compile_ours(self) -> DualStreamTransformer:
        torch._dynamo.reset()
        ours = empty_transformer(self.config, self.session.device, torch.bfloat16)
        ours.compile_blocks(**_compiler(self.session))
        return ours

    def _inputs(self, size: tuple[tuple[int, int, int], int], *, per_token: bool = False) -> Inputs:
        grid, audio = size
        device, dtype = self.session.device, torch.bfloat16
        return make_inputs(self.config, grid, audio, self.text, per_token=per_token, device=device, dtype=dtype)

    def _report(
        self,
        name: str,
        module: nn.Module,
        step: Callable[[], Tensor],
        size: tuple[tuple[int, int, int], int],
        every: int = 0,
        *,
        per_token: bool = False,
        aim: Aim | None = None,
    ) -> float:
        """Time a step and report it; returns its seconds."""
        session = self.session

        def whole() -> None:
            module.zero_grad(set_to_none=True)
            step().backward()

        start = time.perf_counter()
        whole()
        first = time.perf_counter() - start
        took = statistics.median(seconds(whole, session.device, warm_up=1, repeat=2 if session.dry else 5))
        module.zero_grad(set_to_none=True)
        peak = peak_bytes(whole, session.device)
        module.zero_grad(set_to_none=True)
        operations = 3 * _forward_flops(self.config, size, self.text, per_token=per_token)
        rate = operations / took / 1e12
        recomputed = {0: "", 1: ", every block recomputed", 2: ", every 2nd block recomputed"}[every]
        title = f"{self.release}, {name}{recomputed}, {_tokens(size):,} tokens"
        note = f"{rate:.1f} TFLOP/s, {peak / 2**30:.2f} GiB with gradients, first step {first:.1f} s"
        session.figure(title, took * 1e3, "ms", note=note)
        if (ceiling := peak_tflops(session.device)) is not None:
            mfu = 100 * rate / ceiling
            session.figure(f"MFU of {title}", mfu, "%", aim=aim, again=whole)
        return took

    def _beside_plan(self, name: str, ours: DualStreamTransformer, step: Callable[[], Tensor], every: int) -> None:
        """Peak of a step whose gradients have their places already, beside `model.activations`, which `plan` asks."""
        grid, audio = self.middle
        planned = transformer_activations(self.config, grid, audio, self.text).peak(self.config.num_layers, every)
        if not self.session.gpu:
            return  # a CPU's allocator keeps no peak
        step().backward()
        measured = peak_bytes(lambda: step().backward(), self.session.device)
        ours.zero_grad(set_to_none=True)
        recomputed = f"{every}" if every else "none"
        self.session.figure(
            f"{self.release}, {name}, recompute {recomputed}: |planned / measured − 1| of the activations",
            abs(planned / measured - 1),
            "",
            aim=at_most(0.15),
            note=f"planned {planned / 2**30:.2f} GiB, measured {measured / 2**30:.2f} GiB",
        )


def _compiler(session: Session) -> dict[str, Any]:
    """Static shapes, as a bucket has; a dry run traces and compiles nothing."""
    return {"dynamic": False} | ({"backend": "eager"} if session.dry else {})


def _compile_each(blocks: list[nn.Module], session: Session) -> None:
    torch._dynamo.reset()
    for block in blocks:
        block.compile(**_compiler(session))
    gc.collect()


def _with_backward(step: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: step().backward()


def _tokens(size: tuple[tuple[int, int, int], int]) -> int:
    f, h, w = size[0]
    return f * h * w


def _forward_flops(
    config: TransformerConfig, size: tuple[tuple[int, int, int], int], text: int, *, per_token: bool = False
) -> int:
    return transformer_flops(config, _tokens(size), size[1], text, per_token=per_token).total
