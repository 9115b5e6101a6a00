"""Flow matching: the straight path between data and noise, and how σ is drawn in training and stepped in sampling.

x_σ = (1 − σ)·x₀ + σ·ε; the model predicts the velocity ε − x₀. Training σ are logit-normal with a mean that grows
with the number of tokens, for more tokens need more noise to hide the same image (arXiv 2403.03206 §5.3.2; constants
of LTX).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BASE_TOKENS, MAX_TOKENS = 1024, 4096
BASE_SHIFT, MAX_SHIFT = 0.95, 2.05
TERMINAL_SIGMA = 0.1

# Published schedules of the distilled model: in one stage, and the second (upscaled) of two.
DISTILLED_SCHEDULE = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
SECOND_STAGE_SCHEDULE = (0.909375, 0.725, 0.421875, 0.0)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """(1 − σ)·x₀ + σ·ε. `sigma` has the leading dimensions of x0: (B,) per sample or (B, T) per token."""
    sigma = _broadcast(sigma, x0)
    return ((1 - sigma) * x0 + sigma * noise).to(x0.dtype)


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """ε − x₀, what the model learns to predict."""
    return noise - x0


def denoised(x_sigma: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x₀ that a velocity at σ points to: x_σ − σ·v, float32."""
    return x_sigma.float() - _broadcast(sigma, x_sigma) * velocity.float()


def _broadcast(sigma: Tensor, like: Tensor) -> Tensor:
    if sigma.ndim > like.ndim or any(s not in (1, x) for s, x in zip(sigma.shape, like.shape, strict=False)):
        raise ValueError(f"sigma {tuple(sigma.shape)} does not lead {tuple(like.shape)}")
    return sigma.float()[(...,) + (None,) * (like.ndim - sigma.ndim)]


def token_shift(tokens: int, *, clamp: bool) -> float:
    """Mean of the logit-normal: linear from 0.95 at 1024 tokens to 2.05 at 4096, held outside when `clamp`."""
    if clamp:
        tokens = min(max(tokens, BASE_TOKENS), MAX_TOKENS)
    return BASE_SHIFT + (tokens - BASE_TOKENS) * (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)


@dataclass(frozen=True)
class TrainingSigma:
    """The distribution of training σ.

    sigmoid(N(shift(tokens), std)), stretched so that its 0.5 % and 99.9 % quantiles fall on 0 and 1, reflected at
    `floor`, cut at 1, and mixed with a uniform share that keeps every σ trained.

    Attributes:
        std: of the normal.
        uniform_share: probability of a uniform draw from [floor, 1].
        floor: smallest σ.
        clamp_tokens: hold the shift outside 1024 to 4096 tokens, so that training and inference agree.
        coupling: each stream draws its own σ ("independent"), or audio takes the video's ("shared").
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
        """(batch,) float32 σ for a stream of `tokens` tokens, on the generator's device (default: CPU)."""
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
        """(σ of video, σ of audio), each (batch,), as `coupling` says."""
        video = self.sample(batch, video_tokens, generator)
        return video, video if self.coupling == "shared" else self.sample(batch, audio_tokens, generator)


_Z_005, _Z_999 = -2.5758, 3.0902  # standard normal quantiles at 0.5 % and 99.9 %


def inference_schedule(steps: int, tokens: int = MAX_TOKENS, terminal: float = TERMINAL_SIGMA) -> Tensor:
    """(steps + 1,) float32 σ from 1 to 0: evenly spaced, shifted by `token_shift(tokens)` unclamped, and stretched so
    that the last σ before 0 is `terminal`. The published pipelines shift at 4096 tokens whatever the size.

    With one step the schedule is (1, 0).
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
