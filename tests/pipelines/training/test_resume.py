"""A run resumes where it was, whichever process dies, with any number of workers."""

import random
from pathlib import Path

import pytest

import model
from pipelines.training import driver
from pipelines.training.driver import train
from pipelines.training.metrics import METRICS, read_metrics
from pipelines.training.settings import TrainSettings
from tests.pipelines.killing import end_family, start_training, strike_training
from tests.pipelines.training.support import recorded
from tests.pipelines.training.support.curated_set import write_curated_set
from tests.pipelines.training.support.encoded_set import BUCKET, write_conditioner, write_encoded_set
from tests.pipelines.training.support.training_runs import exact

ONE = {"tokens": BUCKET.video_tokens + BUCKET.audio_tokens}
ADVERSARY = {"weight": 0.5, "start_step": 2, "channels": 16, "lr": 1e-3}


def dit_settings(data: Path, conditioner: Path, **changes) -> TrainSettings:
    base = {
        "input": str(data),
        "init_from": [str(conditioner)],
        "log_every": 1,
        "batch": {**ONE, "micro_batches": 4},
        "optimizer": {"lr": 2e-3, "warmup_steps": 2, "schedule": "constant", "ema_decay": 0.9},
        "checkpoint": {"every_steps": 10, "keep": 2},
    }
    return TrainSettings.model_validate(base | changes)


@pytest.fixture(scope="module")
def conditioner(tmp_path_factory) -> Path:
    return write_conditioner(tmp_path_factory.mktemp("start") / "weights")


def same_averages(output: Path, reference: Path) -> None:
    """Check that the exported weights, which are the moving averages, are the same.

    Adam makes a full step of a gradient near zero, whose sign is a rounding error. So single values may differ, but
    tensors may not.
    """
    ours, theirs = (model.weights.load(folder / "weights").state_dict() for folder in (output, reference))
    apart = {name: float((value - theirs[name]).norm() / theirs[name].norm()) for name, value in ours.items()}
    print(f"greatest relative difference of a tensor: {max(apart.values()):.1e}")
    assert not {name: by for name, by in apart.items() if not by <= 1e-3}


@pytest.mark.slow
def test_two_workers_then_one_then_four(ray_session, conditioner, tmp_path, monkeypatch):
    """ZeRO-3. Ten samples in steps of four: three steps per epoch, the last one filled up with repeats."""
    monkeypatch.setattr(driver, "tasks", lambda: {"dit": recorded.RecordedDiT})
    folders = {name: tmp_path / name for name in ("reference", "changing")}
    data = {name: write_encoded_set(folder / "data", samples=10) for name, folder in folders.items()}
    train("dit", dit_settings(data["reference"], conditioner, steps=52), folders["reference"] / "run")
    output = folders["changing"] / "run"
    # Changes at steps 10 and 31: in the middle of an epoch.
    for steps, count in ((10, 2), (31, 1), (52, 4)):
        chosen = dit_settings(data["changing"], conditioner, steps=steps, workers={"count": count})
        train("dit", chosen, output)
    ours, theirs = exact(output), exact(folders["reference"] / "run")
    assert [record["step"] for record in ours] == list(range(1, 53))
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(ours, theirs, strict=True))
    print(f"greatest relative difference of a loss: {worst:.1e}")
    assert worst <= 1e-3
    same_averages(output, folders["reference"] / "run")
    every = sorted(f"clip{n}" for n in range(10))
    for epoch in range(17):
        steps = range(3 * epoch, 3 * epoch + 3)
        assert recorded.seen(data["changing"], steps) == recorded.seen(data["reference"], steps) == every
    three = dit_settings(data["changing"], conditioner, steps=60, workers={"count": 3})
    with pytest.raises(ValueError, match=r"3 workers cannot share equally; make it .*, or take 1, 2 or 4 workers"):
        train("dit", three, output)


@pytest.mark.slow
def test_two_workers_then_one_then_four_with_an_adversary(ray_session, tmp_path):
    """ZeRO-1 and two engines; spectral norms keep their estimates in buffers."""
    data = write_curated_set(tmp_path, [(192, 128)] * 4)
    base = {
        "input": data,
        "log_every": 1,
        "batch": {"max_samples": 1, "micro_batches": 4},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2, "schedule": "constant", "ema_decay": 0.9},
        "checkpoint": {"every_steps": 4},
        "audio_vae": {"crop_latents": 9, "adversary": ADVERSARY},
    }
    train("audio-vae", TrainSettings.model_validate({**base, "steps": 14}), tmp_path / "reference")
    for steps, count in ((5, 2), (9, 1), (14, 4)):
        chosen = TrainSettings.model_validate({**base, "steps": steps, "workers": {"count": count}})
        train("audio-vae", chosen, tmp_path / "run")
    ours, theirs = exact(tmp_path / "run"), exact(tmp_path / "reference")
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        judged = [record["discriminator/loss"] for record in (a, b) if record.get("discriminator/loss") is not None]
        assert len(judged) == (0 if a["step"] <= ADVERSARY["start_step"] else 2)
        assert judged[:1] == pytest.approx(judged[1:], rel=1e-3)
    same_averages(tmp_path / "run", tmp_path / "reference")


@pytest.mark.slow
def test_ten_kills_of_a_run_change_no_bit(ray_session, conditioner, tmp_path):
    """Kill a worker, all workers or the driver at ten random moments of 200 steps with ZeRO-3.

    Ray's failure policy restarts workers up to its limit; after that, and after the death of the driver, the same call
    resumes the run.
    """
    data = write_encoded_set(tmp_path / "encoded", samples=10)
    workers = {"count": 2, "max_failures": 2}
    chosen = dit_settings(data, conditioner, steps=200, batch={**ONE, "micro_batches": 2}, workers=workers)
    reference, output = tmp_path / "reference", tmp_path / "run"
    train("dit", chosen, reference)

    rng = random.Random(0)
    moments, kinds = sorted(rng.sample(range(3, 190), 10)), rng.sample(["worker", "workers", "driver"] * 4, 10)
    strikes = list(zip(moments, kinds, strict=True))
    for _ in range(12):
        if (output / "summary.json").exists():
            break
        process = start_training("dit", chosen, output)
        try:
            while strikes and strike_training(process, strikes[0][1], output, strikes[0][0], rng):
                print(f"{strikes[0][1]}: killed with {len(read_metrics(output / METRICS))} steps logged", flush=True)
                strikes.pop(0)
            process.wait(900)
        finally:
            end_family(process.pid)
    assert not strikes
    assert exact(output) == exact(reference)
    for part in ("transformer", "text_conditioner"):
        ours, theirs = (folder / "weights" / f"{part}.safetensors" for folder in (output, reference))
        assert ours.read_bytes() == theirs.read_bytes()
