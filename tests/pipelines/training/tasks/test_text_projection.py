"""Task text-projection: captions are encoded in the step; W and the connectors learn by the diffusion loss."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import model
from data_prep.loading.batch_plan import MicroBatch
from data_prep.loading.loader import CaptionedBatch
from model.text_encoder import GemmaTextEncoder
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.text_projection import TextProjectionTask, TextProjectionTrainee
from tests.pipelines.training.support.encoded_set import write_encoded_set
from tests.pipelines.training.support.training_runs import changed, learn, mistake, state
from tests.tiny_gemma import write_gemma

CAPTIONS = ("a ball bounces", "a", "someone speaks and a ball bounces and someone speaks", "")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoded_set(tmp_path_factory.mktemp("projected") / "set")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma(tmp_path_factory.mktemp("gemma"))


def settings(encoded: Path, gemma: Path, **section: Any) -> TrainSettings:
    return TrainSettings.model_validate(
        {"input": str(encoded), "text_projection": {"text_encoder": str(gemma), **section}}
    )


def made(encoded: Path, gemma: Path, **section: Any) -> tuple[TextProjectionTrainee, CaptionedBatch]:
    task = TextProjectionTask(settings(encoded, gemma, **section))
    torch.manual_seed(0)
    trainee = task.build(model.build("tiny", components=task.uses).components)
    batch = task.dataset().batch(MicroBatch((0, 1, 2, 3), (1.0,) * 4), 0).to("cpu")
    assert isinstance(batch, CaptionedBatch)
    return trainee, batch


def test_a_batch_of_captions_equals_each_alone(encoded, gemma):
    trainee, batch = made(encoded, gemma)
    assert batch.captions == ("sample 0", "sample 1", "sample 2", "sample 3")
    features, audio, mask = trainee.text(replace(batch, captions=CAPTIONS))
    assert audio is features
    assert mask.sum(1).tolist() == [4, 2, 10, 1]
    assert not (mask[:, :-1] & ~mask[:, 1:]).any()  # padding on the left
    for row, caption in enumerate(CAPTIONS):
        alone, _, own = trainee.text(replace(batch, captions=(caption,)))
        assert own.all()
        torch.testing.assert_close(features[row, mask[row]], alone[0], rtol=1e-4, atol=1e-4)
    # The same for the contexts that the transformer reads.
    together = trainee.text_conditioner.connect(features, audio, mask)[0]
    single = trainee.text_conditioner.connect(*trainee.text(replace(batch, captions=CAPTIONS[1:2])))[0]
    torch.testing.assert_close(together[1:2], single, rtol=1e-4, atol=1e-4)


def test_features_are_those_that_encode_stores(encoded, gemma):
    trainee, batch = made(encoded, gemma)
    ours, _, mask = trainee.text(batch)
    states, other_mask = GemmaTextEncoder.load(gemma, 256, torch.float32).encode(list(batch.captions))
    assert torch.equal(mask, other_mask)
    assert torch.equal(ours, trainee.text_conditioner.project(states, mask)[0])


def test_the_loss_falls_and_everything_but_the_encoder_learns(encoded, gemma):
    trainee, batch = made(encoded, gemma)
    assert not any("encoder" in name for name, _ in trainee.named_modules())
    assert not any("encoder" in name for name in trainee.state_dict())
    before, encoder = state(trainee), state(trainee.encoder.on(torch.device("cpu")))
    losses = learn(trainee, batch, 12)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert not changed(trainee.encoder.on(torch.device("cpu")), encoder)
    moved = changed(trainee, before)
    assert "text_conditioner.text_embedding_projection.aggregate_embed.weight" in moved
    assert "text_conditioner.audio_embeddings_connector.learnable_registers" in moved
    assert "transformer.proj_out.weight" in moved
    assert set(trainee.components()) == {"transformer", "text_conditioner"}


def test_a_frozen_transformer_stays_to_the_bit_and_w_still_learns(encoded, gemma):
    trainee, batch = made(encoded, gemma, train_transformer=False)
    for parameter in trainee.transformer.parameters():
        if not parameter.any():  # as if trained: gates and outputs of a new one are zeros
            nn.init.normal_(parameter, std=0.05)
        elif parameter.ndim == 2 and len(parameter) in (5, 6):  # modulation tables, whose rows of gates are zeros
            nn.init.normal_(parameter, std=0.2)
    before = state(trainee)
    learn(trainee, batch, 2)
    moved = changed(trainee, before)
    assert moved == {name for name in before if name.startswith("text_conditioner.")}
    assert set(trainee.components()) == {"text_conditioner"}


def test_mistakes_are_named_before_a_worker_starts(encoded, gemma, tmp_path):
    refused = partial(mistake, "text-projection", output=tmp_path / "output")
    assert "text_projection.text_encoder '/nowhere'" in refused(settings(encoded, Path("/nowhere")))
    assert "unknown package" in refused(settings(encoded, gemma, text_encoder="package:gemma9"))
    narrow = write_gemma(tmp_path / "narrow", hidden_size=64, layers=2)
    said = refused(settings(encoded, narrow))
    assert "gives 3 states of width 64; the projection W takes 19 of width 640" in said
    assert "init_from gives no transformer" in refused(settings(encoded, gemma, train_transformer=False))
    frozen = settings(encoded, gemma, frozen=["transformer.nothing"])
    assert "frozen pattern 'transformer.nothing' fits no parameter" in refused(frozen)
    older = write_encoded_set(tmp_path / "older", caption=False)
    said = refused(settings(older, gemma))
    assert "sample clip0 holds no caption" in said
    assert "encode the set again" in said


def test_a_relative_path_means_the_users_folder_on_every_worker(encoded, gemma, monkeypatch):
    monkeypatch.chdir(gemma.parent)
    assert settings(encoded, Path(gemma.name)).text_projection.text_encoder == str(gemma)
    assert settings(encoded, gemma, text_encoder="google/gemma").text_projection.text_encoder == "google/gemma"
