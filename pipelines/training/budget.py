"""Estimate what a training run of task `dit` needs before a GPU is booked: memory, operations, time and traffic.

- Model states: DeepSpeed's estimate (ZeRO, arXiv 1910.02054 §3, with gradients accumulated in fp32). With bf16, 18
  bytes per trained parameter (weights 2, gradients 4, fp32 weights 4, moments 8), divided among the ranks as the ZeRO
  stage divides them; with ZeRO-3 also the weights and gradients of the one block that runs.
- Activations: traced on fake tensors (`model.activations`). Those of the text connectors are not counted; those of
  frozen layers are counted too high, because their inputs need not be saved. Ranks that share the tokens of a sample
  share its activations.
- Operations: `model.flops`, three times the forward's, without the gradients of frozen parameters.
- Time: the operations at a stated MFU, or the traffic of the weights, whichever takes longer. Per micro-batch, ZeRO-3
  gathers the weights twice and reduces the gradients once: 6 bytes per trained parameter, 4 per frozen one. The
  exchanges of sequence parallelism are not in the traffic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

import model
from data_prep.loading.buckets import Bucket
from model.activations import transformer_activations
from model.flops import training_flops
from model.presets import preset
from pipelines.training.settings import DiTSettings, TrainSettings
from pipelines.training.tasks.dit import DiTTask

GIB = 2**30
# By GPU: memory free for a process (GiB), dense bf16 peak (TFLOP/s).
GPUS = {"H100": (78.0, 989.4), "H200": (139.0, 989.4), "A100-80GB": (78.0, 312.0)}
# For CUDA's context, NCCL's buffers, and fragmentation.
RESERVE_GIB = 6.0
# DeepSpeed's default buckets, in elements: gradients to reduce (two buckets, for overlap), and weights to prefetch.
_REDUCE_BUCKET, _PREFETCH_BUCKET = 5e8, 5e7


@dataclass(frozen=True)
class Cluster:
    """The GPUs of a run, and how well they are used.

    Attributes:
        nodes: number of nodes.
        gpus_per_node: GPUs of each node.
        gpu: a key of `GPUS`.
        mfu: model FLOPs utilisation, in (0, 1].
        bandwidth: GB/s that one GPU sends and receives in all-gathers over nodes.
    """

    nodes: int
    gpus_per_node: int
    gpu: str = "H100"
    mfu: float = 0.35
    bandwidth: float = 300.0

    @property
    def gpus(self) -> int:
        """Number of GPUs of all nodes."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class BucketCost:
    """The cost of a step of one bucket.

    Attributes:
        bucket: of the samples.
        samples: per micro-batch.
        tokens: per micro-batch.
        activations: bytes per GPU.
        flops: of the step over all GPUs, without recomputation.
        compute_s: seconds for the operations.
        communication_s: seconds for the traffic of the weights.
    """

    bucket: Bucket
    samples: int
    tokens: int
    activations: int
    flops: float
    compute_s: float
    communication_s: float

    @property
    def step_s(self) -> float:
        """Seconds of the step: communication overlaps with computation."""
        return max(self.compute_s, self.communication_s)


@dataclass(frozen=True)
class Budget:
    """What a run needs.

    Attributes:
        trained: number of trained parameters.
        frozen: number of frozen parameters.
        memory: bytes per GPU, by purpose.
        available: bytes per GPU.
        buckets: cost of a step of each bucket.
    """

    trained: int
    frozen: int
    memory: dict[str, int]
    available: int
    buckets: list[BucketCost]

    @property
    def total(self) -> int:
        """Bytes per GPU for all purposes."""
        return sum(self.memory.values())

    @property
    def step_s(self) -> float:
        """Mean seconds of a step, with every bucket equally frequent."""
        return sum(cost.step_s for cost in self.buckets) / len(self.buckets)


