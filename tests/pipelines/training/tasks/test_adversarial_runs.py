"""Real adversarial training runs: Ray Train, two DeepSpeed engines, two worker processes."""

import json

import pytest
import torch

import model
from pipelines.training.driver import train
from pipelines.training.metrics import METRICS, read_metrics
from pipelines.training.settings import TrainSettings
from tests.pipelines.killing import train_until_killed
from tests.pipelines.training.support.curated_set import write_curated_set
from tests.pipelines.training.support.training_runs import exact

START = 2
ADVERSARY = {"weight": 0.5, "start_step": START, "channels": 16, "lr": 1e-3}
TASKS = {
    "video-vae": {"video_vae": {"crop_frames": 9, "crop_size": 64, "still_fraction": 0.34, "adversary": ADVERSARY}},
    "audio-vae": {"audio_vae": {"crop_latents": 9, "adversary": ADVERSARY}},
    "vocoder": {"vocoder": {"crop_mel_frames": 17, "mel": 45.0, "adversary": ADVERSARY | {"channels": 4}}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_curated_set(tmp_path_factory.mktemp("data"), [(192, 128)] * 4)


def settings(task: str, data: str, **changes) -> TrainSettings:
    base = {
        "input": data,
        "steps": 7,
        "log_every": 1,
        "batch": {"max_samples": 1, "micro_batches": 4},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2, "schedule": "constant", "ema_decay": 0.9},
        "checkpoint": {"every_steps": 3, "keep": 2},
        **TASKS[task],
    }
    return TrainSettings.model_validate(base | changes)


def test_an_adversary_joins_at_its_step_and_stays_out_of_the_weights(ray_session, data, tmp_path):
    output = tmp_path / "run"
    summary = train("audio-vae", settings("audio-vae", data, steps=4), output)
    before, after = read_metrics(output / METRICS)[:START], read_metrics(output / METRICS)[START:]
    new = {"loss/adversarial", "adaptive_weight", "discriminator/skipped_steps", "discriminator/grad_norm"}
    new |= {"discriminator/loss", "discriminator/real", "discriminator/fake"}
    assert all(not new & set(record) for record in before)
    assert len(after) == 2
    for record in after:
        assert new < set(record)
        assert record["adaptive_weight"] > 0
        assert record["discriminator/grad_norm"] > 0
        assert record["discriminator/skipped_steps"] == 0
    assert after[0]["discriminator/loss"] == pytest.approx(1, abs=0.2)
    for record, place in ((after[0], "loss_at_start"), (after[1], "loss_at_end")):
        assert summary[place]["loss/adversarial"] == record["loss/adversarial"]

    newest = output / "checkpoints" / "step-00000004"
    assert any(
        name.startswith("discriminators/") for name in json.loads((newest / "COMMITTED.json").read_text())["files"]
    )
    trained = model.weights.load(output / "weights")
    assert set(trained.components) == {"audio_vae"}
    assert set(trained.audio_vae.state_dict()) == set(
        model.build("tiny", components=["audio_vae"]).audio_vae.state_dict()
    )
    assert all(torch.isfinite(p).all() for p in trained.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("task", "stage"), [("video-vae", 1), ("video-vae", 3), ("vocoder", 1)])
def test_a_run_that_is_killed_goes_on_to_the_bit(ray_session, data, tmp_path, task, stage):
    """SIGKILL after step 5: in the checkpoint of step 3 the discriminators have trained for one step."""
    chosen = settings(task, data, workers={"zero_stage": stage})
    train(task, chosen, tmp_path / "reference")
    output = tmp_path / "run"
    train_until_killed(task, chosen, output, steps=5)
    assert not (output / "summary.json").exists()
    train(task, chosen, output)
    assert exact(output) == exact(tmp_path / "reference")
    ours, theirs = (tmp_path / run / "weights" for run in ("run", "reference"))
    for file in theirs.glob("*.safetensors"):
        assert (ours / file.name).read_bytes() == file.read_bytes()


def smooth(task: str) -> dict:
    """Return settings of an optimizer that does not magnify rounding errors.

    AdamW moves a weight by the learning rate, however small the gradient is, and so turns the sign of a rounding error
    into a full step: two runs whose first weights differ by 1e-7 differ by a tenth after seven steps
    (docs/training.md). With ε far above the gradients, a step is proportional to the gradient, and two runs stay
    together unless a loss or a gradient is wrong.
    """
    section = task.replace("-", "_")
    own = TASKS[task][section]
    lr = {"video-vae": 3e-3, "audio-vae": 1e-2, "vocoder": 1e-3}[task]  # by the size of the gradients
    optimizer = {"lr": lr, "warmup_steps": 0, "schedule": "constant", "eps": 1.0}
    return {"optimizer": optimizer, section: own | {"adversary": own["adversary"] | {"lr": 3e-2}}}


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_stages_of_zero_and_numbers_of_workers_train_alike(ray_session, data, tmp_path, task):
    train(task, settings(task, data, **smooth(task)), tmp_path / "reference")
    reference = exact(tmp_path / "reference")
    # Both sides learn, so the compared values depend on the earlier steps.
    for key, since in (("loss", 0), ("discriminator/loss", START)):
        assert abs(reference[-1][key] / reference[since][key] - 1) > 1e-2
    for name, workers in {"zero 3": {"zero_stage": 3}, "zero 2": {"zero_stage": 2}, "one worker": {"count": 1}}.items():
        train(task, settings(task, data, workers=workers, **smooth(task)), tmp_path / name)
        for ours, theirs in zip(exact(tmp_path / name), reference, strict=True):
            assert set(ours) == set(theirs)
            for key, value in theirs.items():
                within = 5e-3 if "norm" in key or key == "adaptive_weight" else 3e-4
                assert ours[key] == pytest.approx(value, rel=within, abs=1e-6), (name, ours["step"], key)


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_bfloat16_trains_against_an_adversary(ray_session, data, tmp_path, task):
    """The generator in bfloat16 on two ranks: the run stays near the float32 run, and both sides learn."""
    seen = []
    for precision in ("fp32", "bf16"):
        chosen = settings(task, data, steps=5, workers={"precision": precision}, **smooth(task))
        train(task, chosen, tmp_path / precision)
        seen.append(exact(tmp_path / precision))
    assert seen[1] != seen[0]
    for ours, theirs in zip(seen[1], seen[0], strict=True):
        assert set(ours) == set(theirs)
        assert ours["skipped_steps"] == 0
        for key in ("loss", "discriminator/loss"):
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=0.05), (ours["step"], key)
    trained = model.weights.load(tmp_path / "bf16" / "weights")
    assert all(torch.isfinite(p).all() for p in trained.parameters())


@pytest.mark.slow
def test_a_vocoder_hears_a_given_audio_vae_and_leaves_it_as_it_is(ray_session, data, tmp_path):
    given = tmp_path / "given"
    model.weights.save(model.build("tiny", components=["audio_vae"]), given)
    always = TASKS["vocoder"]["vocoder"] | {"decoded_fraction": 1.0}
    losses = []
    for name, vocoder, start in (("truth", TASKS["vocoder"]["vocoder"], ()), ("decoded", always, (str(given),))):
        chosen = settings("vocoder", data, steps=3, vocoder=vocoder, init_from=start, workers={"zero_stage": 3})
        train("vocoder", chosen, tmp_path / name)
        losses.append([record["loss"] for record in read_metrics(tmp_path / name / METRICS)])
    assert losses[0] != losses[1]
    before, after = (
        model.weights.load_component(folder, "audio_vae") for folder in (given, tmp_path / "decoded/weights")
    )
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])
