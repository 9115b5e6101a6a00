"""With ZeRO-3 a block is gathered at once and may be compiled; neither changes what it computes."""

from pathlib import Path

import pytest
from torch import nn

from pipelines.training import driver
from pipelines.training.driver import train
from pipelines.training.tasks.dit import DiTTask
from pipelines.training.tasks.helpers.diffusion import DiffusionTrainee
from tests.pipelines.training.support.encoded_set import write_conditioner, write_encoded_set
from tests.pipelines.training.support.training_runs import exact
from tests.pipelines.training.test_driver import settings


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_encoded_set(tmp_path_factory.mktemp("data") / "encoded")


@pytest.fixture(scope="module")
def conditioner(tmp_path_factory) -> Path:
    return write_conditioner(tmp_path_factory.mktemp("start") / "weights")


@pytest.mark.slow
def test_blocks_gathered_whole_train_as_layer_by_layer(ray_session, data, conditioner, tmp_path, monkeypatch):
    """A threshold of 0: no parameter stays complete on every rank, though all are small enough."""

    class Layered(DiffusionTrainee):
        leaf_classes = ()

    class LayeredTask(DiTTask):
        def build(self, components: dict[str, nn.Module]) -> DiffusionTrainee:
            return Layered(components, self)

    gathered = {"persistence_threshold": 0}
    others = {"whole": gathered, "recomputed": gathered | {"recompute": 1}, "small ones stay": {}}
    with monkeypatch.context() as patched:
        patched.setattr(driver, "tasks", lambda: {"dit": LayeredTask})
        train("dit", settings(data, conditioner, workers=gathered), tmp_path / "layers")
    reference = exact(tmp_path / "layers")
    for name, workers in others.items():
        train("dit", settings(data, conditioner, workers=workers), tmp_path / name)
        for ours, theirs in zip(exact(tmp_path / name), reference, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6), name
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [0, 1])
def test_compiled_blocks_train_alike(ray_session, data, conditioner, tmp_path, recompute):
    workers = {"compile": True, "persistence_threshold": 0, "recompute": recompute}
    train("dit", settings(data, conditioner), tmp_path / "plain")
    train("dit", settings(data, conditioner, workers=workers), tmp_path / "run")
    for ours, theirs in zip(exact(tmp_path / "run"), exact(tmp_path / "plain"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
