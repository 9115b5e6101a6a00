"""Does every part compute on the GPU what it computes on the CPU in float32, and does it learn there?

The reference has the same weights, rounded to bfloat16 where the case is in bfloat16, so that only the arithmetic
differs. The outputs and the gradients of all parameters together are compared, by ‖difference‖ / ‖reference‖.
"""

import copy
import itertools
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import model
from benchmarks.gpu.measurement import Session, measurement
from benchmarks.gpu.models import perturb, relative, tiny
from benchmarks.train_step import make_inputs
from model import attention
from model.flow import TrainingSigma, add_noise, velocity_target
from model.ltx2 import cast as cast_parameters
from model.modality import Modality
from model.transformer import DualStreamTransformer

BOUNDS = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
# No count divides by 8: such lengths have broken kernels that want aligned masks.
GRID, AUDIO_TOKENS, TEXT_TOKENS = (3, 5, 7), 13, 27
FLASH, MEMORY_EFFICIENT, CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION
# What each takes: 16-bit types alone, and masks or not.
BACKENDS = {
    "flash": (FLASH, True, False),
    "cuDNN": (CUDNN, True, True),
    "memory-efficient": (MEMORY_EFFICIENT, False, True),
}


@measurement("correctness", "Correct on CUDA", seconds=130)
def correctness(session: Session) -> None:
    """Every part against the CPU, then 30 steps of training that are continued on a CPU."""
    releases = ("2.3",) if session.dry else ("2.3", "2.0")
    for release in releases:
        session.attempt(f"transformer {release}, eager", partial(_transformer, session, release))
    for release in releases:
        session.attempt(f"autoencoders {release}", partial(_autoencoders, session, release))
    session.attempt("30 steps", partial(_learns, session))
    for release in releases:
        run = partial(_compiled, session, release)
        session.attempt(f"transformer {release}, compiled", run, 0 if session.dry else 20)


# ---------------------------------------------------------------------------------------------------------------------
# The transformer


def _transformer(session: Session, release: str) -> None:
    """Every timestep form, mask, type and attention kernel; the worst of each kernel is reported."""
    worst: dict[tuple[str, torch.dtype], tuple[float, str]] = {}
    config = replace(tiny(release).transformer, num_layers=1 if session.dry else 2)
    cases = list(itertools.product(BOUNDS, (False, True), (False, True)))
    for dtype, per_token, masked in (cases[0], cases[-1]) if session.dry else cases:
        reference, ours, inputs, step = _pair(session, config, dtype, per_token=per_token, masked=masked)
        for kernel in _kernels(session, dtype, masked=masked):
            ours.zero_grad(set_to_none=True)
            with _attention(kernel):
                found = step(ours, inputs)
            error = max(relative(a, b) for a, b in zip(found, reference, strict=True))
            case = f"{'per token' if per_token else 'per sample'}, {'masked' if masked else 'no mask'}"
            so_far = worst.get((kernel, dtype), (-1.0, ""))[0]
            if error > so_far or math.isnan(error):
                worst[kernel, dtype] = (error, f"worst of its cases: {case}")
    for (kernel, dtype), (error, note) in worst.items():
        session.check(f"transformer {release}, {_short(dtype)}, {kernel}", error, BOUNDS[dtype], note)
    if session.gpu and attention._flash_attention_3 is None:
        session.not_measured(f"transformer {release}, FA3", "flash_attn_interface is not installed", failed=False)


def _compiled(session: Session, release: str) -> None:
    """torch.compile of every block, with masks and timesteps per token, and without either."""
    config = replace(tiny(release).transformer, num_layers=1 if session.dry else 2)
    for dtype, hard in ((torch.bfloat16, True), (torch.float32, False)):
        reference, ours, inputs, step = _pair(session, config, dtype, per_token=hard, masked=hard)
        ours.compile_blocks(**({"backend": "aot_eager"} if session.dry else {}))
        found = step(ours, inputs)
        error = max(relative(a, b) for a, b in zip(found, reference, strict=True))
        note = "timesteps per token, masked" if hard else "timesteps per sample, no mask"
        session.check(f"transformer {release}, {_short(dtype)}, compiled", error, BOUNDS[dtype], note)