def model_states(trained: int, at_work: int, gpus: int, zero_stage: int, precision: str) -> dict[str, int]:
    """Return the bytes per GPU of weights, gradients and optimizer states, by name.

    Args:
        trained: number of trained parameters.
        at_work: weights plus gradients of one block, which ZeRO-3 holds complete while the block runs; elements.
        gpus: number of ranks.
        zero_stage: 1 to 3.
        precision: "bf16" or "fp32".
    """
    weight = 2 if precision == "bf16" else 4
    sizes = {"weights": weight, "gradients": 4, "fp32 weights": 4 if weight == 2 else 0, "moments": 8}
    divided = {1: ("fp32 weights", "moments"), 2: ("gradients", "fp32 weights", "moments"), 3: tuple(sizes)}[zero_stage]
    found = {name: each * trained // (gpus if name in divided else 1) for name, each in sizes.items() if each}
    if zero_stage == 3:
        found["block at work"] = weight * at_work
    return found


@dataclass(frozen=True)
class _Parameters:
    """Numbers of parameters."""

    trained: int
    frozen: int
    used: int  # in a step
    trained_share: float  # of the transformer's parameters
    blocks: int  # number of blocks of the transformer
    block: int  # of the largest block
    trained_block: int  # of the block with the most trained ones


@lru_cache
def _parameters(name: str, options: str) -> _Parameters:
    """Count the parameters of a preset, built on the meta device as task `dit` trains it.

    Args:
        name: of the preset.
        options: the task's section of the settings, as JSON.
    """
    task = DiTTask(TrainSettings(preset=name, dit=DiTSettings.model_validate_json(options)))
    components = model.build(name, device="meta", components=task.uses).components
    trainee = task.build(components)
    blocks = trainee.transformer.transformer_blocks
    total, trained = _count(trainee), _count(trainee, trained=True)
    return _Parameters(
        trained,
        total - trained,
        total - _count(trainee.text_conditioner.text_embedding_projection),
        trainee.trained_share,
        len(blocks),
        max(map(_count, blocks)),
        max(_count(block, trained=True) for block in blocks),
    )


def _count(module: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def budget(settings: TrainSettings, buckets: Sequence[Bucket], cluster: Cluster) -> Budget:
    """Estimate what a run of task `dit` needs.

    Args:
        settings: of the run; the number of workers is taken from `cluster`.
        buckets: of the samples.
        cluster: the GPUs.

    Raises:
        ValueError: the recipe's micro-batches do not divide among the GPUs, or a bucket exceeds the token budget.
    """
    config, zero_stage = preset(settings.preset), DiTTask(settings).stage
    parameters = _parameters(settings.preset, settings.dit.model_dump_json())
    trained, frozen = parameters.trained, parameters.frozen
    ranks = settings.workers.sequence_parallel
    replicas, rest = divmod(cluster.gpus, ranks)
    if rest:
        raise ValueError(
            f"{cluster.gpus} GPUs are no multiple of train.workers.sequence_parallel {ranks}; make it a divisor"
        )
    per_gpu, rest = divmod(settings.batch.micro_batches, replicas)
    if rest:
        near = replicas * max(1, round(settings.batch.micro_batches / replicas))
        among = f"{replicas} GPUs" if ranks == 1 else f"{replicas} groups of {ranks} GPUs"
        raise ValueError(
            f"train.batch.micro_batches {settings.batch.micro_batches} does not divide among {among}; make it {near}"
        )
    memory_gib, peak_tflops = GPUS[cluster.gpu]
    weight = 2 if settings.workers.precision == "bf16" else 4
    dtype = torch.bfloat16 if weight == 2 else torch.float32
    text = max(config.text_conditioner.context_tokens, config.text_conditioner.connector_num_learnable_registers)
    traffic = weight * (2 * parameters.used + trained) * per_gpu if cluster.gpus > 1 else 0

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
        flops = settings.batch.micro_batches * training_flops(
            config.transformer,
            bucket.video_tokens,
            bucket.audio_tokens,
            text,
            samples,
            parameters.trained_share,
        )
        return BucketCost(
            bucket,
            samples,
            samples * tokens,
            -(-held.peak(parameters.blocks, settings.workers.recompute) // ranks),
            flops,
            flops / cluster.gpus / (peak_tflops * 1e12 * cluster.mfu),
            traffic / (cluster.bandwidth * 1e9),
        )

    costs = [cost(bucket) for bucket in buckets]
    at_work = parameters.block + parameters.trained_block
    memory = model_states(trained, at_work, cluster.gpus, zero_stage, settings.workers.precision)
    if settings.optimizer.ema_decay:
        memory["moving average"] = 4 * trained // cluster.gpus
    memory["frozen weights"] = weight * frozen // (cluster.gpus if zero_stage == 3 else 1)
    memory["activations"] = max(cost.activations for cost in costs)
    memory["buffers"] = int(weight * (2 * _REDUCE_BUCKET + (_PREFETCH_BUCKET if zero_stage == 3 else 0)))
    available = int((memory_gib - RESERVE_GIB) * GIB)
    return Budget(trained, frozen, memory, available, costs)


def remedies(settings: TrainSettings, buckets: Sequence[Bucket], cluster: Cluster) -> Iterator[str]:
    """Yield the single changes, the cheapest first, with which a run that does not fit would fit."""
    every = settings.workers.recompute
    for fewer in (n for n in (4, 3, 2, 1) if not every or n < every):
        if _fits(_with(settings, "workers", recompute=fewer), buckets, cluster):
            yield f"--train.workers.recompute {fewer}"
            break
    largest = max(bucket.video_tokens + bucket.audio_tokens for bucket in buckets)
    if settings.batch.tokens // largest > 1 and _fits(_with(settings, "batch", tokens=largest), buckets, cluster):
        yield f"--train.batch.tokens {largest}"
    for ranks in (n for n in (2, 4, 8) if settings.workers.sequence_parallel == 1 and cluster.gpus % n == 0):
        if _fits(_with(settings, "workers", sequence_parallel=ranks), buckets, cluster):
            yield f"--train.workers.sequence-parallel {ranks}"
            break
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
