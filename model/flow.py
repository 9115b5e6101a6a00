"""Flow matching: the straight path from data to noise, the distribution of σ in training, σ schedules for sampling.

x_σ = (1 − σ)·x₀ + σ·ε; the model predicts the velocity ε − x₀ (rectified flow, arXiv 2209.03003 eq. 1). Training σ are
logit-normal. Their mean grows with the number of tokens, because more tokens need more noise to hide the same image
(arXiv 2403.03206 §3.1 and §5.3.2; the constants are LTX's).

Shapes: B batch, T tokens, C channels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BASE_TOKENS, MAX_TOKENS = 1024, 4096
BASE_SHIFT, MAX_SHIFT = 0.95, 2.05
TERMINAL_SIGMA = 0.1

# Published σ schedules of the distilled model: for one stage from pure noise, and for a second stage that refines
# an upscaled latent.
DISTILLED_SCHEDULE = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
SECOND_STAGE_SCHEDULE = (0.909375, 0.725, 0.421875, 0.0)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Compute x_σ = (1 − σ)·x₀ + σ·ε.

    Args:
        x0: (B, …).
        noise: ε, in the shape of x0.
        sigma: (B,) per sample or (B, T) per token: the leading dimensions of x0.

    Returns:
        x_σ in the shape and type of x0.

    Raises:
        ValueError: the dimensions of `sigma` do not lead those of x0.
    """
    sigma = _broadcast(sigma, x0)
    return ((1 - sigma) * x0 + sigma * noise).to(x0.dtype)


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity ε − x₀, which the model learns to predict."""
    return noise - x0


def denoised(x_sigma: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Return the x₀ that velocity v at σ implies, x_σ − σ·v, in float32; raises ValueError as `add_noise` does."""
    return x_sigma.float() - _broadcast(sigma, x_sigma) * velocity.float()


def _broadcast(sigma: Tensor, like: Tensor) -> Tensor:
    """Return σ in float32 with trailing axes of size 1, so that it broadcasts to `like`.

    Raises ValueError where its dimensions do not lead those of `like`.
    """
    if sigma.ndim > like.ndim or any(s not in (1, x) for s, x in zip(sigma.shape, like.shape, strict=False)):
        raise ValueError(f"sigma {tuple(sigma.shape)} does not lead {tuple(like.shape)}")
    return sigma.float()[(...,) + (None,) * (like.ndim - sigma.ndim)]


def token_shift(tokens: int, *, clamp: bool) -> float:
    """Return the mean of the logit of σ: linear in the number of tokens, 0.95 at 1024 and 2.05 at 4096.

    Args:
        tokens: of the stream.
        clamp: keep the mean constant outside 1024 to 4096 tokens.
    """
    if clamp:
        tokens = min(max(tokens, BASE_TOKENS), MAX_TOKENS)
    return BASE_SHIFT + (tokens - BASE_TOKENS) * (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)


@dataclass(frozen=True)
class TrainingSigma:
    """The distribution of training σ.

    A draw is sigmoid(N(shift(tokens), std)), stretched so that its 0.5 % and 99.9 % quantiles become 0 and 1, reflected
    at `floor` and cut at 1. A share of uniform draws makes every σ occur.

    Attributes:
        std: standard deviation of the normal.
        uniform_share: probability of a uniform draw from [floor, 1].
        floor: smallest σ.
        clamp_tokens: keep the shift constant outside 1024 to 4096 tokens, so that training and inference agree.
        coupling: "independent" draws one σ per stream; "shared" gives the audio the σ of the video.
    """

    std: float = 1.0
    uniform_share: float = 0.1
    floor: float = 1e-3
    clamp_tokens: bool = True
    coupling: Literal["independent", "shared"] = "independent"

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"training sigma: std {self.std} must be positive")
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"training sigma: uniform_share {self.uniform_share} must be in [0, 1]")
        if not 0 <= self.floor < 0.5:
            raise ValueError(f"training sigma: floor {self.floor} must be in [0, 0.5)")
        if self.coupling not in ("independent", "shared"):
            raise ValueError(f"training sigma: coupling {self.coupling!r} must be 'independent' or 'shared'")

    def sample(self, batch: int, tokens: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw σ for a stream.

        Args:
            batch: B.
            tokens: of the stream.
            generator: None for torch's default generator on the CPU.

        Returns:
            (B,) float32 on the generator's device.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        shift = token_shift(tokens, clamp=self.clamp_tokens)
        normal = torch.randn(batch, generator=generator, device=device)
        uniform = torch.rand(batch, generator=generator, device=device)
        choice = torch.rand(batch, generator=generator, device=device)
        low, high = (1 / (1 + math.exp(-(shift + z * self.std))) for z in (_Z_005, _Z_999))
        stretched = (torch.sigmoid(normal * self.std + shift) - low) / (high - low)
        reflected = torch.where(stretched < self.floor, 2 * self.floor - stretched, stretched).clamp(max=1.0)
        return torch.where(choice < self.uniform_share, self.floor + (1 - self.floor) * uniform, reflected)

    def sample_pair(
        self, batch: int, video_tokens: int, audio_tokens: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw σ of video and of audio, each (B,), coupled as `coupling` says; see `sample`."""
        video = self.sample(batch, video_tokens, generator)
        return video, video if self.coupling == "shared" else self.sample(batch, audio_tokens, generator)


_Z_005, _Z_999 = -2.5758, 3.0902  # standard normal quantiles at 0.5 % and 99.9 %


def inference_schedule(steps: int, tokens: int = MAX_TOKENS, terminal: float = TERMINAL_SIGMA) -> Tensor:
    """Return the schedule of σ for sampling.

    The σ are evenly spaced, shifted by `token_shift(tokens)` without clamping, and stretched so that the last one
    before 0 is `terminal`. One step gives (1, 0).

    Args:
        steps: number of steps.
        tokens: number of tokens of the stream; the published pipelines use 4096 for any size.
        terminal: last σ before 0.

    Returns:
        (steps + 1,) float32, from 1 to 0.

    Raises:
        ValueError: `steps` is below 1, or `terminal` is not between 0 and 1.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step; got {steps}")
    if not 0 < terminal < 1:
        raise ValueError(f"terminal sigma must be in (0, 1); got {terminal}")
    sigmas = torch.linspace(1.0, 0.0, steps + 1)
    shift = math.exp(token_shift(tokens, clamp=False))
    shifted = 1 / (1 + (1 / sigmas[:-1] - 1) / shift)
    if steps > 1:
        kept = 1 - shifted
        shifted = 1 - kept / (kept[-1] / (1 - terminal))
    return torch.cat([shifted, sigmas[-1:]])
