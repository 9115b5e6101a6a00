"""Euler sampling of video and audio together, with up to four guidance passes in one forward.

Shapes: B samples, T tokens of a stream, P guidance passes; the forward runs at batch P·B.

A token with strength 0 in `denoise` is given (an image's first frame, a kept sound): it stays as it is and the model
sees it as clean, timestep 0.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.flow import add_noise, denoised
from model.guidance import NO_GUIDANCE, Guidance, GuidancePass, guide
from model.modality import Modality
from model.transformer import DualStreamTransformer

UNGUIDED = Guidance(video=NO_GUIDANCE, audio=NO_GUIDANCE, stg_blocks=())


@dataclass(frozen=True)
class TextContext:
    """What the text conditioner gives for B prompts: (B, S, ·) for each stream, and the mask (B, S) or None."""

    video: Tensor
    audio: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class SampleStream:
    """One stream to sample.

    Attributes:
        positions: (B, n, T, 2) float32.
        channels: C, width of a latent token.
        clean: (B, T, C) tokens to start from, when not from pure noise: given tokens, or a first stage to refine.
        denoise: (B, T) in [0, 1], 1 where a token is sampled, 0 where `clean` is given; None for all 1.
    """

    positions: Tensor
    channels: int
    clean: Tensor | None = None
    denoise: Tensor | None = None

    def __post_init__(self) -> None:
        batch, _, tokens, _ = self.positions.shape
        if self.clean is not None and tuple(self.clean.shape) != (batch, tokens, self.channels):
            raise ValueError(f"clean tokens are {tuple(self.clean.shape)}; expected {(batch, tokens, self.channels)}")
        if self.denoise is not None and self.clean is None:
            raise ValueError("a denoise mask needs the clean tokens that it gives")
        if self.denoise is not None and tuple(self.denoise.shape) != (batch, tokens):
            raise ValueError(f"denoise mask is {tuple(self.denoise.shape)}; expected {(batch, tokens)}")

    def start(self, sigma: float, generator: torch.Generator | None) -> Tensor:
        """(B, T, C) float32 at σ: noise, or the clean tokens with noise. Drawn on the generator's device."""
        batch, _, tokens, _ = self.positions.shape
        place = generator.device if generator is not None else self.positions.device
        noise = torch.randn(batch, tokens, self.channels, generator=generator, device=place).to(self.positions.device)
        if self.clean is None:
            return noise * sigma
        return add_noise(self.clean.float(), noise, self.timesteps(sigma))

    def timesteps(self, sigma: float) -> Tensor:
        """(B, T) σ of each token; one expanded value when all tokens are sampled."""
        batch, _, tokens, _ = self.positions.shape
        if self.denoise is None:
            return torch.full((batch, 1), sigma, device=self.positions.device).expand(batch, tokens)
        return self.denoise.float() * sigma

    def settle(self, x0: Tensor) -> Tensor:
        """x₀ with the given tokens put back."""
        if self.denoise is None or self.clean is None:
            return x0
        return torch.lerp(self.clean.float(), x0, self.denoise.float().unsqueeze(-1))