def _pair(session: Session, config: Any, dtype: torch.dtype, *, per_token: bool, masked: bool) -> Any:
    """(reference outputs and gradients, our model and inputs on the device, the step that gives the same of them)."""
    torch.manual_seed(0)
    reference = cast(DualStreamTransformer, model.build_component(config))
    perturb(reference)
    ours = copy.deepcopy(reference).to(session.device, dtype)
    _round(reference, dtype)

    def inputs(device: torch.device, dtype: torch.dtype, rounded: torch.dtype) -> tuple[Modality, Modality]:
        made = make_inputs(config, GRID, AUDIO_TOKENS, TEXT_TOKENS, batch=2, per_token=per_token)
        return tuple(_placed(m, device, dtype, rounded, masked=masked) for m in (made.video, made.audio))  # type: ignore

    cpu = torch.device("cpu")
    expected = _gradients_of(reference, inputs(cpu, torch.float32, dtype))
    return expected, ours, inputs(session.device, dtype, dtype), _gradients_of


def _placed(m: Modality, device: torch.device, dtype: torch.dtype, rounded: torch.dtype, *, masked: bool) -> Modality:
    def there(x: Tensor) -> Tensor:
        return x.to(rounded).to(device, dtype)

    context_mask = attention_mask = None
    if masked:
        context_mask = torch.ones(m.context.shape[:2], dtype=torch.bool)
        context_mask[0, 20:] = False
        tokens = m.latent.shape[1]
        strength = torch.rand(2, tokens, tokens, generator=torch.Generator().manual_seed(1))
        context_mask, attention_mask = context_mask.to(device), strength.to(device)
    timesteps = (
        m.timesteps.to(device) if m.timesteps.stride(1) else m.timesteps[:, :1].to(device).expand(m.timesteps.shape)
    )
    return Modality(
        there(m.latent),
        timesteps,
        m.sigma.to(device),
        m.positions[:1].to(device).expand(m.positions.shape),
        there(m.context),
        context_mask,
        attention_mask,
    )


def _gradients_of(module: DualStreamTransformer, inputs: tuple[Modality, Modality]) -> list[Tensor]:
    video, audio = module(*inputs)
    assert video is not None
    assert audio is not None
    (_loss(video) + _loss(audio)).backward()
    return [video, audio, _all_gradients(module)]


def _loss(x: Tensor) -> Tensor:
    """Mean square after weighting every element its own way, so that none cancels another."""
    weight = torch.linspace(0.5, 1.5, x.numel(), device=x.device).view(x.shape)
    return (x.float() * weight).square().mean()


def _all_gradients(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.detach().float().cpu().flatten() for p in module.parameters() if p.grad is not None])


@torch.no_grad()
def _round(module: nn.Module, dtype: torch.dtype) -> None:
    for parameter in module.parameters():
        parameter.copy_(parameter.to(dtype))


def _kernels(session: Session, dtype: torch.dtype, *, masked: bool) -> Iterator[str]:
    """Names of the attention kernels that take the type and the mask; "default" is PyTorch's own choice."""
    yield "default"
    if session.gpu:
        for name, (_, half_alone, takes_mask) in BACKENDS.items():
            if (dtype != torch.float32 or not half_alone) and (takes_mask or not masked):
                yield name


@contextmanager
def _attention(kernel: str) -> Iterator[None]:
    """Every attention by this kernel, which raises where it cannot; "default" lets FA3, where installed, take part."""
    if kernel == "default":
        yield
        return
    theirs, attention._flash_attention_3 = attention._flash_attention_3, None
    try:
        with sdpa_kernel(BACKENDS[kernel][0]):
            yield
    finally:
        attention._flash_attention_3 = theirs


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"


# ---------------------------------------------------------------------------------------------------------------------
# The VAEs and the vocoder


def _autoencoders(session: Session, release: str) -> None:
    config = tiny(release)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 17, 64, 96, generator=generator) * 2 - 1
    latent = torch.randn(1, 32, 3, 2, 3, generator=generator)
    mel = torch.randn(1, 2, 41, 64, generator=generator) * 2 - 5
    sound = torch.randn(1, 8, 11, 16, generator=generator)
    cases: dict[str, tuple[Any, Tensor, Callable[[Any, Tensor], Tensor]]] = {
        "video VAE encodes": (config.video_vae, pixels, lambda vae, x: vae.encode_distribution(x)[0]),
        "video VAE decodes": (config.video_vae, latent, lambda vae, x: vae.decode_raw(x)),
        "audio VAE encodes": (config.audio_vae, mel, lambda vae, x: vae.encode_distribution(x)[0]),
        "audio VAE decodes": (config.audio_vae, sound, lambda vae, x: vae.decode_raw(x)),
        "vocoder": (config.vocoder, mel, lambda vocoder, x: vocoder(x)),
    }
    for (name, (part, x, run)), dtype in itertools.product(cases.items(), BOUNDS):
        if name == "vocoder" and dtype != torch.float32:
            continue  # the vocoder runs in float32 alone
        error = _part_error(session, part, x, run, dtype)
        session.check(f"{name}, {release}, {_short(dtype)}", error, BOUNDS[dtype])


