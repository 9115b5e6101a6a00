"""The parts of a training run that need no workers."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.loading.batch_plan import MicroBatch
from data_prep.loading.buckets import Bucket
from pipelines.settings import OptimizerSettings, TrainSettings
from pipelines.training import checkpoint
from pipelines.training.driver import component_files, train
from pipelines.training.ema import MovingAverage
from pipelines.training.metrics import per_sample, read_metrics
from pipelines.training.schedule import learning_rate
from pipelines.training.tasks.dit import DiTTask
from pipelines.training.tasks.helpers.clips import PictureClips, SoundClips
from pipelines.training.tasks.helpers.errors import edge_error
from pipelines.training.tasks.helpers.random_draws import noise_like
from pipelines.training.tasks.helpers.statistics import rank_rows
from pipelines.training.tasks.vocoder import stft_error
from tests.pipelines.training.curated_set import write_curated_set
from tests.pipelines.training.encoded_set import write_conditioner, write_encoded_set


def test_the_learning_rate_warms_up_and_falls():
    settings = OptimizerSettings(lr=1.0, warmup_steps=4, schedule="cosine", final_lr=0.1)
    rates = [learning_rate(settings, step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(OptimizerSettings(lr=2.0, warmup_steps=0, schedule="constant"), 15, 20) == 2.0


def test_noise_is_a_function_of_seed_sample_and_step_and_not_of_the_batch():
    x = torch.zeros(2, 3, 4)
    both = noise_like(x, 0, ["a", "b"], 5)
    assert torch.equal(both[1], noise_like(x[:1], 0, ["b"], 5)[0])
    for other in (noise_like(x, 1, ["a", "b"], 5), noise_like(x, 0, ["a", "b"], 6), noise_like(x, 0, ["c", "d"], 5)):
        assert not torch.equal(both, other)
    many = noise_like(torch.zeros(1, 10000), 0, ["a"], 0)
    assert abs(many.mean()) < 0.05
    assert abs(many.std() - 1) < 0.05


def test_a_repeat_of_weight_zero_changes_nothing():
    loss = torch.tensor([1.0, 3.0, 100.0, 7.0], requires_grad=True)
    weights = torch.tensor([4 / 3, 4 / 3, 0.0, 4 / 3])
    total, means = per_sample(loss, weights, {"loss": loss})
    assert total.item() == pytest.approx(11 / 3)
    logged, count = means["loss"]
    assert (logged.item(), count.item()) == (11.0, 3.0)
    total.backward()
    assert loss.grad is not None
    assert loss.grad[2] == 0


def test_the_moving_average_is_the_formula():
    weights = {"w": torch.zeros(3)}
    average = MovingAverage(weights, {"w": (0, 3)}, 0.5)
    expected = torch.zeros(3)
    for n in range(20):
        weights["w"] += n
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights["w"]
    assert torch.allclose(average.weights["w"], expected)
    again = MovingAverage(weights, {"w": (0, 3)}, 0.5)
    again.load([average.state()])
    assert torch.equal(again.weights["w"], average.weights["w"])
    assert again.updates == 20


def write_checkpoint(root: Path, step: int) -> Path:
    path = checkpoint.folder(root, step)
    path.mkdir(parents=True)
    (path / "shard.pt").write_bytes(b"x" * 100)
    said = {"step": step, "world": 2, "files": {"shard.pt": 100}}
    (path / checkpoint.MARKER).write_text(json.dumps(said))
    return path


def test_only_a_whole_checkpoint_is_found(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    write_checkpoint(tmp_path, 100)
    unmarked, cut, lost = (write_checkpoint(tmp_path, step) for step in (200, 300, 400))
    (unmarked / checkpoint.MARKER).unlink()
    (cut / "shard.pt").write_bytes(b"x" * 99)
    (lost / "shard.pt").unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[0] == 100


def test_random_states_come_back():
    before = checkpoint.random_state()
    draws = torch.rand(3).tolist(), np.random.rand(3).tolist()
    checkpoint.set_random_state(before)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == draws


def test_a_record_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 0.1}]


@pytest.mark.parametrize(("samples", "world", "limit"), [(10, 3, 100), (10, 3, 4), (1, 2, 8), (6, 2, 6)])
def test_rows_for_statistics_are_shared_and_each_counts_once(samples, world, limit):
    shares = [list(rank_rows(samples, rank, world, limit)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    counted = sorted(row for share in shares for row, counts in share if counts)
    assert len(counted) == len(set(counted)) == min(samples, limit)


def test_the_stft_error_hears_the_difference():
    t = torch.arange(12000) / 24000
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * t).expand(1, 2, -1)
    assert stft_error(tone, tone).item() == pytest.approx(0, abs=1e-5)
    octave = 0.3 * torch.sin(2 * torch.pi * 880 * t).expand(1, 2, -1)
    assert stft_error(octave, tone) > stft_error(0.9 * tone, tone) > 0
    silence = torch.zeros(1, 2, 12000, requires_grad=True)
    error = stft_error(silence, torch.zeros(1, 2, 12000))
    error.sum().backward()
    assert silence.grad is not None
    assert torch.isfinite(silence.grad).all()


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Write two clips that fit the bucket, one that is too small, and one that was dropped."""
    sizes = [(192, 128), (96, 96), (192, 160), (192, 128)]
    return write_curated_set(tmp_path_factory.mktemp("curated"), sizes, dropped=3)


