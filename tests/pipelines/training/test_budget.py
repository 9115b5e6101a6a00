"""`plan` agrees with DeepSpeed's estimate; it rejects what does not fit or divide, and says how to fix it."""

from pathlib import Path

import pytest
import torch

import model
from data_prep.loading.buckets import Bucket
from data_prep.settings import BatchSettings
from jobs.cli import main
from jobs.settings import load_recipe
from pipelines.training.budget import Cluster, budget, model_states, remedies
from pipelines.training.deepspeed import import_deepspeed
from pipelines.training.settings import DiTSettings, LoRASettings, TrainSettings, WorkerSettings

BUCKET = Bucket(frames=121, height=512, width=768)


def settings(recompute: int = 1, tokens: int = 6400, **workers) -> TrainSettings:
    return TrainSettings(
        preset="ltx2-19b",
        batch=BatchSettings(tokens=tokens, micro_batches=64),
        workers=WorkerSettings(gpu=True, precision="bf16", recompute=recompute, **workers),
    )


def test_model_states_agree_with_deepspeeds_estimate() -> None:
    import_deepspeed(torch.device("cpu"))
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    transformer = model.build("ltx2-19b", device="meta", components=["transformer"]).transformer
    total = sum(p.numel() for p in transformer.parameters())
    block = sum(p.numel() for p in transformer.transformer_blocks[0].parameters())
    for nodes in (1, 4, 8):
        _, theirs, _ = estimate_zero3_model_states_mem_needs(
            total, block, num_gpus_per_node=8, num_nodes=nodes, cpu_offload=False, cpu_offload_params=False
        )
        ours = sum(model_states(total, 2 * block, 8 * nodes, 3, "bf16").values())
        assert ours == pytest.approx(theirs, rel=0.05)
        theirs, _ = estimate_zero2_model_states_mem_needs(
            total, num_gpus_per_node=8, num_nodes=nodes, cpu_offload=False
        )
        # DeepSpeed's 4 undivided bytes are bf16 weights and gradients; our gradients are fp32 and divided.
        ours = sum(model_states(total, 2 * block, 8 * nodes, 2, "bf16").values())
        assert ours <= theirs


def test_the_19b_run_of_the_facts() -> None:
    """A 121×768×512 clip takes 604 TFLOP forward and backward; ZeRO-3 moves 113 GB per micro-step (facts, §2)."""
    found = budget(settings(), [BUCKET], Cluster(8, 8, mfu=0.45))
    (cost,) = found.buckets
    assert cost.samples == 1
    assert cost.flops / 64 == pytest.approx(604e12, rel=0.02)  # the reference counts timesteps per token
    assert cost.compute_s == pytest.approx(1.36, rel=0.02)
    assert cost.communication_s == pytest.approx(0.38 * found.trained / 18_876_174_592, rel=0.02)
    assert found.total < found.available


def test_what_does_not_fit_names_changes_under_which_it_does() -> None:
    cluster = Cluster(1, 8)
    asked = settings(recompute=0, tokens=12_800)
    found = budget(asked, [BUCKET], cluster)
    assert found.total > found.available
    ways = list(remedies(asked, [BUCKET], cluster))
    assert ways
    recompute = next(way for way in ways if "recompute" in way)
    changed = settings(recompute=int(recompute.split()[-1]), tokens=12_800)
    mended = budget(changed, [BUCKET], cluster)
    assert mended.total <= mended.available
    assert mended.memory["activations"] < found.memory["activations"]


def test_more_ranks_divide_the_states_and_not_the_activations() -> None:
    few, many = (budget(settings(), [BUCKET], Cluster(nodes, 8)) for nodes in (4, 8))
    for name in ("weights", "gradients", "fp32 weights", "moments", "moving average"):
        assert few.memory[name] == pytest.approx(2 * many.memory[name], rel=1e-6)
    assert few.memory["activations"] == many.memory["activations"]


def test_adapters_have_an_optimizer_and_frozen_weights_have_none() -> None:
    """18 bytes per adapter parameter, 2 per base parameter, and no gradients for most weights in the backward."""
    cluster = Cluster(1, 8)
    full = budget(settings(), [BUCKET], cluster)
    asked = settings().model_copy(update={"dit": DiTSettings(lora=LoRASettings(rank=32))})
    found = budget(asked, [BUCKET], cluster)
    # A and B on four projections of six attentions in 48 blocks.
    v, a = 4096, 2048
    wide = [(v, v, v), (v, v, v), (a, a, a), (a, a, a), (v, a, a), (a, v, a)]  # queries, keys, inner
    pairs = sum(2 * (q + inner) + 2 * (k + inner) for q, k, inner in wide)
    assert found.trained == 48 * 32 * pairs
    assert found.frozen + found.trained == full.frozen + full.trained + found.trained
    assert found.memory["moments"] == 8 * found.trained // 8
    assert found.memory["frozen weights"] == 2 * found.frozen // 8
    assert 0.66 < found.buckets[0].flops / full.buckets[0].flops < 0.75
    assert 0.66 < found.buckets[0].communication_s / full.buckets[0].communication_s < 0.68
    assert found.total <= found.available


def test_ranks_that_share_samples_share_their_activations() -> None:
    long = Bucket(frames=241, height=1088, width=1920)
    tokens = long.video_tokens + long.audio_tokens
    alone, shared = settings(tokens=tokens), settings(tokens=tokens, sequence_parallel=4, count=64)
    cluster = Cluster(8, 8)
    one, four = (budget(asked, [long], cluster) for asked in (alone, shared))
    assert one.memory["activations"] == pytest.approx(4 * four.memory["activations"], rel=1e-6)
    assert one.buckets[0].compute_s == four.buckets[0].compute_s
    assert 4 * one.buckets[0].communication_s == four.buckets[0].communication_s
    assert "--train.workers.sequence-parallel 4" in list(remedies(alone, [long], Cluster(1, 8)))
    with pytest.raises(ValueError, match=r"64 GPUs are no multiple of .*sequence_parallel 3"):
        budget(settings(tokens=tokens, sequence_parallel=3, count=3), [long], cluster)


def test_batches_that_do_not_divide_and_buckets_over_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match="micro_batches 64 does not divide among 24 GPUs; make it 72"):
        budget(settings(), [BUCKET], Cluster(3, 8))
    with pytest.raises(ValueError, match="raise the budget to 6270"):
        budget(settings(tokens=4000), [BUCKET], Cluster(8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ltx2-finetune", "ltx2-lora", "small"])
def test_the_recipes_of_eight_gpus_fit_them(recipe: str) -> None:
    chosen = load_recipe(recipe)
    asked = chosen.for_task("dit")
    assert asked.workers.count == 8
    found = budget(asked, chosen.encode.buckets, Cluster(1, 8))
    assert found.total <= found.available


@pytest.mark.slow
def test_the_recipe_of_the_published_sizes_fits_eight_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_recipe("ltx2-19b").for_task("dit").workers.count == 64
    assert main(["plan", "--recipe", "ltx2-19b", "--nodes", "8"]) == 0
    said = capsys.readouterr().err
    assert "19.585 G parameters trained" in said
    assert "GPU-hours" in said


def test_the_verb_refuses_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "wide.yaml"
    recipe.write_text(
        "encode: {buckets: [{frames: 121, height: 512, width: 768}]}\n"
        "train: {preset: ltx2-19b, batch: {tokens: 12800, micro_batches: 64}, workers: {gpu: true, precision: bf16}}\n"
    )
    assert main(["plan", "--recipe", str(recipe), "--nodes", "1"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("kinotone: plan: needs")
    assert "--train.workers.recompute" in last
