"""Random draws of a task: functions of (seed, sample id, step), never of the rank."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, sample_id: str, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator for the draws of a sample at a step: its seed is a hash of (seed, sample_id, step)."""
    digest = hashlib.sha256(f"{seed}\0{sample_id}\0{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def noise_like(x: Tensor, seed: int, ids: Sequence[str], step: int, purpose: str = "noise") -> Tensor:
    """Draw standard normal noise of the shape and dtype of x, with a generator per sample.

    Args:
        x: (B, …).
        seed: of the run.
        ids: the B sample ids.
        step: training step.
        purpose: a name for the draw; two draws for one sample and step need different names.
    """
    draws = [
        torch.randn(x.shape[1:], generator=generator(seed, f"{sample_id}/{purpose}", step, x.device), device=x.device)
        for sample_id in ids
    ]
    return torch.stack(draws).to(x.dtype)
