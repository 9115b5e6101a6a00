"""Adapters: only they train; merging changes no output; other libraries can load them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import model
from jobs.cli import main
from model import weights
from model.key_maps import diffusers_names
from model.lora import adapter_path
from pipelines.training import checkpoint
from pipelines.training.driver import train
from pipelines.training.settings import LoRASettings, TrainSettings
from pipelines.training.tasks.dit import DiTTask
from pipelines.training.tasks.helpers.lora import add_adapters, save_adapters
from tests.model.sizes import random_model, tiny_2_0
from tests.model.test_weights_oracles import equal, streams
from tests.pipelines.killing import train_until_killed
from tests.pipelines.training.support.encoded_set import BUCKET, write_conditioner, write_encoded_set
from tests.pipelines.training.support.training_runs import changed, exact, learn, mistake, state

LORA = {"rank": 4, "alpha": 6, "targets": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.*")}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_encoded_set(tmp_path_factory.mktemp("data") / "encoded")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Write a model folder with the conditioner that encode used and a trained transformer."""
    folder = write_conditioner(tmp_path_factory.mktemp("given") / "weights")
    weights.save(random_model(model.preset("tiny"), seed=5).transformer, folder)
    return folder


def settings(data: Path, given: Path, **changes) -> TrainSettings:
    base = {
        "input": str(data),
        "init_from": [str(given)],
        "steps": 6,
        "log_every": 1,
        "batch": {"tokens": 2 * (BUCKET.video_tokens + BUCKET.audio_tokens), "micro_batches": 2},
        "optimizer": {"lr": 2e-2, "warmup_steps": 1, "schedule": "constant", "ema_decay": 0.5},
        "checkpoint": {"every_steps": 2, "keep": 3},
        "dit": {"lora": LORA},
    }
    return TrainSettings.model_validate(base | changes)


