"""Real runs of text-projection and upscaler: Ray Train, DeepSpeed, two worker processes, the tiny preset."""

from pathlib import Path
from typing import Any

import pytest
import torch

import model
from data_prep.loading.buckets import Bucket
from model import weights
from pipelines.generate import generate
from pipelines.settings import GenerateSettings, TrackingSettings
from pipelines.training.driver import train
from pipelines.training.settings import TrainSettings
from tests.pipelines.killing import train_until_killed
from tests.pipelines.training.support.curated_set import write_curated_set
from tests.pipelines.training.support.encoded_set import BUCKET, write_encoded_set
from tests.pipelines.training.support.training_runs import exact
from tests.tiny_gemma import write_gemma

CODECS = ("video_vae", "audio_vae", "vocoder")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an encoded set, a curated set, a text encoder, and the codecs that the runs start from."""
    root = tmp_path_factory.mktemp("tasks")
    write_encoded_set(root / "encoded", samples=4)
    (root / "curated").mkdir()
    write_curated_set(root / "curated", [(192, 128)] * 4)
    write_gemma(root / "gemma")
    torch.manual_seed(4)
    weights.save(model.build("tiny", components=CODECS), root / "codecs")
    return root


def settings(task: str, root: Path, **changes: Any) -> TrainSettings:
    own: dict[str, Any] = {
        "text-projection": {
            "input": str(root / "encoded"),
            "batch": {"tokens": 2 * (BUCKET.video_tokens + BUCKET.audio_tokens)},
            "text_projection": {"text_encoder": str(root / "gemma"), "conditioning": {"first_frame": 0.3}},
        },
        "upscaler": {
            "input": str(root / "curated" / "set"),
            "batch": {"max_samples": 2},
            "upscaler": {"crop_frames": 9, "crop_size": 64},
        },
    }
    shared = {
        "init_from": [str(root / "codecs")],
        "steps": 7,
        "log_every": 1,
        "optimizer": {"lr": 2e-3, "warmup_steps": 2, "schedule": "constant", "ema_decay": 0.9},
        "checkpoint": {"every_steps": 3, "keep": 2},
    }
    return TrainSettings.model_validate(shared | own[task] | changes)


@pytest.fixture(scope="module")
def runs(ray_session: None, root: Path) -> Any:
    """Return a function: task → output and summary of its uninterrupted run, which runs on the first call."""
    done: dict[str, tuple[Path, dict[str, Any]]] = {}

    def run(task: str) -> tuple[Path, dict[str, Any]]:
        if task not in done:
            done[task] = root / task, train(task, settings(task, root), root / task)
        return done[task]

    return run


def test_text_projection_leaves_a_model_that_generates(runs, root, tmp_path):
    output, summary = runs("text-projection")
    assert summary["loss_at_end"]["loss"] < 0.8 * summary["loss_at_start"]["loss"]
    trained = model.weights.load(output / "weights")
    assert set(trained.components) == {"transformer", "text_conditioner", *CODECS}
    for name in CODECS:
        assert weights.fingerprint(output / "weights", name) == weights.fingerprint(root / "codecs", name)
    w = "text_embedding_projection.aggregate_embed.weight"
    torch.manual_seed(sum(b"text_conditioner"))  # the seed that the run uses for this component
    start = model.build("tiny", components=["text_conditioner"]).text_conditioner.state_dict()[w]
    moved = (trained.text_conditioner.state_dict()[w] - start).abs()
    assert 0 < moved.max() < 0.1

    shape = Bucket(frames=9, height=64, width=64)
    asked = GenerateSettings(shape=shape, steps=1, text_encoder=str(root / "gemma"), device="cpu")
    made = generate(output, ["a ball bounces"], asked, tmp_path, TrackingSettings())
    assert (tmp_path / made["samples"][0]["file"]).stat().st_size > 0


@pytest.mark.slow
def test_upscaler_leaves_an_upscaler_that_fits_the_vae(runs, root):
    output, summary = runs("upscaler")
    assert summary["loss_at_end"]["loss/latent"] < 0.9 * summary["loss_at_start"]["loss/latent"]
    trained = model.weights.load(output / "weights")
    assert set(trained.components) == {"upscaler", *CODECS}
    assert weights.fingerprint(output / "weights", "video_vae") == weights.fingerprint(root / "codecs", "video_vae")
    with torch.no_grad():
        low = trained.video_vae.encode(torch.zeros(1, 3, 9, 64, 64))
        pixels = trained.video_vae.decode(trained.upscaler.upscale(low, trained.video_vae))
    assert pixels.shape == (1, 3, 9, 128, 128)
    assert pixels.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text-projection", "upscaler"])
def test_a_run_that_is_killed_goes_on_to_the_bit(task, runs, root, tmp_path):
    """SIGKILL of driver and workers after step 4 or later, when the newest checkpoint is that of step 3 or 6."""
    reference, _ = runs(task)
    output = tmp_path / "run"
    train_until_killed(task, settings(task, root), output, steps=4)
    assert not (output / "summary.json").exists()
    train(task, settings(task, root), output)
    assert exact(output) == exact(reference)
    for file in sorted((reference / "weights").iterdir()):
        assert (output / "weights" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_stages_and_numbers_of_workers_train_text_projection_alike(runs, root, tmp_path):
    reference = exact(runs("text-projection")[0])
    for name, workers in {"zero 1": {"zero_stage": 1}, "one worker": {"count": 1}}.items():
        train("text-projection", settings("text-projection", root, workers=workers), tmp_path / name)
        for ours, theirs in zip(exact(tmp_path / name), reference, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), name


@pytest.mark.slow
def test_a_frozen_transformer_is_the_one_that_was_given(runs, root, tmp_path):
    given, _ = runs("text-projection")
    section = settings("text-projection", root).text_projection.model_dump() | {"train_transformer": False}
    start = [str(root / "codecs"), str(given)]
    chosen = settings("text-projection", root, init_from=start, text_projection=section)
    train("text-projection", chosen, tmp_path / "run")
    for name, same in {"transformer": True, "text_conditioner": False}.items():
        prints = [weights.fingerprint(folder / "weights", name) for folder in (tmp_path / "run", given)]
        assert (prints[0] == prints[1]) == same, name
