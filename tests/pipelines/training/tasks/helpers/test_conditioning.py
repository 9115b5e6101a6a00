"""Conditioning: the tokens that each kind gives; given tokens stay clean and have no part in the loss."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

import model
from data_prep.loading.batch_plan import MicroBatch
from model.flow import velocity_target
from model.modality import Modality, audio_positions, patchify_audio, patchify_video, video_positions
from pipelines.training.settings import ConditioningSettings, TrainSettings
from pipelines.training.tasks.dit import DiTTask
from pipelines.training.tasks.helpers import diffusion
from pipelines.training.tasks.helpers.conditioning import draw_given
from pipelines.training.tasks.helpers.diffusion import freeze, token_error
from tests.pipelines.training.support.encoded_set import write_encoded_set

KINDS = tuple(ConditioningSettings.model_fields)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))


def drawn(kind: str, shape: tuple[int, ...], audio: int, fps: float, seed: int) -> tuple[Tensor, Tensor]:
    settings = ConditioningSettings.model_validate({kind: 1.0})
    f, h, w = shape
    video, sound = draw_given(settings, torch.Generator().manual_seed(seed), (f, h, w), audio, fps)
    assert (video.shape, sound.shape) == ((f * h * w,), (audio,))
    assert video.dtype == sound.dtype == torch.bool
    return video.view(shape), sound


@examples(shapes, st.integers(1, 60), st.sampled_from([12.0, 24.0, 25.0, 30.0]), st.integers(0, 1000))
def test_extensions_give_frames_and_their_sound(shape, audio, fps, seed):
    f = shape[0]
    seconds = video_positions(shape[0], shape[1], shape[2], fps)[0, 0].view(*shape, 2)[:, 0, 0]
    sound_s = audio_positions(audio)[0, 0]
    for kind in ("extend_forward", "extend_backward"):
        video, sound = drawn(kind, shape, audio, fps, seed)
        frames = video.flatten(1).any(1)
        assert torch.equal(frames, video.flatten(1).all(1))  # complete frames are given
        if f == 1:
            assert not video.any()
            assert not sound.any()
            continue
        count = int(frames.sum())
        assert 1 <= count < f
        if kind == "extend_forward":
            assert frames[:count].all()
            limit = seconds[count - 1, 1]
            assert torch.equal(sound, sound_s[:, 1] <= limit + 1e-4)
        else:
            assert frames[-count:].all()
            limit = seconds[f - count, 0]
            assert torch.equal(sound, sound_s[:, 0] >= limit - 1e-4)


@examples(shapes, st.integers(0, 1000))
def test_rectangles_give_the_same_part_of_every_frame_and_leave_some(shape, seed):
    for kind in ("inpaint", "outpaint"):
        video, sound = drawn(kind, shape, 5, 24.0, seed)
        assert not sound.any()
        assert (video == video[:1]).all()
        if shape[1] * shape[2] == 1:
            assert not video.any()
            continue
        assert 0 < int(video[0].sum()) < shape[1] * shape[2]
        inside = ~video[0] if kind == "inpaint" else video[0]
        rows, columns = inside.any(1), inside.any(0)
        assert int(inside.sum()) == int(rows.sum()) * int(columns.sum())  # a rectangle …
        for line in (rows, columns):
            assert int(line.diff().sum()) <= 2  # … of neighbours


@examples(shapes, st.integers(1, 30), st.integers(0, 1000))
def test_first_frame_and_whole_streams(shape, audio, seed):
    video, sound = drawn("first_frame", shape, audio, 24.0, seed)
    assert bool(video[0].all()) == (shape[0] > 1)
    assert not video[1:].any()
    assert not sound.any()
    video, sound = drawn("audio_to_video", shape, audio, 24.0, seed)
    assert sound.all()
    assert not video.any()
    video, sound = drawn("video_to_audio", shape, audio, 24.0, seed)
    assert video.all()
    assert not sound.any()


def test_kinds_come_as_often_as_the_settings_say():
    settings = ConditioningSettings(first_frame=0.2, extend_forward=0.1, audio_to_video=0.3)
    seen: Counter[str] = Counter()
    for seed in range(2000):
        video, sound = draw_given(settings, torch.Generator().manual_seed(seed), (3, 2, 2), 12, 24.0)
        kind = "audio" if sound.all() else "extend" if sound.any() else "first" if video.any() else "none"
        seen[kind] += 1
    # An extension of one frame of 1/24 s holds one audio latent of 10 ms.
    for kind, part in {"first": 0.2, "extend": 0.1, "audio": 0.3, "none": 0.4}.items():
        assert seen[kind] / 2000 == pytest.approx(part, abs=0.04), kind
    with pytest.raises(ValidationError, match=r"add up to 1\.2; lower them"):
        ConditioningSettings(first_frame=0.7, inpaint=0.5)


class Recorder(nn.Module):
    """A transformer that returns fixed outputs and records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.config = model.preset("tiny").transformer
        self.out: dict[str, Tensor] = {}
        self.seen: dict[str, Modality] = {}

    def set_activation_checkpointing(self, every: int) -> None:
        assert every == 0  # there is nothing to recompute here

    def forward(self, video: Modality, audio: Modality, skip: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = {"video": video, "audio": audio}
        if not self.out:
            g = torch.Generator().manual_seed(5)
            self.out = {
                name: torch.randn(stream.latent.shape, generator=g).requires_grad_()
                for name, stream in self.seen.items()
            }
        return self.out["video"], self.out["audio"]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoded_set(tmp_path_factory.mktemp("conditioned") / "set")


@pytest.fixture(scope="module")
def components() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return model.build("tiny", components=["transformer", "text_conditioner"]).components


def made(
    encoded: Path, components: dict[str, nn.Module], conditioning: dict[str, float], **dit: Any
) -> tuple[Any, Any]:
    section = {"conditioning": conditioning, **dit}
    task = DiTTask(TrainSettings.model_validate({"input": str(encoded), "dit": section}))
    return task.build(dict(components)), task.dataset().batch(MicroBatch((0, 1, 2, 3), (1.0,) * 4), 0).to("cpu")


@hypothesis_settings(max_examples=20)
@examples(st.sampled_from(KINDS), st.integers(0, 10_000))
def test_given_tokens_are_untouched_and_out_of_the_loss(encoded, components, kind, step):
    trainee, batch = made(encoded, {**components, "transformer": Recorder()}, {kind: 0.7})
    loss, means = trainee(batch, step)
    loss.backward()
    recorder = trainee.transformer
    x0 = {"video": patchify_video(batch.video_latent), "audio": patchify_audio(batch.audio_latent)}
    masks = trainee._given(batch, step)
    expected = 0.0
    for name, stream in recorder.seen.items():
        mask = masks.get(name, torch.zeros(x0[name].shape[:2], dtype=torch.bool))
        assert torch.equal(stream.latent[mask], x0[name][mask])
        timesteps = stream.timesteps.expand(mask.shape)
        assert not timesteps[mask].any()
        assert torch.equal(stream.sigma, timesteps.amax(1))
        assert (timesteps == torch.where(mask, 0.0, stream.sigma[:, None])).all()
        assert (stream.latent[~mask] != x0[name][~mask]).any(dim=-1).all()  # the others are noisy
        gradient = recorder.out[name].grad
        assert not gradient[mask].any()
        assert gradient[~mask].any(dim=-1).all()
        # Compute the same per sample and per token.
        noise = diffusion.noise_like(x0[name], 0, batch.ids, step, f"{name}-noise")
        target = velocity_target(x0[name], noise)
        errors = []
        for b in range(len(mask)):
            tokens = [
                (recorder.out[name][b, t] - target[b, t]).square().mean()
                for t in range(mask.shape[1])
                if not mask[b, t]
            ]
            errors.append(torch.stack(tokens).mean() if tokens else torch.zeros(()))
        expected = expected + torch.stack(errors).mean()
        total, count = means[f"loss/{name}"]
        assert int(count) == int((~mask).any(1).sum())
        torch.testing.assert_close(total, torch.stack(errors).sum(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["first_frame", "outpaint", "audio_to_video"])
def test_the_gradient_does_not_depend_on_the_noise_of_given_tokens(encoded, components, kind, monkeypatch):
    def gradients(change: bool) -> list[Tensor]:
        trainee, batch = made(encoded, components, {kind: 1.0})
        plain = diffusion.noise_like

        def spoilt(x: Tensor, seed: int, ids: Any, step: int, purpose: str) -> Tensor:
            noise = plain(x, seed, ids, step, purpose)
            masks = trainee._given(batch, step)
            name = purpose.removesuffix("-noise")
            return noise.masked_fill(masks[name][..., None], 1e3) if change and name in masks else noise

        monkeypatch.setattr(diffusion, "noise_like", spoilt)
        trainee.zero_grad()
        # A new transformer returns zeros, which block the gradient.
        nn.init.ones_(trainee.transformer.proj_out.weight)
        nn.init.ones_(trainee.transformer.audio_proj_out.weight)
        trainee(batch, 3)[0].backward()
        monkeypatch.setattr(diffusion, "noise_like", plain)
        return [p.grad.clone() for p in trainee.parameters() if p.grad is not None]

    plain, spoilt = gradients(False), gradients(True)
    assert len(plain) > 100
    assert all(torch.equal(a, b) for a, b in zip(plain, spoilt, strict=True))


def test_without_conditioning_a_sample_has_one_timestep(encoded, components):
    trainee, batch = made(encoded, {**components, "transformer": Recorder()}, {})
    trainee(batch, 0)
    assert {stream.timesteps.shape for stream in trainee.transformer.seen.values()} == {(4, 1)}


def test_token_error_without_given_tokens_is_the_mean():
    a, b = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    torch.testing.assert_close(token_error(a, b, nothing), token_error(a, b, None))
    assert token_error(a.masked_fill(~nothing[..., None], torch.inf), b, ~nothing).tolist() == [0.0, 0.0]


def test_frozen_parts_by_name(encoded, components):
    trainee, _ = made(encoded, components, {}, frozen=["transformer.audio_*", "*.bias"])
    projection = "text_conditioner.text_embedding_projection."
    for name, parameter in trainee.named_parameters():
        frozen = name.startswith(("transformer.audio_", projection)) or name.endswith(".bias")
        assert parameter.requires_grad == (not frozen), name
        parameter.requires_grad_(True)
    with pytest.raises(ValueError, match=r"'transformer\.vidio_\*' fits no parameter"):
        freeze(nn.ModuleDict(components), ("transformer.vidio_*",))
    with pytest.raises(ValueError, match="leave nothing to train"):
        freeze(nn.ModuleDict(components), ("*",))
    for parameter in nn.ModuleDict(components).parameters():
        parameter.requires_grad_(True)
