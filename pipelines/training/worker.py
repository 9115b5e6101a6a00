"""The training loop, as every worker runs it inside Ray Train's process group.

Read `Trainer.train` first: one training step from top to bottom. The loop is the same for every task; the task
(`tasks.base`) builds the module, its data and its loss. `deepspeed` sets up DeepSpeed, `metrics` collects the numbers
that are logged, and `checkpoint` writes checkpoints.

All ranks must run the same modules and save at the same step, because ZeRO's collective calls must match.
"""

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data_prep.loading import batch_plan
from data_prep.loading.loader import Prefetch
from pipelines.training import checkpoint, reshard
from pipelines.training.deepspeed import partitioned_init, start_engine
from pipelines.training.ema import MovingAverage
from pipelines.training.metrics import METRICS, Means, MetricsFile, Throughput, gradient_norm
from pipelines.training.partitions import fill, local_partitions, set_weights, spans
from pipelines.training.schedule import learning_rate, set_learning_rate
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.base import Task, Trainee
from pipelines.training.tasks.helpers.adversary import Adversary, discriminator_optimizer


@dataclass(frozen=True)
class Job:
    """The description of a run that the driver sends to every worker.

    Attributes:
        task: class of the task.
        settings: of the run.
        output: the run's folder.
        files: component → the file that it starts from.
    """

    task: type[Task]
    settings: TrainSettings
    output: Path
    files: dict[str, Path]


def run_worker(config: dict[str, Job]) -> None:
    """Train from the newest complete checkpoint, or from the start, to the last step; then write the weights.

    Ray Train calls it in each worker with config = {"job": the job}.
    """
    import ray.train

    job = config["job"]
    context = ray.train.get_context()
    settings = job.settings
    torch.set_num_threads(settings.workers.cpus)
    device = torch.device("cuda", torch.cuda.current_device()) if settings.workers.gpu else torch.device("cpu")
    if settings.workers.compile:
        os.environ["TORCHDYNAMO_DISABLE"] = "0"
    torch.manual_seed(settings.seed)
    trainer = Trainer(job, context.get_world_rank(), context.get_world_size(), device)
    trainer.train()
    trainer.export()


