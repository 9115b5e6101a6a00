"""Conditioning by per-token timesteps: which tokens of a sample are given clean, so that the model generates the rest.

A given token enters without noise, with σ = 0, and has no loss (as LTX-Video conditions on images, arXiv 2501.00103).
A sample has at most one kind of conditioning, drawn with the probabilities of the settings:

    first frame       the first latent frame, which is one pixel frame
    extension         some of the first (forward) or last (backward) latent frames, with their sound
    inpainting        the picture outside a rectangle that is the same in all frames
    outpainting       the picture inside such a rectangle
    audio to video    all audio tokens
    video to audio    all video tokens

A sample that is too small for its kind (one latent frame, one latent pixel) has no given tokens. The latents come from
a causal encoder, so a later latent depends on earlier frames: in a backward extension, the given latents contain a
little of what the model must generate.
"""

import torch
from torch import Tensor

from model.modality import audio_positions, video_positions
from pipelines.training.settings import ConditioningSettings


def draw_given(
    settings: ConditioningSettings, draw: torch.Generator, shape: tuple[int, int, int], audio_tokens: int, fps: float
) -> tuple[Tensor, Tensor]:
    """Draw the given tokens of one sample.

    Args:
        settings: the probability of each kind.
        draw: the sample's random generator, on the CPU.
        shape: f, h, w of the video latent.
        audio_tokens: number of audio tokens.
        fps: frames per second; an extension's sound covers the time of its frames.

    Returns:
        Two masks, bool (f·h·w,) for video and (audio_tokens,) for audio; True for a given token.
    """
    f, h, w = shape
    video, audio = torch.zeros(f, h, w, dtype=torch.bool), torch.zeros(audio_tokens, dtype=torch.bool)
    kind = _kind(settings, float(torch.rand((), generator=draw)))
    if kind == "first_frame" and f > 1:
        video[0] = True
    elif kind == "extend_forward" and f > 1:
        frames = _between(1, f - 1, draw)
        video[:frames] = True
        audio = audio_positions(audio_tokens)[0, 0, :, 1] <= _time_s(shape, fps)[frames - 1, 1] + _SLACK_S
    elif kind == "extend_backward" and f > 1:
        frames = _between(1, f - 1, draw)
        video[f - frames :] = True
        audio = audio_positions(audio_tokens)[0, 0, :, 0] >= _time_s(shape, fps)[f - frames, 0] - _SLACK_S
    elif kind in ("inpaint", "outpaint") and h * w > 1:
        video[:, *_rectangle(h, w, draw)] = True
        video = ~video if kind == "inpaint" else video
    elif kind == "audio_to_video":
        audio[:] = True
    elif kind == "video_to_audio":
        video[:] = True
    return video.flatten(), audio


_SLACK_S = 1e-4  # tolerance for comparing start and end times of tokens, which are rounded to float32


def _kind(settings: ConditioningSettings, u: float) -> str:
    """Return the kind of conditioning for u, drawn uniformly from [0, 1), or "" for none.

    Each kind has its probability of the settings.
    """
    for name, probability in settings:
        if u < probability:
            return name
        u -= probability
    return ""


def _between(low: int, high: int, draw: torch.Generator) -> int:
    """Draw an integer from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=draw))


def _time_s(shape: tuple[int, int, int], fps: float) -> Tensor:
    """Return (f, 2): start and end of each latent frame, seconds."""
    f, h, w = shape
    return video_positions(f, h, w, fps)[0, 0].view(f, h * w, 2)[:, 0]


def _rectangle(h: int, w: int, draw: torch.Generator) -> tuple[slice, slice]:
    """Draw a rectangle with at least one latent pixel, but not all; return its rows and its columns."""
    height, width = _between(1, h, draw), _between(1, w, draw)
    if (height, width) == (h, w):
        height, width = (h - 1, w) if h > 1 else (h, w - 1)
    top, left = _between(0, h - height, draw), _between(0, w - width, draw)
    return slice(top, top + height), slice(left, left + width)