def adapted(ltx2: model.LTX2, folder: Path) -> nn.Module:
    """Add random adapters to the transformer, and save its weights and the adapters in `folder`."""
    weights.save(ltx2.transformer, folder)
    options = LoRASettings.model_validate(LORA)
    add_adapters(ltx2.transformer, options, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in ltx2.transformer.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    base = weights.fingerprint(folder)
    save_adapters(ltx2.transformer, options, adapter_path(folder / "transformer.safetensors"), rank=0, base=base)
    return ltx2.transformer.eval()


def test_only_adapters_are_trained_and_they_learn(data, given):
    task = DiTTask(settings(data, given))
    components = {name: weights.load_component(given, name) for name in task.uses}
    trainee = task.build(components)
    before = state(trainee)
    batch = task.dataset().batch(_micro(task), 0)
    losses = learn(trainee, batch, 12)
    assert losses[-1] < 0.9 * losses[0]
    moved = changed(trainee, before)
    assert moved == {name for name, p in trainee.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in moved)
    kinds = {name.split("transformer_blocks.0.")[1].split(".lora_")[0] for name in moved if "blocks.0." in name}
    assert {"attn1.to_q", "audio_to_video_attn.to_out.0", "ff.net.0.proj", "ff.net.2"} < kinds
    assert not any(kind.startswith("audio_ff") for kind in kinds)


def _micro(task: DiTTask):
    from data_prep.loading import batch_plan

    dataset = task.dataset()
    return batch_plan.plan(dataset.buckets, dataset.tokens, task.settings.batch, seed=0, world=1).step(0).ranks[0][0]


@torch.no_grad()
def test_merged_equals_unmerged_and_is_what_export_writes(tmp_path):
    ltx2 = random_model(tiny_2_0()).eval()
    plain = ltx2.transformer(*streams(ltx2))
    expected = adapted(ltx2, tmp_path / "run/weights")(*streams(ltx2))
    assert (expected[0] - plain[0]).abs().max() > 1e-2
    merged = weights.load(tmp_path / "run/weights").transformer
    for ours, theirs in zip(merged(*streams(ltx2)), expected, strict=True):
        equal(ours, theirs)
    for layout, name in (("kinotone", "whole"), ("ltx", "whole.safetensors"), ("diffusers", "folders")):
        output = tmp_path / name
        assert main(["export", "--checkpoint", str(tmp_path / "run"), "--layout", layout, "--output", str(output)]) == 0
        assert not adapter_path(output / "transformer.safetensors").exists()
        exported = weights.load_component(output, "transformer").state_dict()
        for key, value in merged.state_dict().items():
            assert torch.equal(exported[key], value)
        assert weights.fingerprint(output) == weights.fingerprint(tmp_path / "run/weights")


@torch.no_grad()
def test_diffusers_reads_the_adapter(tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is an oracle of the development set-up")
    from diffusers import LTX2VideoTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]
    from diffusers.loaders.lora_pipeline import LTX2LoraLoaderMixin

    ltx2 = random_model(tiny_2_0()).eval()
    weights.save(ltx2.transformer, tmp_path / "base", "diffusers")
    adapted(ltx2, tmp_path / "run")
    theirs = LTX2VideoTransformer3DModel.from_pretrained(tmp_path / "base/transformer")
    file = str(tmp_path / "run/transformer_lora.safetensors")
    LTX2LoraLoaderMixin.load_lora_into_transformer(LTX2LoraLoaderMixin.lora_state_dict(file), theirs)
    theirs.fuse_lora()
    theirs.unload_lora()
    merged = weights.load_component(tmp_path / "run", "transformer")
    names = diffusers_names("transformer", merged.state_dict())
    fused = theirs.state_dict()
    assert len(fused) == len(names)
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(fused[names[key]], value)


def test_ltx_core_reads_the_adapter(tmp_path):
    pytest.importorskip("ltx_core", reason="ltx-core is an oracle of the development set-up")
    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP
    from ltx_core.loader.fuse_loras import apply_loras
    from ltx_core.loader.primitives import LoraStateDictWithStrength, StateDict
    from ltx_core.loader.sft_loader import SafetensorsStateDictLoader

    adapted(random_model(tiny_2_0()), tmp_path)
    file = str(tmp_path / "transformer_lora.safetensors")
    lora = SafetensorsStateDictLoader().load(file, LTXV_LORA_COMFY_RENAMING_MAP)
    base = {key: value.bfloat16() for key, value in load_file(tmp_path / "transformer.safetensors").items()}
    fused = apply_loras(StateDict(base, torch.device("cpu"), 0, set()), [LoraStateDictWithStrength(lora, 1.0)]).sd
    merged = weights.load_component(tmp_path, "transformer").state_dict()
    assert fused.keys() == merged.keys()
    for key, value in merged.items():
        torch.testing.assert_close(fused[key].float(), value, rtol=2**-7, atol=2**-7)


def test_an_adapter_of_other_weights_is_refused(tmp_path):
    adapted(random_model(tiny_2_0()), tmp_path)
    weights.save(random_model(tiny_2_0(), seed=1).transformer, tmp_path)
    with pytest.raises(ValueError, match=r"transformer_lora\.safetensors: trained on other weights than those beside"):
        weights.load(tmp_path)


def test_mistakes_are_told_before_a_worker_starts(data, given, tmp_path):
    def said(**lora) -> str:
        return mistake("dit", settings(data, given, dit={"lora": LORA | lora}), tmp_path / "run")

    assert "dit.lora.targets 'to_w' fits no linear layer" in said(targets=("to_q", "to_w"))
    conditioner = write_conditioner(tmp_path / "conditioner")
    assert "init_from gives no transformer" in mistake("dit", settings(data, conditioner), tmp_path / "run")
    both = {"lora": LORA, "frozen": ("transformer.audio_*",)}
    assert "remove dit.frozen" in mistake("dit", settings(data, given, dit=both), tmp_path / "run")


def test_a_run_leaves_an_adapter_beside_the_given_weights(ray_session, data, given, tmp_path):
    """ZeRO-3 on two ranks: a checkpoint holds only the trained parameters; the result loads merged."""
    output = tmp_path / "run"
    chosen = settings(data, given)
    train("dit", chosen, output)
    folder = output / "weights"
    for part in ("transformer", "text_conditioner"):
        assert (folder / f"{part}.safetensors").read_bytes() == (given / f"{part}.safetensors").read_bytes()
    adapter = load_file(folder / "transformer_lora.safetensors")
    assert all(key.startswith("diffusion_model.transformer_blocks.") for key in adapter)
    before, after = (weights.load_component(place, "transformer").state_dict() for place in (given, folder))
    for key, value in after.items():
        held = f"diffusion_model.{key.removesuffix('weight')}lora_A.weight" in adapter
        assert torch.equal(value, before[key]) != held, key

    trained = sum(value.numel() for value in adapter.values())
    newest = checkpoint.folder(output / "checkpoints", chosen.steps)
    said = checkpoint.committed(newest)
    assert said is not None
    held = sum(size for name, size in said["files"].items())
    # Weights, two moments and the average in fp32, without names and padding of the pickles.
    assert 16 * trained < held < 16 * trained + 2_000_000
    assert held < 4 * sum(value.numel() for value in before.values())

    kept = (given / "transformer.safetensors").read_bytes()
    weights.save(random_model(model.preset("tiny"), seed=6).transformer, given)
    with pytest.raises(ValueError, match=r"the transformer of train\.init_from is not what .* was started with"):
        train("dit", settings(data, given, steps=8), output)
    (given / "transformer.safetensors").write_bytes(kept)


@pytest.mark.slow
def test_stages_and_numbers_of_workers_train_alike_and_resume_to_the_bit(ray_session, data, given, tmp_path):
    train("dit", settings(data, given), tmp_path / "reference")
    reference = exact(tmp_path / "reference")
    for name, workers in {"one": {"count": 1}, "zero 1": {"zero_stage": 1}}.items():
        train("dit", settings(data, given, workers=workers), tmp_path / name)
        for ours, theirs in zip(exact(tmp_path / name), reference, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5), name
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), name
    output = tmp_path / "killed"
    train_until_killed("dit", settings(data, given), output, steps=3)
    assert not (output / "summary.json").exists()
    train("dit", settings(data, given), output)
    assert exact(output) == reference
    ours, theirs = (tmp_path / run / "weights/transformer_lora.safetensors" for run in ("killed", "reference"))
    assert ours.read_bytes() == theirs.read_bytes()