def build_components(job: Job, task: Task, device: torch.device) -> dict[str, nn.Module]:
    """Return name → component for all that the task uses, with the weights of their files or random ones.

    With ZeRO-3, in a task whose default is ZeRO-3, each parameter is partitioned as soon as it is built, so that no
    rank has a complete component in memory. Otherwise the components are built on the CPU.
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
        # A seed for each name, so that random weights do not depend on which other components are built.
        torch.manual_seed(job.settings.seed + sum(name.encode()))
        with partitioned_init(job.settings, device) if partitioned else nullcontext():
            components[name] = model.build_component(config)
        if given is not None:
            fill(components[name], model.weights.stream(given, name))
    return components


class Trainer:
    """One rank of a training run: its data, engines, moving average and checkpoints, and the loop.

    Construct it on every rank: it loads the newest complete checkpoint, and `start` is then the step of it, else 0.
    """

    def __init__(self, job: Job, rank: int, world: int, device: torch.device) -> None:
        self.job, self.settings = job, job.settings
        self.rank, self.world, self.device = rank, world, device
        self.root = job.output / "checkpoints"
        replicas = self.settings.workers.replicas

        # The task: its samples, their order, and the module to train.
        self.task = job.task(self.settings)
        self.dataset = self.task.dataset()
        self.plan = batch_plan.plan(
            self.dataset.buckets, self.dataset.tokens, self.settings.batch, seed=self.settings.seed, world=replicas
        )
        trainee = self.task.build(build_components(job, self.task, device))

        # Rank 0 chooses the checkpoint: on a shared file system the ranks may not see the same files.
        found = [checkpoint.latest(self.root) if rank == 0 else None]
        dist.broadcast_object_list(found)
        self.start, written_by = (0, world) if found[0] is None else (found[0][0], found[0][1]["world"])

        # One engine for the trainee, and a second one for the discriminators, where the task has any.
        start = partial(
            start_engine,
            stage=self.task.stage,
            settings=self.settings,
            device=device,
            load_universal=written_by != world,
        )
        self.engine = start(trainee, self.settings.optimizer, precision=self.settings.workers.precision)
        self.trainee: Trainee = self.engine.module
        self.engines = {"": self.engine}
        torch.manual_seed(self.settings.seed)
        self.adversary: Adversary | None = None
        if (discriminators := self.task.discriminators()) is not None:
            optimizer = discriminator_optimizer(self.settings.optimizer, discriminators.options)
            # fp32: DeepSpeed's bf16 casts the weights but not the buffers that estimate spectral norms.
            engine = start(discriminators, optimizer, precision="fp32")
            self.adversary = Adversary(engine, optimizer, self.settings.steps)
            self.engines["discriminators"] = engine

        self.means = Means(device)
        self.skipped = 0
        self._resume(written_by)
        about = {"task": self.task.name, "steps_per_epoch": self.plan.steps_per_epoch}
        self.checkpoints = checkpoint.Writer(self.root, self.engines, about, self.settings.checkpoint.keep)

    def train(self) -> None:
        """Run the steps from `self.start` to the last one, log, and save checkpoints."""
        settings, steps = self.settings, self.settings.steps
        accumulation = settings.micro_batches_each
        log = MetricsFile(self.job.output / METRICS, self.start) if self.rank == 0 else None
        throughput = Throughput()
        with Prefetch(self._micro_batch, start=self.start * accumulation, depth=2 * accumulation) as batches:
            for step in range(self.start, steps):
                self.checkpoints.raise_error()

                # Set the learning rates. The discriminators take part from their start_step on.
                rate = learning_rate(settings.optimizer, step, steps)
                set_learning_rate(self.engine, rate)
                adversary = self.adversary if self.adversary is not None and self.adversary.begin(step) else None
                arguments = (step,) if adversary is None else (step, adversary)

                # Accumulate gradients. DeepSpeed updates the weights in the step() of the last micro-batch.
                for _ in range(accumulation):
                    batch = next(batches).to(self.device)
                    loss, means = self.engine(batch, *arguments)
                    self.engine.backward(loss)
                    self.means.add(means)
                    throughput.flops += self.task.flops(self.trainee, batch) * settings.workers.replicas
                    self.engine.step()
                    if adversary is not None:
                        self.means.add(adversary.learn())

                # Update the moving average, unless the gradient norm was not finite: all ranks skip such a step.
                if self.engine.skipped_steps == self.skipped:
                    self.ema.update()
                    self.means.add({"grad_norm": gradient_norm(self.engine)})
                self.skipped = self.engine.skipped_steps
                if adversary is not None:
                    self.means.add(adversary.end())
                samples, tokens = self._planned(step)
                throughput.samples += samples
                throughput.tokens += tokens

                # Log. The loop waits for the device only here, and when it copies a checkpoint.
                done = step + 1
                if done % settings.log_every == 0 or done == steps:
                    record = self.means.take() | {
                        "lr": rate,
                        "epoch": done / self.plan.steps_per_epoch,
                        "skipped_steps": self.skipped,
                        **({} if adversary is None else {"discriminator/skipped_steps": adversary.skipped}),
                        **throughput.take(settings.log_every, batches.waited_s),
                        "checkpoint_write_s": self.checkpoints.write_s,
                    }
                    if log is not None:
                        log.write(done, record)

                # Save. A thread writes the files while the loop continues.
                if done % settings.checkpoint.every_steps == 0 or done == steps:
                    throughput.saving_s += self._save(done)
        self.checkpoints.wait()

    def export(self) -> None:
        """Copy the averaged weights into the trainee, call `Task.finish`, and write `<output>/weights`."""
        if self.settings.optimizer.ema_decay:
            set_weights(self.trainee, self.ema.weights)
        self.engine.eval()
        with torch.no_grad():
            self.task.finish(self.trainee, self.dataset, self.rank, self.world)
            self.task.save(self.trainee, self.job.output / "weights", self.rank, self.job.files)
            dist.barrier()

    def _micro_batch(self, number: int) -> Any:
        """Load this rank's micro-batch with this number, counted from 0 at the start of the run, into CPU memory."""
        step, index = divmod(number, self.settings.micro_batches_each)
        replica = self.rank // self.settings.workers.sequence_parallel
        batch = self.dataset.batch(self.plan.step(step).ranks[replica][index], step)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        return batch

    def _planned(self, step: int) -> tuple[int, int]:
        """Return the number of samples of a step on all ranks, without repeats, and the number of their tokens.

        Both are read from the plan, not from the batches, so that no step waits for the device.
        """
        planned = self.plan.step(step)
        samples = sum(weight > 0 for rank in planned.ranks for micro in rank for weight in micro.weights)
        return samples, samples * self.dataset.tokens[planned.bucket]

    def _save(self, step: int) -> float:
        """Copy the training state and start to write it as a checkpoint; return the seconds that the loop waited."""
        began = time.perf_counter()
        buffers = {name: dict(engine.module.named_buffers()) for name, engine in self.engines.items()}
        state = {"average": self.ema.state(), "buffers": buffers}
        self.checkpoints.save(step, {**state, "means": self.means.state(), "skipped": self.skipped})
        return time.perf_counter() - began

    def _resume(self, written_by: int) -> None:
        """Load the checkpoint of step `self.start`, if it is not 0, and create the moving average.

        Args:
            written_by: number of ranks that wrote the checkpoint.
        """
        states: list[dict[str, Any]] = []
        if self.start and written_by == self.world:
            states = checkpoint.load(self.engines, self.root, self.start)
        elif self.start:
            states = reshard.load(self.engines, self.root, self.start, written_by)
        # Only now, because loading a checkpoint replaces the tensors that the optimizer updates.
        self.ema = MovingAverage(local_partitions(self.trainee), spans(self.trainee), self.settings.optimizer.ema_decay)
        if not states:
            return
        self.ema.load(state["average"] for state in states)
        self.means.load([state["means"] for state in states], among=1 if written_by == self.world else self.world)
        # Two new ranks may get the same global random state: all draws of a run come from generators of their own.
        checkpoint.set_random_state(states[self.rank % len(states)]["random"])
        self.skipped = states[0]["skipped"]
        if self.adversary is not None:
            self.adversary.skipped = self.adversary.engine.skipped_steps