def test_crops_of_pictures(curated):
    data = PictureClips(curated, [Bucket()], frames=17, size=96, seed=0, cache_mb=64)
    assert [clip.clip_id for clip in data.clips] == ["clip0", "clip2"]
    assert data.skipped == {"too small": 1}
    assert data.clip_frames(0).shape == data.clip_frames(1).shape == (49, 128, 192, 3)
    batch = data.batch(MicroBatch((0, 1), (1.0, 1.0)), step=3)
    assert batch.pixels.shape == (2, 3, 17, 96, 96)
    assert batch.pixels.abs().max() <= 1
    assert torch.equal(batch.pixels[1], data.batch(MicroBatch((1,), (1.0,)), step=3).pixels[0])
    assert not torch.equal(batch.pixels, data.batch(MicroBatch((0, 1), (1.0, 1.0)), step=4).pixels)
    uncached = PictureClips(curated, [Bucket()], frames=17, size=96, seed=0, cache_mb=0)
    assert torch.equal(batch.pixels, uncached.batch(MicroBatch((0, 1), (1.0, 1.0)), step=3).pixels)


def test_stills_are_a_bucket_of_their_own(curated):
    data = PictureClips(curated, [Bucket()], frames=17, size=96, seed=0, cache_mb=64, still_fraction=0.6)
    assert data.buckets == ["f17_h96_w96"] * 2 + ["f1_h96_w96"] * 3
    assert data.tokens == {"f17_h96_w96": 27, "f1_h96_w96": 9}
    stills = data.batch(MicroBatch((2, 3, 4), (1.0, 1.0, 1.0)), step=3)
    assert stills.pixels.shape == (3, 3, 1, 96, 96)
    assert stills.ids == ("clip0/still1", "clip2/still1", "clip0/still2")
    assert not torch.equal(stills.pixels[0], stills.pixels[2])  # another draw
    assert edge_error(stills.pixels, stills.pixels.flip(4)).isfinite().all()


def test_crops_of_sound(curated):
    data = SoundClips(curated, mel_frames=41, sample_rate=24_000, seed=0, cache_mb=64)
    assert len(data.clips) == 3
    batch = data.batch(MicroBatch((0, 1, 2), (1.0, 1.0, 1.0)), step=1)
    assert batch.mel.shape == (3, 2, 41, 64)
    assert batch.waveform.shape == (3, 2, 41 * 240)
    # Mel and waveform have the same span and channels: sound on the left, silence on the right.
    assert batch.mel[:, 0].max() > batch.mel[:, 1].max() + 3
    assert batch.waveform[:, 0].abs().max() > 0.15
    assert batch.waveform[:, 1].abs().max() < 0.01
    with pytest.raises(ValueError, match="make the crop shorter"):
        SoundClips(curated, mel_frames=400, sample_rate=24_000, seed=0, cache_mb=0)