@torch.no_grad()
def sample(
    transformer: DualStreamTransformer,
    *,
    video: SampleStream | None,
    audio: SampleStream | None,
    context: TextContext,
    negative: TextContext | None = None,
    schedule: Tensor | Sequence[float],
    guidance: Guidance = UNGUIDED,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Denoise from schedule[0] to schedule[-1]; returns tokens (B, T, C) float32 of the streams given.

    Args:
        negative: contexts of the negative prompt, when the guidance uses text; padded to the length of `context`.
        schedule: falling σ, the last usually 0 (see `model.flow.inference_schedule`).
        generator: draws the video's noise, then the audio's.
        on_step: called with (steps done, steps) after each.

    Raises:
        ValueError: no stream, a schedule that does not fall, text guidance without a negative context, contexts of
            unequal length.
    """
    if video is None and audio is None:
        raise ValueError("give the sampler a video stream, an audio stream, or both")
    sigmas = [float(sigma) for sigma in schedule]
    if len(sigmas) < 2 or any(after >= before for before, after in itertools.pairwise(sigmas)):
        raise ValueError("schedule must hold at least two falling sigmas")
    passes = guidance.passes(both_streams=video is not None and audio is not None)
    contexts = _contexts_of_passes(context, negative, passes)
    streams = (video, audio)
    states = [None if stream is None else stream.start(sigmas[0], generator) for stream in streams]
    batch = len(context.video)
    skip = stg = None
    if len(passes) > 1:
        of_pass = [name for name in passes for _ in range(batch)]
        skip = torch.tensor([name == "isolated" for name in of_pass], device=context.video.device)
        stg = torch.tensor([name == "perturbed" for name in of_pass], device=context.video.device)
    for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        inputs = [
            None
            if stream is None or state is None
            else _modality(stream, state, sigma, text, contexts.mask, len(passes))
            for stream, state, text in zip(streams, states, (contexts.video, contexts.audio), strict=True)
        ]
        velocities = transformer(
            *inputs,
            skip_cross_modal=skip if skip is not None and "isolated" in passes else False,
            stg_blocks=guidance.stg_blocks if "perturbed" in passes else (),
            stg_samples=stg,
        )
        for index, (stream, scales) in enumerate(zip(streams, (guidance.video, guidance.audio), strict=True)):
            state, velocity = states[index], velocities[index]
            if stream is None or state is None or velocity is None:
                continue
            timesteps = stream.timesteps(sigma)
            predictions: dict[GuidancePass, Tensor] = {
                name: denoised(state, part, timesteps)
                for name, part in zip(passes, velocity.chunk(len(passes)), strict=True)
            }
            x0 = stream.settle(guide(predictions, scales))
            states[index] = x0 + (after / sigma) * (state - x0)  # Euler along the straight line to x₀
        if on_step is not None:
            on_step(step + 1, len(sigmas) - 1)
    return states[0], states[1]


def _modality(
    stream: SampleStream, state: Tensor, sigma: float, text: Tensor, mask: Tensor | None, passes: int
) -> Modality:
    batch, tokens, _ = state.shape
    timesteps = stream.timesteps(sigma)
    if stream.denoise is None:
        timesteps = timesteps[:1, :1].expand(passes * batch, tokens)
    else:
        timesteps = timesteps.repeat(passes, 1)
    positions = stream.positions
    alike = batch == 1 or positions.stride(0) == 0
    return Modality(
        latent=state.repeat(passes, 1, 1),
        timesteps=timesteps,
        # Of the noisiest token, as in training: a stream that is given whole is clean to the other one.
        sigma=timesteps.amax(1),
        positions=positions[:1].expand(passes * batch, -1, -1, -1) if alike else positions.repeat(passes, 1, 1, 1),
        context=text,
        context_mask=mask,
    )


def _contexts_of_passes(
    context: TextContext, negative: TextContext | None, passes: tuple[GuidancePass, ...]
) -> TextContext:
    if "unconditional" not in passes:
        parts = [context] * len(passes)
    elif negative is None:
        raise ValueError("text guidance needs the negative prompt's context (or set text guidance to 1)")
    elif negative.video.shape != context.video.shape or negative.audio.shape != context.audio.shape:
        raise ValueError(
            f"context {tuple(context.video.shape)} and negative context {tuple(negative.video.shape)} differ in shape; "
            "encode both prompts in one batch"
        )
    else:
        parts = [negative if name == "unconditional" else context for name in passes]
    masks = None
    if any(part.mask is not None for part in parts):
        shape, device = context.video.shape[:2], context.video.device
        everything = torch.ones(shape, dtype=torch.bool, device=device)
        masks = torch.cat([everything if part.mask is None else part.mask.bool() for part in parts])
    return TextContext(torch.cat([part.video for part in parts]), torch.cat([part.audio for part in parts]), masks)
