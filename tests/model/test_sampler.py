"""The sampler follows a known flow to its end, batches guidance passes exactly, and keeps given tokens."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from model.flow import denoised, inference_schedule
from model.guidance import Guidance, GuidanceScales, guide
from model.modality import Modality, audio_positions, video_positions
from model.sampler import SampleStream, TextContext, sample
from model.transformer import DualStreamTransformer
from tests.model.test_transformer import TINY_2_0, make

GUIDANCE = Guidance(GuidanceScales(), GuidanceScales(text=7.0), stg_blocks=(1,))


def streams(batch: int = 1) -> tuple[SampleStream, SampleStream]:
    return (
        SampleStream(video_positions(2, 2, 3, 24.0, batch=batch), channels=8),
        SampleStream(audio_positions(5, batch=batch), channels=8),
    )


def text(seed: int, batch: int = 1) -> TextContext:
    generator = torch.Generator().manual_seed(seed)
    return TextContext(*(torch.randn(batch, 7, 24, generator=generator) for _ in range(2)))


class TowardsTarget:
    """A perfect denoiser: its velocity points from any state to one target."""

    def __init__(self, video: Tensor, audio: Tensor):
        self.targets = (video, audio)

    def __call__(self, video: Modality, audio: Modality, **_: Any) -> tuple[Tensor, Tensor]:
        first, second = (
            (m.latent - target) / m.timesteps.clamp(min=1e-6).unsqueeze(-1)
            for m, target in zip((video, audio), self.targets, strict=True)
        )
        return first, second


@pytest.mark.parametrize("steps", [1, 4])
def test_a_perfect_denoiser_is_followed_to_its_target(steps: int) -> None:
    targets = torch.randn(1, 12, 8), torch.randn(1, 5, 8)
    video, audio = streams()
    found = sample(
        cast(DualStreamTransformer, TowardsTarget(*targets)),
        video=video, audio=audio, context=text(0), schedule=inference_schedule(steps),
    )  # fmt: skip
    for ours, target in zip(found, targets, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, target, atol=1e-5, rtol=0)


def test_four_batched_passes_equal_four_single_ones() -> None:
    model = make(TINY_2_0)
    video, audio = streams(batch=2)
    context, negative = text(0, 2), text(1, 2)
    schedule = [1.0, 0.6, 0.2]
    found = sample(
        model, video=video, audio=audio, context=context, negative=negative, schedule=schedule, guidance=GUIDANCE,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip

    generator = torch.Generator().manual_seed(0)
    states = [stream.start(1.0, generator) for stream in (video, audio)]
    for sigma, after in ((1.0, 0.6), (0.6, 0.2)):
        outs = {}
        for name, prompt, options in (
            ("conditional", context, {}),
            ("unconditional", negative, {}),
            ("perturbed", context, {"stg_blocks": (1,)}),
            ("isolated", context, {"skip_cross_modal": True}),
        ):
            inputs = [
                Modality(
                    state, torch.full((2, state.shape[1]), sigma), torch.full((2,), sigma), stream.positions, words
                )
                for state, stream, words in zip(states, (video, audio), (prompt.video, prompt.audio), strict=True)
            ]
            with torch.no_grad():
                outs[name] = model(*inputs, **options)
        for index, scales in enumerate((GUIDANCE.video, GUIDANCE.audio)):
            x0 = guide(
                {name: denoised(states[index], out[index], torch.full((2,), sigma)) for name, out in outs.items()},
                scales,
            )
            velocity = (states[index] - x0) / sigma
            states[index] = states[index] + (after - sigma) * velocity
    for ours, expected in zip(found, states, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_given_tokens_stay_and_are_seen_as_clean() -> None:
    model = make(TINY_2_0)
    video, audio = streams()
    clean = torch.randn(1, 12, 8)
    denoise = torch.ones(1, 12)
    denoise[:, :6] = 0
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].timesteps[0]))
    found, _ = sample(
        model, video=replace(video, clean=clean, denoise=denoise), audio=audio, context=text(0), schedule=[1, 0.5, 0]
    )
    assert found is not None
    torch.testing.assert_close(found[:, :6], clean[:, :6])
    assert (found[:, 6:] - clean[:, 6:]).abs().mean() > 0.1
    assert seen[1].tolist() == [0.0] * 6 + [0.5] * 6


def test_second_stage_starts_from_the_first() -> None:
    video, _ = streams()
    clean = torch.randn(1, 12, 8)
    start = replace(video, clean=clean).start(0.9, torch.Generator().manual_seed(0))
    noise = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(start, 0.1 * clean + 0.9 * noise)


def test_one_stream_alone_and_progress() -> None:
    model = make(TINY_2_0)
    _, audio = streams()
    done = []
    found = sample(
        model, video=None, audio=audio, context=text(0), negative=text(1), schedule=[1, 0.5, 0], guidance=GUIDANCE,
        generator=torch.Generator().manual_seed(0), on_step=lambda *step: done.append(step),
    )  # fmt: skip
    assert found[0] is None
    assert found[1] is not None
    assert done == [(1, 2), (2, 2)]


def test_refuses() -> None:
    model = make(TINY_2_0)
    video, audio = streams()
    both: dict[str, Any] = {"video": video, "audio": audio, "context": text(0)}
    with pytest.raises(ValueError, match="falling"):
        sample(model, schedule=[0.5, 1.0], **both)
    with pytest.raises(ValueError, match="negative prompt"):
        sample(model, schedule=[1, 0], guidance=GUIDANCE, **both)
    with pytest.raises(ValueError, match="give the sampler"):
        sample(model, video=None, audio=None, context=text(0), schedule=[1, 0])
    short = TextContext(torch.randn(1, 5, 24), torch.randn(1, 5, 24))
    with pytest.raises(ValueError, match="differ in shape"):
        sample(model, schedule=[1, 0], guidance=GUIDANCE, negative=short, **both)
    with pytest.raises(ValueError, match="needs the clean tokens"):
        replace(video, denoise=torch.ones(1, 12))