def mistake(task, tmp_path, **changes):
    with pytest.raises(ValueError, match=r".") as caught:
        train(task, TrainSettings.model_validate(changes), tmp_path / "output")
    assert not (tmp_path / "output").exists()
    return str(caught.value)


def test_mistakes_are_named_before_a_worker_starts(curated, tmp_path):
    encoded = str(write_encoded_set(tmp_path / "encoded", about={"video_vae": "0123"}))
    start = str(write_conditioner(tmp_path / "start"))
    assert "choose dit" in mistake("dits", tmp_path, input=encoded)
    assert "train.input is not set" in mistake("dit", tmp_path)
    assert "index.parquet is missing" in mistake("dit", tmp_path, input=str(tmp_path))
    assert "no committed segment" in mistake("video-vae", tmp_path, input=str(tmp_path))
    assert "not there" in mistake("dit", tmp_path, input=encoded, init_from=["/nowhere"])
    assert "no text_conditioner" in mistake("dit", tmp_path, input=encoded)
    assert "unknown preset" in mistake("dit", tmp_path, input=encoded, preset="huge", init_from=[start])
    batch = {"tokens": 5}
    assert "more than batch.tokens" in mistake("dit", tmp_path, input=encoded, init_from=[start], batch=batch)
    workers = {"count": 3}
    assert "multiple of 3" in mistake("dit", tmp_path, input=encoded, init_from=[start], workers=workers)
    small = {"buckets": [{"frames": 121}]}
    assert "add a smaller bucket" in mistake("video-vae", tmp_path, input=curated, video_vae=small)


def test_weights_that_an_adversarial_task_lacks_are_named(curated, tmp_path):
    decoded = {"decoded_fraction": 0.5}
    assert "init_from gives no audio_vae" in mistake("vocoder", tmp_path, input=curated, vocoder=decoded)
    seen = {"perceptual": {"weight": 1.0, "backbone": str(tmp_path / "vgg16.pth")}}
    assert "perceptual.backbone: no file" in mistake("video-vae", tmp_path, input=curated, video_vae=seen)
    (tmp_path / "vgg16.pth").write_bytes(b"no weights")
    assert "is no weight file" in mistake("video-vae", tmp_path, input=curated, video_vae=seen)
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "vgg16.pth")
    assert "does not hold torchvision's vgg16" in mistake("video-vae", tmp_path, input=curated, video_vae=seen)
    half = {"precision": "bf16"}
    wide = mistake("vocoder", tmp_path, input=curated, preset="ltx2.3-22b", workers=half)
    assert "float32 only" in wide


def test_latents_of_another_vae_are_refused(tmp_path):
    import model

    encoded = str(write_encoded_set(tmp_path / "encoded", about={"video_vae": "0123"}))
    start = write_conditioner(tmp_path / "start")
    model.weights.save(model.build("tiny", components=["video_vae"]), start)
    assert set(component_files((str(start),))) == {"text_conditioner", "video_vae"}
    assert "made by another video_vae" in mistake("dit", tmp_path, input=encoded, init_from=[str(start)])


def test_features_of_another_projection_are_refused(tmp_path):
    import model

    start = write_conditioner(tmp_path / "start")
    about = {"text_projection": model.weights.projection_fingerprint(start)}
    encoded = str(write_encoded_set(tmp_path / "encoded", about=about))
    conditioner = model.weights.load(start).text_conditioner
    # Training the connectors does not change the projection.
    conditioner.video_embeddings_connector.learnable_registers.data += 1
    model.weights.save(conditioner, tmp_path / "trained")
    task = DiTTask(TrainSettings.model_validate({"input": encoded}))
    for folder in (start, tmp_path / "trained"):
        task.check(task.dataset(), component_files((str(folder),)))
    next(conditioner.text_embedding_projection.parameters()).data *= 1.01
    model.weights.save(conditioner, tmp_path / "other")
    said = mistake("dit", tmp_path, input=encoded, init_from=[str(tmp_path / "other")])
    assert "made by another projection W" in said
