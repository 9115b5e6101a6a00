"""Euler sampling of video and audio together, with up to four guidance passes in one forward.

Source: LTX-2 (arXiv 2601.03233 §4).

Shapes: B samples, T tokens of a stream, C channels of a token, S text tokens, n position axes, P guidance passes. The
forward runs at batch P·B.

A token with 0 in `denoise` is given (a first frame, an existing soundtrack): it does not change, and the model sees it
as clean, at timestep 0.
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
    """Output of the text conditioner for B prompts.

    Attributes:
        video: (B, S, ·), context of the video stream.
        audio: (B, S, ·), context of the audio stream.
        mask: (B, S), or None where every slot is attended.
    """

    video: Tensor
    audio: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class SampleStream:
    """One stream to sample.

    Attributes:
        positions: (B, n, T, 2) float32.
        channels: C.
        clean: (B, T, C), given tokens or the result of a first stage; None to start from pure noise.
        denoise: (B, T) in [0, 1], 1 where a token is sampled, 0 where the token of `clean` is given; None for all 1.
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
            raise ValueError("a denoise mask needs the clean tokens that it keeps")
        if self.denoise is not None and tuple(self.denoise.shape) != (batch, tokens):
            raise ValueError(f"denoise mask is {tuple(self.denoise.shape)}; expected {(batch, tokens)}")

    def start(self, sigma: float, generator: torch.Generator | None) -> Tensor:
        """Return the state at the first σ: noise times σ, or the clean tokens with noise added.

        Args:
            sigma: first σ of the schedule.
            generator: draws the noise, on its device; None for the device of the positions.

        Returns:
            (B, T, C) float32.
        """
        batch, _, tokens, _ = self.positions.shape
        place = generator.device if generator is not None else self.positions.device
        noise = torch.randn(batch, tokens, self.channels, generator=generator, device=place).to(self.positions.device)
        if self.clean is None:
            return noise * sigma
        return add_noise(self.clean.float(), noise, self.timesteps(sigma))

    def timesteps(self, sigma: float) -> Tensor:
        """Return σ of each token at a step of the schedule, (B, T); an expanded view where all tokens are sampled."""
        batch, _, tokens, _ = self.positions.shape
        if self.denoise is None:
            return torch.full((batch, 1), sigma, device=self.positions.device).expand(batch, tokens)
        return self.denoise.float() * sigma

    def settle(self, x0: Tensor) -> Tensor:
        """Return the prediction x₀ (B, T, C) with the given tokens put back: `denoise`·x₀ + (1 − `denoise`)·`clean`."""
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
    """Sample one stream or both, from the first σ of the schedule to the last.

    Args:
        transformer: the denoiser.
        video: the video to sample; None for audio alone.
        audio: the audio to sample; None for video alone.
        context: contexts of the prompts.
        negative: contexts of the negative prompts, needed for text guidance; in the shapes of `context`.
        schedule: falling σ, the last usually 0 (see `model.flow.inference_schedule`).
        guidance: strengths and perturbed blocks.
        generator: draws the noise of the video, then that of the audio.
        on_step: called after each step with the steps done and the number of steps.

    Returns:
        Tokens (B, T, C) float32 of video and audio, None for a stream that is None.

    Raises:
        ValueError: there is no stream, the schedule does not fall, text guidance has no negative context, or the
            contexts differ in shape.
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
    """Build the input of the transformer for one stream in one step, at batch P·B.

    Args:
        stream: the stream.
        state: (B, T, C), tokens at σ; repeated for each pass.
        sigma: σ of the step.
        text: (P·B, S, ·), contexts of all passes.
        mask: (P·B, S), context mask of all passes, or None.
        passes: P.
    """
    batch, tokens, _ = state.shape
    # Where samples agree, expand a view of one row: AdaLN and the rotary cache then compute that row only.
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
        # σ of the noisiest token, as in training: the other stream sees a fully given stream as clean.
        sigma=timesteps.amax(1),
        positions=positions[:1].expand(passes * batch, -1, -1, -1) if alike else positions.repeat(passes, 1, 1, 1),
        context=text,
        context_mask=mask,
    )


def _contexts_of_passes(
    context: TextContext, negative: TextContext | None, passes: tuple[GuidancePass, ...]
) -> TextContext:
    """Concatenate the contexts of all passes along the batch → P·B samples.

    The pass "unconditional" gets the negative context, the others the conditional one. Raises ValueError where the
    negative context is needed and missing, or of another shape.
    """
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