def _part_error(
    session: Session, config: Any, x: Tensor, run: Callable[[Any, Tensor], Tensor], dtype: torch.dtype
) -> float:
    torch.manual_seed(0)
    reference = model.build_component(config)
    perturb(reference, scale=0.1)
    ours = copy.deepcopy(reference).to(session.device)
    _round(reference, dtype)
    cast_parameters(ours, dtype)
    x = x.to(dtype)
    expected = run(reference, x.float())
    _loss(expected).backward()
    with full_float32():
        found = run(ours, x.to(session.device))
        _loss(found).backward()
    return max(relative(found, expected), relative(_all_gradients(ours), _all_gradients(reference)))


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions in float32 proper: cuDNN takes TF32, which keeps 10 bits of 23, unless told otherwise."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


# ---------------------------------------------------------------------------------------------------------------------
# Training


class Training:
    """The diffusion loss on four fixed samples: bf16 weights, fp32 ones for AdamW, all noise drawn on the CPU."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        config = replace(tiny("2.0").transformer, num_layers=2)
        self.device = device
        self.masters = cast(DualStreamTransformer, model.build_component(config)).to(device)
        self.working = copy.deepcopy(self.masters).to(torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.masters.parameters(), lr=2e-3)
        self.clean = make_inputs(config, (3, 4, 4), 13, 16, batch=4, device=device)

    def step(self, index: int) -> float:
        """Take the step of this index, which fixes its noise; returns the loss before it."""
        self.pull()
        generator = torch.Generator().manual_seed(index)
        loss = torch.zeros((), device=self.device)
        noisy, targets = [], []
        for clean in (self.clean.video, self.clean.audio):
            sigma = TrainingSigma().sample(len(clean.latent), clean.latent.shape[1], generator).to(self.device)
            noise = torch.randn(clean.latent.shape, generator=generator).to(self.device)
            state = add_noise(clean.latent.float(), noise, sigma).to(torch.bfloat16)
            timesteps = sigma[:, None].expand(clean.latent.shape[:2])
            noisy.append(replace(clean, latent=state, timesteps=timesteps, sigma=sigma))
            targets.append(velocity_target(clean.latent.float(), noise))
        for found, target in zip(self.working(*noisy), targets, strict=True):
            loss = loss + (found.float() - target).square().mean()
        loss.backward()
        for master, working in zip(self.masters.parameters(), self.working.parameters(), strict=True):
            master.grad = None if working.grad is None else working.grad.float()
            working.grad = None
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def pull(self) -> None:
        """Round the fp32 weights into the bf16 ones."""
        for master, working in zip(self.masters.parameters(), self.working.parameters(), strict=True):
            working.copy_(master)

    def save(self, path: Path) -> None:
        """Weights by `model.weights`, which reads them on any device; the optimizer's state beside them."""
        model.weights.save(self.masters, path)
        torch.save(self.optimizer.state_dict(), path / "optimizer.pt")

    def restore(self, path: Path) -> None:
        """Load what `save` wrote onto this training's own device."""
        model.weights.load_into(self.masters, path)
        state = torch.load(path / "optimizer.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state)


def _learns(session: Session) -> None:
    """30 steps on the device, then five more there and, from what was saved, in a process that sees no GPU."""
    training = Training(session.device)
    losses = [training.step(index) for index in range(30)]
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    session.check(
        "loss of the last 5 of 30 steps by that of the first 5", last / first, 0.9, f"{first:.3f} to {last:.3f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder))
        here = [training.step(index) for index in range(30, 35)]
        there = _continue_on_cpu(folder)
    apart = max(abs(a - b) / b for a, b in zip(there, here, strict=True))
    note = "saved after 30 steps"
    session.check("five losses continued on a CPU, from the GPU's", apart, BOUNDS[torch.bfloat16], note)


def _continue_on_cpu(folder: str) -> list[float]:
    """Losses of a process that sees no GPU."""
    program = f"from benchmarks.gpu.correctness import continued; continued({folder!r})"
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], env=hidden, capture_output=True, text=True, timeout=60)
    if run.returncode:
        raise RuntimeError(f"continuing on the CPU failed: {run.stderr.strip().splitlines()[-1:]}")
    return [float(word) for word in run.stdout.split()]


def continued(folder: str) -> None:
    """Print the losses of five further steps on the CPU, in a process that sees no GPU."""
    assert not torch.cuda.is_available()
    training = Training(torch.device("cpu"))
    training.restore(Path(folder))
    print(*(training.step(index) for index in range(30, 35)))
