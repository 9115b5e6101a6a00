"""What a training run of the transformer needs of a cluster, before a GPU is booked: memory, operations, time, traffic.

Model states follow DeepSpeed's own estimate (ZeRO, arXiv 1910.02054 §3, with gradients accumulated in fp32): 18 bytes
per trained parameter under bf16 (weights 2, gradients 4, fp32 weights 4, moments 8), divided by the ranks as the ZeRO
stage divides them, and under ZeRO-3 the weights and gradients of the one block at work. Activations are traced on fake
tensors (`model.activations`; those of the text connectors are not counted); operations are `model.flops`, three times
the forward's; time is operations at a stated MFU, or the weights' traffic where that takes longer: ZeRO-3 gathers the
weights twice and reduces the gradients once per micro-batch, 6 bytes per parameter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

import model
from data_prep.buckets import Bucket
from model.activations import transformer_activations
from model.flops import transformer_flops
from model.presets import preset
from pipelines.settings import TrainSettings
from pipelines.training.dit import DiTTask

GIB = 2**30
# Memory that a process finds free (GiB), dense bf16 peak (TFLOP/s).
GPUS = {"H100": (78.0, 989.4), "H200": (139.0, 989.4), "A100-80GB": (78.0, 312.0)}
# CUDA's context, NCCL's buffers, and what fragments.
RESERVE_GIB = 6.0
# DeepSpeed's buckets, in elements (its defaults): gradients on their way out, twice for overlap; weights fetched ahead.
_REDUCE_BUCKET, _PREFETCH_BUCKET = 5e8, 5e7


@dataclass(frozen=True)
class Cluster:
    """GPUs and how well they are used: `bandwidth` is what one sends and receives, GB/s, in all-gathers over nodes."""

    nodes: int
    gpus_per_node: int
    gpu: str = "H100"
    mfu: float = 0.35
    bandwidth: float = 300.0

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class BucketCost:
    """One bucket's step. Seconds; `flops` of the whole step, recomputation left out."""

    bucket: Bucket
    samples: int  # per micro-batch
    tokens: int  # per micro-batch
    activations: int  # bytes per GPU
    flops: float
    compute_s: float
    communication_s: float

    @property
    def step_s(self) -> float:
        return max(self.compute_s, self.communication_s)


@dataclass(frozen=True)
class Budget:
    """Bytes per GPU by what they are for, and the cost of a step of each bucket."""

    trained: int
    frozen: int
    memory: dict[str, int]
    available: int
    buckets: list[BucketCost]

    @property
    def total(self) -> int:
        return sum(self.memory.values())

    @property
    def step_s(self) -> float:
        """Mean over the buckets, each taken as often."""
        return sum(cost.step_s for cost in self.buckets) / len(self.buckets)


