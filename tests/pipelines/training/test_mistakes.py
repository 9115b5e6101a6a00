"""Mistakes of the user are found, and named, before a worker starts."""

import pytest
import torch

from pipelines.training.driver import component_files, train
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.dit import DiTTask
from tests.pipelines.training.support.curated_set import write_curated_set
from tests.pipelines.training.support.encoded_set import write_conditioner, write_encoded_set


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Write two clips that fit the bucket, one that is too small, and one that was dropped."""
    sizes = [(192, 128), (96, 96), (192, 160), (192, 128)]
    return write_curated_set(tmp_path_factory.mktemp("curated"), sizes, dropped=3)


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
        task.validate(task.dataset(), component_files((str(folder),)))
    next(conditioner.text_embedding_projection.parameters()).data *= 1.01
    model.weights.save(conditioner, tmp_path / "other")
    said = mistake("dit", tmp_path, input=encoded, init_from=[str(tmp_path / "other")])
    assert "made by another projection W" in said
