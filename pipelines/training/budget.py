"""Estimate what a training run of task `dit` needs before a GPU is booked: memory, operations, time and traffic.

- Model states: DeepSpeed's estimate (ZeRO, arXiv 1910.02054 §3, with gradients accumulated in fp32). With bf16, 18
  bytes per trained parameter (weights 2, gradients 4, fp32 weights 4, moments 8), divided among the ranks as the ZeRO
  stage divides them; with ZeRO-3 also the weights and gradients of the one block that runs.
- Activations: traced on fake tensors (`model.activations`). Those of the text connectors are not counted. Those of
  frozen layers are estimated too high, because their inputs need not be saved. The activations of a sample are divided
  among the ranks that share its tokens.
- Operations: `model.flops`, three times those of the forward pass, without the gradients of frozen parameters.
- Time: the operations at the MFU of `Cluster`, or the traffic of the weights, whichever takes longer. Per micro-batch,
  ZeRO-3 gathers the weights twice and reduces the gradients once: with bf16, 6 bytes per trained parameter and 4 per
  frozen one. The exchanges of sequence parallelism are not in the traffic.
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
# GPU → (memory that is free for a process in GiB, dense bf16 peak in TFLOP/s).
GPUS = {"H100": (78.0, 989.4), "H200": (139.0, 989.4), "A100-80GB": (78.0, 312.0)}
# Memory per GPU for what is not estimated: CUDA's context, NCCL's buffers, and fragmentation.
RESERVE_GIB = 6.0
# DeepSpeed's default buckets, in elements: gradients to reduce (two buckets, for overlap), and weights to prefetch.
_REDUCE_BUCKET, _PREFETCH_BUCKET = 5e8, 5e7


@dataclass(frozen=True)
class Cluster:
    """The GPUs of a run, and assumptions about their speed.

    Attributes:
        nodes: number of nodes.
        gpus_per_node: number of GPUs of each node.
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
        """Return the number of GPUs of all nodes."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class BucketCost:
    """The estimated cost of a step with samples of one bucket.

    Attributes:
        bucket: shape of the samples.
        samples: number of samples of a micro-batch.
        tokens: number of tokens of a micro-batch.
        activations: peak bytes per GPU.
        flops: floating-point operations of the step on all GPUs, without recomputation.
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
        """Return the seconds of the step: the larger of both times, because communication overlaps with computation."""
        return max(self.compute_s, self.communication_s)


@dataclass(frozen=True)
class Budget:
    """The estimate of what a run needs.

    Attributes:
        trained: number of trained parameters.
        frozen: number of frozen parameters.
        memory: purpose, such as "gradients" → bytes per GPU.
        available: bytes per GPU that the run may use.
        buckets: cost of a step of each bucket.
    """

    trained: int
    frozen: int
    memory: dict[str, int]
    available: int
    buckets: list[BucketCost]

    @property
    def total(self) -> int:
        """Return the sum of `memory`, bytes per GPU."""
        return sum(self.memory.values())

    @property
    def step_s(self) -> float:
        """Return the mean seconds of a step, if every bucket is equally frequent."""
        return sum(cost.step_s for cost in self.buckets) / len(self.buckets)


def model_states(trained: int, at_work: int, gpus: int, zero_stage: int, precision: str) -> dict[str, int]:
    """Return the bytes per GPU of weights, gradients and optimizer states, by name.

    Args:
        trained: number of trained parameters.
        at_work: number of elements of the weights and gradients of one block, which ZeRO-3 gathers while it runs.
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
    """Numbers of parameters of the module that task `dit` trains."""

    trained: int
    frozen: int
    used: int  # parameters that a step uses: all but those of the feature projection W
    trained_share: float  # share of the transformer's parameters that are trained, in [0, 1]
    blocks: int  # number of blocks of the transformer
    block: int  # parameters of the largest block
    trained_block: int  # trained parameters of the block that has most of them


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
    """Return the number of parameters; with `trained`, only of those that require gradients."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def budget(settings: TrainSettings, buckets: Sequence[Bucket], cluster: Cluster) -> Budget:
    """Estimate memory, operations and step time of a run of task `dit`.

    Args:
        settings: of the run. The number of workers is the number of GPUs of `cluster`, not `workers.count`.
        buckets: shapes of the samples.
        cluster: the GPUs.

    Raises:
        ValueError: the recipe's micro-batches cannot be divided equally among the GPUs, or one sample of a bucket has
            more tokens than `batch.tokens`.
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
    """Yield flags of `kinotone plan`, the cheapest first, for a run that does not fit. Each alone makes it fit."""
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
    """Return the settings with changed values in one section."""
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=changes)})


def _fits(settings: TrainSettings, buckets: Sequence[Bucket], cluster: Cluster) -> bool:
    """Return whether the estimated memory of the run is available on a GPU."""
    found = budget(settings, buckets, cluster)
    return found.total <= found.available