def model_states(trained: int, largest: int, gpus: int, zero_stage: int, precision: str) -> dict[str, int]:
    """Bytes per GPU of weights, gradients and optimizer of `trained` parameters, `largest` of them in one block."""
    weight = 2 if precision == "bf16" else 4
    whole = {"weights": weight, "gradients": 4, "fp32 weights": 4 if weight == 2 else 0, "moments": 8}
    divided = {1: ("fp32 weights", "moments"), 2: ("gradients", "fp32 weights", "moments"), 3: tuple(whole)}[zero_stage]
    found = {name: each * trained // (gpus if name in divided else 1) for name, each in whole.items() if each}
    if zero_stage == 3:
        found["block at work"] = 2 * weight * largest
    return found


@dataclass(frozen=True)
class _Parameters:
    """Counts of a preset's parameters: W is the feature projection, `block` one block of the transformer."""

    transformer: int
    connectors: int
    projection: int
    blocks: int
    block: int


@lru_cache
def _parameters(name: str) -> _Parameters:
    parts = model.build(name, device="meta", components=["transformer", "text_conditioner"])
    blocks = parts.transformer.transformer_blocks
    projection = _count(parts.text_conditioner.text_embedding_projection)
    return _Parameters(
        _count(parts.transformer),
        _count(parts.text_conditioner) - projection,
        projection,
        len(blocks),
        max(map(_count, blocks)),
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def budget(settings: TrainSettings, buckets: Sequence[Bucket], cluster: Cluster) -> Budget:
    """What a run of task `dit` needs.

    Raises:
        ValueError: the recipe's micro-batches do not divide among the GPUs, or a bucket exceeds the token budget.
    """
    config, parameters, zero_stage = preset(settings.preset), _parameters(settings.preset), DiTTask(settings).stage
    learning = settings.dit.train_connectors
    trained = parameters.transformer + parameters.connectors * learning
    frozen = parameters.projection + parameters.connectors * (not learning)
    per_gpu, rest = divmod(settings.batch.micro_batches, cluster.gpus)
    if rest:
        near = cluster.gpus * max(1, round(settings.batch.micro_batches / cluster.gpus))
        raise ValueError(
            f"train.batch.micro_batches {settings.batch.micro_batches} does not divide among {cluster.gpus} GPUs; "
            f"make it {near}"
        )
    memory_gib, peak_tflops = GPUS[cluster.gpu]
    weight = 2 if settings.workers.precision == "bf16" else 4
    dtype = torch.bfloat16 if weight == 2 else torch.float32
    text = max(config.text_conditioner.context_tokens, config.text_conditioner.connector_num_learnable_registers)
    traffic = 3 * weight * trained * per_gpu if cluster.gpus > 1 else 0

    def cost(bucket: Bucket) -> BucketCost:
        tokens = bucket.video_tokens + bucket.audio_tokens
        samples = min(settings.batch.max_samples, settings.batch.tokens // tokens)
        if not samples:
            raise ValueError(
                f"bucket {bucket.key} has {tokens} tokens, over train.batch.tokens {settings.batch.tokens}; "
                f"raise the budget to {tokens} or drop the bucket"
            )
        held = transformer_activations(
            config.transformer, bucket.latent_shape, bucket.audio_tokens, text, samples, dtype
        )
        forward = transformer_flops(config.transformer, bucket.video_tokens, bucket.audio_tokens, text, samples).total
        flops = 3.0 * forward * settings.batch.micro_batches
        return BucketCost(
            bucket,
            samples,
            samples * tokens,
            held.peak(parameters.blocks, settings.workers.recompute),
            flops,
            flops / cluster.gpus / (peak_tflops * 1e12 * cluster.mfu),
            traffic / (cluster.bandwidth * 1e9),
        )

    costs = [cost(bucket) for bucket in buckets]
    memory = model_states(trained, parameters.block, cluster.gpus, zero_stage, settings.workers.precision)
    if settings.optimizer.ema_decay:
        memory["moving average"] = 4 * trained // cluster.gpus
    memory["frozen weights"] = weight * frozen // (cluster.gpus if zero_stage == 3 else 1)
    memory["activations"] = max(cost.activations for cost in costs)
    memory["buffers"] = int(weight * (2 * _REDUCE_BUCKET + (_PREFETCH_BUCKET if zero_stage == 3 else 0)))
    available = int((memory_gib - RESERVE_GIB) * GIB)
    return Budget(trained, frozen, memory, available, costs)


def remedies(settings: TrainSettings, buckets: Sequence[Bucket], cluster: Cluster) -> Iterator[str]:
    """Single changes under which a run that does not fit would, the cheapest first."""
    every = settings.workers.recompute
    for fewer in (n for n in (4, 3, 2, 1) if not every or n < every):
        if _fits(_with(settings, "workers", recompute=fewer), buckets, cluster):
            yield f"--train.workers.recompute {fewer}"
            break
    largest = max(bucket.video_tokens + bucket.audio_tokens for bucket in buckets)
    if settings.batch.tokens // largest > 1 and _fits(_with(settings, "batch", tokens=largest), buckets, cluster):
        yield f"--train.batch.tokens {largest}"
    if DiTTask(settings).stage < 3 and _fits(_with(settings, "workers", zero_stage=3), buckets, cluster):
        yield "--train.workers.zero-stage 3"
    for factor in (2, 4, 8):
        larger = replace(cluster, nodes=cluster.nodes * factor)
        micro = max(settings.batch.micro_batches, larger.gpus)
        if micro % larger.gpus == 0 and _fits(_with(settings, "batch", micro_batches=micro), buckets, larger):
            batches = f" --train.batch.micro-batches {micro}" if micro != settings.batch.micro_batches else ""
            yield f"--nodes {larger.nodes}{batches}"
            break


def _with(settings: TrainSettings, section: str, **changes: int) -> TrainSettings:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=changes)})


def _fits(settings: TrainSettings, buckets: Sequence[Bucket], cluster: Cluster) -> bool:
    found = budget(settings, buckets, cluster)
    return found.total <= found.available
