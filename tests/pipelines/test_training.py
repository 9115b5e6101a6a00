"""Real training runs: Ray Train, DeepSpeed, two worker processes, the tiny preset."""

import json
import time
from pathlib import Path

import pytest
import torch

import model
from pipelines.settings import TrainSettings
from pipelines.training.engine import train
from pipelines.training.loop import METRICS, read_metrics
from tests.pipelines.encoded_set import BUCKET, write_conditioner, write_encoded_set
from tests.pipelines.killing import train_until_killed
from tests.pipelines.training_runs import exact


def settings(data: Path, conditioner: Path, **changes) -> TrainSettings:
    base = {
        "input": str(data),
        "init_from": [str(conditioner)],
        "steps": 8,
        "log_every": 1,
        "batch": {"tokens": 2 * (BUCKET.video_tokens + BUCKET.audio_tokens), "micro_batches": 2},
        "optimizer": {"lr": 2e-3, "warmup_steps": 2, "schedule": "constant", "ema_decay": 0.9},
        "checkpoint": {"every_steps": 3, "keep": 2},
    }
    return TrainSettings.model_validate(base | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_encoded_set(tmp_path_factory.mktemp("data") / "encoded")


@pytest.fixture(scope="module")
def conditioner(tmp_path_factory):
    return write_conditioner(tmp_path_factory.mktemp("start") / "weights")


@pytest.fixture(scope="module")
def uninterrupted(ray_session, data, conditioner, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    seen = []
    summary = train("dit", settings(data, conditioner), output, progress=lambda *step: seen.append(step))
    return output, summary, seen


def test_a_run_leaves_a_model_and_its_record(uninterrupted, data, conditioner):
    output, summary, seen = uninterrupted
    assert summary["loss_at_end"]["loss/video"] < summary["loss_at_start"]["loss/video"]
    assert summary["loss_at_end"]["loss/audio"] < summary["loss_at_start"]["loss/audio"]
    assert (summary["steps"], summary["samples"], summary["skipped_steps"]) == (8, 6, 0)
    assert (seen[0], seen[-1]) == (("dit", 0, 8), ("dit", 8, 8))

    records = read_metrics(output / METRICS)
    assert [record["step"] for record in records] == list(range(1, 9))
    assert all(record[key] > 0 for record in records for key in ("samples_per_s", "tokens_per_s", "tflop_per_s"))
    # The bins of σ hold the samples of their modality: their mean lies between the least and the greatest.
    bins = [value for key, value in records[-1].items() if key.startswith("loss/video/sigma/")]
    assert bins
    assert min(bins) <= records[-1]["loss/video"] <= max(bins)

    # Two whole checkpoints are kept: the last, and the newest before it.
    whole = sorted(marker.parent.name for marker in (output / "checkpoints").glob("*/COMMITTED.json"))
    assert whole == ["step-00000006", "step-00000008"]

    trained = model.weights.load(output / "weights")
    given = model.weights.load(conditioner)
    assert set(trained.parts) == {"transformer", "text_conditioner"}
    frozen = "text_embedding_projection.aggregate_embed.weight"
    assert torch.equal(trained.text_conditioner.state_dict()[frozen], given.text_conditioner.state_dict()[frozen])
    connector = "video_embeddings_connector.learnable_registers"
    after, before = (m.text_conditioner.state_dict()[connector] for m in (trained, given))
    assert not torch.equal(after, before)
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    assert trained.transformer.proj_out.weight.abs().max() > 0  # it starts at zero


def test_the_runs_page_has_its_data_set_and_its_checkpoints(uninterrupted, data):
    from mlflow.tracking import MlflowClient

    output, _, _ = uninterrupted
    client = MlflowClient(tracking_uri=f"sqlite:///{output.parent / 'mlflow.db'}")
    run = client.get_run(json.loads((output / "mlflow_run.json").read_text())["run_id"])
    (used,) = run.inputs.dataset_inputs
    assert json.loads(used.dataset.source) == {"uri": str(data)}
    models = {model.name: model for model in client.search_logged_models([run.info.experiment_id])}
    assert {"dit-6", "dit-8"} <= set(models)
    last = read_metrics(output / METRICS)[-1]
    assert models["dit-8"].tags["path"] == str(output / "checkpoints" / "step-00000008")
    assert {m.key: m.value for m in models["dit-8"].metrics}["loss/video"] == last["loss/video"]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss/video")] == list(range(1, 9))


def test_a_finished_run_is_not_run_again_and_takes_no_other_settings(uninterrupted, data, conditioner):
    output, summary, _ = uninterrupted
    started = time.monotonic()
    assert train("dit", settings(data, conditioner), output) == summary
    assert time.monotonic() - started < 20
    with pytest.raises(ValueError, match=r"another optimizer\.lr \(0\.002, now 0\.1\)"):
        train(
            "dit",
            settings(data, conditioner, optimizer={**settings(data, conditioner).optimizer.model_dump(), "lr": 0.1}),
            output,
        )
    with pytest.raises(ValueError, match="beyond"):
        train("dit", settings(data, conditioner, steps=4), output)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_bit(uninterrupted, data, conditioner, tmp_path):
    """SIGKILL of driver and workers after step 5; the checkpoint of step 3 is the newest, or the one of step 6."""
    reference, _, _ = uninterrupted
    output = tmp_path / "run"
    chosen = settings(data, conditioner)
    train_until_killed("dit", chosen, output, steps=5)
    assert not (output / "summary.json").exists()

    train("dit", chosen, output)
    assert exact(output) == exact(reference)
    for part in ("transformer", "text_conditioner"):
        ours, theirs = (folder / "weights" / f"{part}.safetensors" for folder in (output, reference))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_left_out_and_counted(ray_session, conditioner, tmp_path):
    data = write_encoded_set(tmp_path / "spoilt", spoilt=2)
    one = {"tokens": BUCKET.video_tokens + BUCKET.audio_tokens, "micro_batches": 2}
    output = tmp_path / "run"
    summary = train("dit", settings(data, conditioner, batch=one, steps=6), output)
    assert summary["skipped_steps"] == 2  # six samples, two a step: the spoilt one comes once in each of two epochs
    trained = model.weights.load(output / "weights")
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    assert json.loads((output / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_stages_of_zero_workers_and_recomputation_train_alike(uninterrupted, ray_session, data, conditioner, tmp_path):
    """The reference is ZeRO-3, whose parameters are partitioned as they are built; ZeRO-1 and 2 build them whole."""
    reference = exact(uninterrupted[0])
    others = {
        "zero 1": {"zero_stage": 1},
        "zero 2": {"zero_stage": 2},
        "one worker": {"count": 1},
        "recomputed": {"recompute": 1},
    }
    for name, workers in others.items():
        train("dit", settings(data, conditioner, workers=workers), tmp_path / name)
        for ours, theirs in zip(exact(tmp_path / name), reference, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), name
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), name
