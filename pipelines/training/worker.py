"""The one training loop, as it runs on every worker: Ray Train's process group, DeepSpeed's sharded optimizer.

What happened is written by rank 0 to `<output>/metrics.jsonl`, a line per log step; the driver reads it and tells the
tracking server and the person who waits, so that no step waits for either. Losses stay on the device between log steps.

Facts that shape it (DeepSpeed 0.19.8): `engine.step()` leaves out a step whose gradient norm is not finite, on all
ranks alike; all ranks must run the same modules and save together. DeepSpeed imports MLflow for its autotuner, compiles
a shared-memory all-reduce for the CPU on first use, and decorates an optimizer that is not ours with torch.compile,
which imports all of Inductor: each costs more than a tiny run and is left out.
"""

import json
import logging
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_prep.loading import batch_plan
from data_prep.loading.loader import Prefetch
from pipelines.training import checkpoint, reshard
from pipelines.training.ema import MovingAverage
from pipelines.training.partitions import fill, local_partitions, set_weights, spans
from pipelines.training.schedule import learning_rate
from pipelines.training.settings import OptimizerSettings, TrainSettings
from pipelines.training.tasks.base import Dataset, Mean, Task, Trainee
from pipelines.training.tasks.helpers.adversary import Adversary, own_optimizer

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker."""

    task: type[Task]
    settings: TrainSettings
    output: Path
    files: dict[str, Path]  # component → the file that it starts from


def run_worker(config: dict[str, Job]) -> None:
    """Train from the newest whole checkpoint, or from the start, to the last step; then write the weights."""
    import ray.train

    job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings = job.settings
    torch.set_num_threads(settings.workers.cpus)
    device = torch.device("cuda", torch.cuda.current_device()) if settings.workers.gpu else torch.device("cpu")
    if settings.workers.compile:
        os.environ["TORCHDYNAMO_DISABLE"] = "0"
    torch.manual_seed(settings.seed)

    task = job.task(settings)
    dataset = task.dataset()
    replicas = settings.workers.replicas
    plan = batch_plan.plan(dataset.buckets, dataset.tokens, settings.batch, seed=settings.seed, world=replicas)
    trainee = task.build(components(job, task, replicas, device))
    run = _Run(job, task, dataset, plan, trainee, rank, world, device)
    run.train()
    run.finish()


def components(job: Job, task: Task, replicas: int, device: torch.device) -> dict[str, nn.Module]:
    """The task's components: out of the files given, else freshly initialised under the run's seed.

    Those of a task made for ZeRO-3 are partitioned parameter by parameter as they are built and filled, so that no rank
    ever holds one whole; others are built on the CPU.
    """
    import model

    components: dict[str, nn.Module] = {}
    partitioned = task.zero_stage == task.stage == 3
    for name in task.uses:
        given = job.files.get(name)
        if given is not None and not partitioned:
            components[name] = model.weights.load_component(given, name)
            continue
        config = task.config(name, job.files)
        # Seeded by name, so that a part's start does not depend on which others are built.
        torch.manual_seed(job.settings.seed + sum(name.encode()))
        with _partitioning(job.settings, replicas, device) if partitioned else nullcontext():
            components[name] = model.build_component(config)
        if given is not None:
            fill(components[name], model.weights.stream(given, name))
    return components


def _partitioning(settings: TrainSettings, replicas: int, device: torch.device) -> AbstractContextManager[Any]:
    config = deepspeed_config(settings, 3, settings.workers.precision, replicas, device)
    return _import_deepspeed(device).zero.Init(config_dict_or_path=config)


class _Run:
    def __init__(
        self,
        job: Job,
        task: Task,
        dataset: Dataset,
        plan: batch_plan.Plan,
        trainee: Trainee,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self.job, self.settings, self.task, self.dataset, self.plan = job, job.settings, task, dataset, plan
        self.rank, self.world, self.device = rank, world, device
        self.root = job.output / "checkpoints"
        # Rank 0's word: a shared file system may show the ranks different moments.
        seen = [checkpoint.latest(self.root) if rank == 0 else None]
        dist.broadcast_object_list(seen)
        self.start, written_by = (0, world) if seen[0] is None else (seen[0][0], seen[0][1]["world"])
        start = partial(
            start_engine,
            stage=task.stage,
            settings=self.settings,
            replicas=self.settings.workers.replicas,
            device=device,
            load_universal=written_by != world,
        )
        self.engine = start(trainee, self.settings.optimizer, precision=self.settings.workers.precision)
        self.trainee: Trainee = self.engine.module
        torch.manual_seed(self.settings.seed)
        self.adversary: Adversary | None = None
        if (discriminators := task.discriminators()) is not None:
            optimizer = own_optimizer(self.settings.optimizer, discriminators.options)
            # DeepSpeed's bf16 casts weights and not the buffers by which spectral norms are estimated.
            engine = start(discriminators, optimizer, precision="fp32")
            self.adversary = Adversary(engine, optimizer, self.settings.steps)
        self.means = Means(device)
        self.skipped = 0
        self.engines = {"": self.engine}
        if self.adversary is not None:
            self.engines["discriminators"] = self.adversary.engine
        self._resume(written_by)
        about = {"task": task.name, "steps_per_epoch": plan.steps_per_epoch}
        self.checkpoints = checkpoint.Writer(self.root, self.engines, about, self.settings.checkpoint.keep)

    def _resume(self, written_by: int) -> None:
        """Take the state of `self.start`, which so many ranks wrote."""
        states: list[dict[str, Any]] = []
        if self.start and written_by == self.world:
            states = checkpoint.load(self.engines, self.root, self.start)
        elif self.start:
            states = reshard.load(self.engines, self.root, self.start, written_by)
        # After the load: it puts other tensors in the place of those that the optimizer updated before.
        self.ema = MovingAverage(local_partitions(self.trainee), spans(self.trainee), self.settings.optimizer.ema_decay)
        if not states:
            return
        self.ema.load(state["average"] for state in states)
        self.means.load([state["means"] for state in states], among=1 if written_by == self.world else self.world)
        # No draw of a run is of the generators' own, so it does not matter that further ranks begin with used states.
        checkpoint.set_random_state(states[self.rank % len(states)]["random"])
        self.skipped = states[0]["skipped"]
        if self.adversary is not None:
            self.adversary.skipped = self.adversary.engine.skipped_steps

    def _save(self, step: int) -> float:
        """Seconds that the loop stood still for it."""
        began = time.perf_counter()
        buffers = {name: dict(engine.module.named_buffers()) for name, engine in self.engines.items()}
        state = {"average": self.ema.state(), "buffers": buffers}
        self.checkpoints.save(step, {**state, "means": self.means.state(), "skipped": self.skipped})
        return time.perf_counter() - began

    def train(self) -> None:
        steps, every = self.settings.steps, self.settings.log_every
        log = _Log(self.job.output / METRICS, self.start) if self.rank == 0 else None
        accumulation = self.settings.micro_batches_each
        samples = tokens = 0
        flops = saving_s = waited_before = 0.0
        since = time.perf_counter()
        with Prefetch(self._micro_batch, start=self.start * accumulation, depth=2 * accumulation) as batches:
            for step in range(self.start, steps):
                self.checkpoints.check()
                bucket, weights = self._whole(step)
                for group in self.engine.optimizer.param_groups:
                    group["lr"] = learning_rate(self.settings.optimizer, step, steps)
                adversary = self.adversary if self.adversary is not None and self.adversary.begin(step) else None
                opposed = () if adversary is None else (adversary,)
                for _ in range(accumulation):
                    batch = next(batches).to(self.device)
                    loss, means = self.engine(batch, step, *opposed)
                    self.engine.backward(loss)
                    self.means.add(means)
                    flops += self.task.flops(self.trainee, batch) * self.settings.workers.replicas
                    self.engine.step()
                    if adversary is not None:
                        self.means.add(adversary.learn())
                self._after_step()
                if adversary is not None:
                    self.means.add(adversary.end())
                samples += weights
                tokens += weights * self.dataset.tokens[bucket]

                done = step + 1
                if done % every == 0 or done == steps:
                    means = self.means.take()
                    now = time.perf_counter()
                    seconds = now - since - saving_s
                    record = means | {
                        "lr": learning_rate(self.settings.optimizer, step, steps),
                        "epoch": done / self.plan.steps_per_epoch,
                        "skipped_steps": self.skipped,
                        **({} if adversary is None else {"discriminator/skipped_steps": adversary.skipped}),
                        "samples_per_s": samples / seconds,
                        "tokens_per_s": tokens / seconds,
                        "tflop_per_s": flops / seconds / 1e12,
                        "steps_per_s": every / seconds,
                        "loader_wait": (batches.waited_s - waited_before) / seconds,
                        "checkpoint_s": saving_s,
                        "checkpoint_write_s": self.checkpoints.write_s,
                    }
                    if log is not None:
                        log.write(done, record)
                    samples, tokens, flops, saving_s, waited_before = 0, 0, 0.0, 0.0, batches.waited_s
                    since = now
                if done % self.settings.checkpoint.every_steps == 0 or done == steps:
                    saving_s += self._save(done)
        self.checkpoints.wait()

    def _after_step(self) -> None:
        skipped = self.engine.skipped_steps
        if skipped == self.skipped:
            self.ema.update()
            norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)
            self.means.add({"grad_norm": (norm, torch.ones_like(norm))})
        self.skipped = skipped

    def _micro_batch(self, number: int) -> Any:
        """This rank's `number`-th micro-batch of the run."""
        step, index = divmod(number, self.settings.micro_batches_each)
        replica = self.rank // self.settings.workers.sequence_parallel
        batch = self.dataset.batch(self.plan.step(step).ranks[replica][index], step)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        return batch

    def _whole(self, step: int) -> tuple[str, int]:
        """The step's bucket and its real samples over all ranks: known from the plan, so never asked of a device."""
        planned = self.plan.step(step)
        weights = [weight for rank in planned.ranks for micro in rank for weight in micro.weights]
        return planned.bucket, sum(weight > 0 for weight in weights)

    def finish(self) -> None:
        """Give the trainee the averaged weights, let the task finish, write `<output>/weights`."""
        if self.settings.optimizer.ema_decay:
            set_weights(self.trainee, self.ema.weights)
        self.engine.eval()
        with torch.no_grad():
            self.task.finish(self.trainee, self.dataset, self.rank, self.world)
            self.trainee.save(self.job.output / "weights", self.rank, self.job.files)
            dist.barrier()


