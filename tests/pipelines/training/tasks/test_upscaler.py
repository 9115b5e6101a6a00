"""Task upscaler: latents of one crop at two resolutions, a frozen VAE, and an upscaler that learns between them."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import model
from data_prep.loading.batch_plan import MicroBatch
from model import weights
from model.upscaler import UpscalerConfig
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.helpers.clips import PixelBatch
from pipelines.training.tasks.upscaler import SCALES, UpscalerTask, UpscalerTrainee, scaled_down
from tests.pipelines.training.support.curated_set import write_curated_set
from tests.pipelines.training.support.training_runs import changed, learn, mistake, state

CPU = torch.device("cpu")
# scale → frames and size of the smallest crop, frames and size of its low version
CROPS = {"x2": (9, 64, 9, 32), "x1.5": (9, 96, 9, 64), "temporal-x2": (17, 64, 9, 64)}


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_curated_set(tmp_path_factory.mktemp("upscaled"), [(192, 128)] * 3)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(2)
    built = model.build("tiny", components=["video_vae"])
    built.video_vae.set_statistics(torch.linspace(-0.5, 0.5, 32), torch.linspace(0.5, 2, 32))
    weights.save(built, folder)
    return folder


def settings(curated: str, *given: Path, scale: str = "x2", **section: Any) -> TrainSettings:
    frames, size, *_ = CROPS[scale]
    own = {"scale": scale, "crop_frames": frames, "crop_size": size, **section}
    return TrainSettings.model_validate(
        {"input": curated, "init_from": [str(folder) for folder in given], "upscaler": own}
    )


def made(
    curated: str, vae: Path, scale: str = "x2", **section: Any
) -> tuple[UpscalerTask, UpscalerTrainee, PixelBatch]:
    task = UpscalerTask(settings(curated, vae, scale=scale, **section))
    torch.manual_seed(0)
    components = {
        "upscaler": model.build_component(task.config("upscaler", {})),
        "video_vae": weights.load_component(vae, "video_vae"),
    }
    return task, task.build(components), task.dataset().batch(MicroBatch((0, 1), (1.0, 1.0)), 0)


@pytest.mark.parametrize("scale", SCALES)
def test_what_is_made_has_the_size_of_the_crops_latent(curated, vae, scale):
    task, trainee, batch = made(curated, vae, scale)
    _, _, frames, size = CROPS[scale]
    low = scaled_down(batch.pixels, task.scale)
    assert low.shape == (2, 3, frames, size, size)
    with torch.no_grad():
        latents = [trainee.vae.on(CPU).encode_distribution(x)[0] for x in (low, batch.pixels)]
        assert trainee.upscaler(latents[0]).shape == latents[1].shape
    assert task.flops(trainee, batch) > 0


def test_the_low_version_is_the_same_picture():
    # A linear ramp of brightness is the same at any resolution, except at its edges.
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    high = torch.stack([y, x, 0.5 * (x + y)])[None, :, None].expand(1, 3, 9, 96, 96)
    for name, size in (("x2", 48), ("x1.5", 64)):
        low = scaled_down(high, SCALES[name])
        expected = torch.nn.functional.interpolate(high[:, :, 0], size, mode="area")
        inner = (..., slice(4, -4), slice(4, -4))
        torch.testing.assert_close(low[:, :, 0][inner], expected[inner], atol=0.02, rtol=0)
    frames = torch.arange(17.0).view(1, 1, 17, 1, 1).expand(1, 3, 17, 4, 4)
    assert scaled_down(frames, SCALES["temporal-x2"])[0, 0, :, 0, 0].tolist() == list(range(0, 17, 2))


def test_the_losses_are_what_they_are_called(curated, vae):
    _, trainee, batch = made(curated, vae, latent=2.0, decoded=3.0)
    loss, means = trainee(batch, 0)
    with torch.no_grad():
        low = trainee.vae.on(CPU).encode(scaled_down(batch.pixels, SCALES["x2"]))
        ours, theirs = trainee.upscaler.upscale(low, trainee.vae.on(CPU)), trainee.vae.on(CPU).encode(batch.pixels)
        latent = (ours - theirs).abs().mean()
        decoded = (trainee.vae.on(CPU).decode(ours) - batch.pixels).abs().mean()
    torch.testing.assert_close(means["loss/latent"][0] / 2, latent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means["loss/decoded"][0] / 2, decoded, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, 2 * latent + 3 * decoded, rtol=1e-4, atol=1e-5)
    alone, means = made(curated, vae, decoded=0.0)[1](batch, 0)
    assert "loss/decoded" not in means
    torch.testing.assert_close(alone, latent, rtol=1e-4, atol=1e-5)


def test_the_loss_falls_and_the_vae_stays_to_the_bit(curated, vae):
    _, trainee, batch = made(curated, vae)
    before, held = state(trainee), state(trainee.vae.on(CPU))
    losses = learn(trainee, batch, 12)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert not changed(trainee.vae.on(CPU), held)
    assert changed(trainee, before) == set(before)
    assert all(name.startswith("upscaler.") for name in before)


def test_mistakes_are_named_before_a_worker_starts(curated, vae, tmp_path):
    refused = partial(mistake, "upscaler", output=tmp_path / "output")
    assert "init_from gives no video_vae" in refused(settings(curated))
    for scale, section, said in (
        ("x2", {"crop_size": 96}, "crop_size is 96; for scale x2 it must be a multiple of 64"),
        ("x1.5", {"crop_size": 128}, "128; for scale x1.5 it must be a multiple of 96"),
        ("x2", {"crop_frames": 12}, "crop_frames is 12; for scale x2 it must be 1 + a multiple of 8"),
        ("temporal-x2", {"crop_frames": 25}, "25; for scale temporal-x2 it must be 1 + a multiple of 16"),
        ("temporal-x2", {"crop_size": 80}, "80; for scale temporal-x2 it must be a multiple of 32"),
    ):
        assert said in refused(settings(curated, vae, scale=scale, **section))
    assert "add a smaller bucket" in refused(settings(curated, vae, crop_size=256))
    weights.save(model.build("tiny", components=["upscaler"]), tmp_path / "x2")
    assert "of another scale" in refused(settings(curated, vae, tmp_path / "x2", scale="x1.5"))
    other = UpscalerConfig(in_channels=16, mid_channels=32, num_blocks_per_stage=1)
    weights.save(model.build_component(other), tmp_path / "narrow")
    said = refused(settings(curated, vae, tmp_path / "narrow"))
    assert "upscaler.in_channels is 16, video_vae.latent_channels is 32" in said


def test_scales_are_those_of_the_published_upscalers():
    for name, published in (("x1.5", UpscalerConfig.ltx2_x1_5()), ("temporal-x2", UpscalerConfig.ltx2_temporal())):
        config = SCALES[name].configure(UpscalerConfig(mid_channels=published.mid_channels))
        assert asdict(config) == asdict(published)
    assert SCALES["x2"].configure(UpscalerConfig.ltx2_x1_5()) == UpscalerConfig()