def start_engine(
    module: nn.Module,
    options: OptimizerSettings,
    *,
    stage: int,
    precision: str,
    settings: TrainSettings,
    replicas: int,
    device: torch.device,
    load_universal: bool,
) -> Any:
    """A module under DeepSpeed, with AdamW."""
    deepspeed = _import_deepspeed(device)
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [], []
    for p in trained:  # a partitioned one has its own shape beside the one that it shows
        (matrices if len(getattr(p, "ds_shape", p.shape)) >= 2 else vectors).append(p)
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )
    if stage == 3 and isinstance(module, Trainee):
        for part in module.modules():
            if isinstance(part, module.fetched_whole):
                deepspeed.utils.set_z3_leaf_module(part, True)
                part.register_forward_pre_hook(_require_gradients)
    config = deepspeed_config(settings, stage, precision, replicas, device)
    config["checkpoint"] = {"load_universal": load_universal}
    engine, *_ = deepspeed.initialize(model=module.to(device), optimizer=optimizer, config=config)
    return engine


def _require_gradients(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """DeepSpeed takes the gradients of a module that is gathered whole when those of its inputs are there. Where
    nothing before the module is trained (adapters, frozen parts), these must be asked for, or it takes none.
    """
    for x in inputs:
        if isinstance(x, Tensor) and x.is_floating_point() and torch.is_grad_enabled():
            x.requires_grad_()


def deepspeed_config(
    settings: TrainSettings, stage: int, precision: str, replicas: int, device: torch.device
) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": settings.batch.micro_batches // replicas,
        "gradient_clipping": settings.optimizer.clip_norm,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": device.type == "cuda",
            "stage3_param_persistence_threshold": settings.workers.persistence_threshold,
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": sys.maxsize,
    }


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, without what of it a run does not use."""
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
        import deepspeed.ops
    finally:
        if hidden:
            del sys.modules["mlflow"]
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    return deepspeed


class Means:
    """Sums and counts on the device, by name; brought to the host, over all ranks, when they are logged."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, means: dict[str, Mean]) -> None:
        """Entries that are not finite are left out of sum and count."""
        for name, (total, count) in means.items():
            total, count = total.detach().double(), count.detach().double()
            finite = torch.isfinite(total)
            total, count = torch.where(finite, total, 0.0), torch.where(finite, count, 0.0)
            if name in self._sums:
                before, number = self._sums[name]
                total, count = before + total, number + count
            self._sums[name] = (total, count)

    def take(self) -> dict[str, float]:
        """The means since the last time, the same on every rank; a name without a count is left out. Waits."""
        names = sorted(self._sums)
        if not names:
            return {}
        flat = torch.cat([torch.stack(self._sums[name]).reshape(2, -1) for name in names], dim=1)
        sizes = [self._sums[name][0].numel() for name in names]
        dist.all_reduce(flat)
        totals, counts = flat.cpu().tolist()
        self._sums.clear()
        found: dict[str, float] = {}
        at = 0
        for name, size in zip(names, sizes, strict=True):
            for i in range(size):
                if counts[at + i]:
                    found[name if size == 1 else f"{name}/{i}"] = totals[at + i] / counts[at + i]
            at += size
        return found

    def state(self) -> dict[str, list[Tensor]]:
        return {name: list(pair) for name, pair in self._sums.items()}

    def load(self, states: list[dict[str, list[Tensor]]], among: int) -> None:
        """Take an equal share of what ranks had, for each of as many ranks as take from the same states."""
        for name in states[0]:
            total, count = (torch.stack([state[name][i] for state in states]).sum(0) / among for i in (0, 1))
            self._sums[name] = (total.to(self.device), count.to(self.device))


class _Log:
    """metrics.jsonl, cut back to the step that a run goes on from."""

    def __init__(self, path: Path, start: int) -> None:
        lines = read_metrics(path)
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= start)
        half = path.with_name(f".{path.name}")
        half.write_text(kept)
        half.replace(path)
        self._file = path.open("a")

    def write(self, step: int, record: dict[str, float]) -> None:
        # Python's shortest form of a float reads back as the same number to the bit.
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl; a last line that was cut off is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
