"""What the training worker asks of a task: what to build, which data, what the loss is, what is finished at the end.

A task's random draws (noise, crops, dropout) are functions of (seed, sample id, step) through `generator`, never of the
rank, so that a run is the same at any number of workers and goes on exactly where it was cut off.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pyarrow as pa
import torch
from torch import Tensor, nn

from data_prep.loading.batch_plan import MicroBatch
from model import preset, weights
from pipelines.training.partitions import specs, stream_state
from pipelines.training.settings import TrainSettings

if TYPE_CHECKING:
    from pipelines.training.tasks.helpers.adversary import Discriminators

# A mean to be logged: sum and count, of shape () or (n,); the loop adds them up over micro-batches, steps and ranks.
Mean = tuple[Tensor, Tensor]


class Dataset(ABC):
    """The samples of a task.

    Attributes:
        buckets: the bucket of every sample.
        tokens: tokens of one sample, by bucket.
        skipped: samples that the set holds and the task cannot use, counted by reason.
    """

    buckets: pa.Array | pa.ChunkedArray | list[str]
    tokens: dict[str, int]
    skipped: dict[str, int]

    @abstractmethod
    def batch(self, micro: MicroBatch, step: int) -> Any:
        """A batch on the CPU (called in the loader's thread); it has `weights` (B,), `ids`, and `to(device)`."""


class Trainee(nn.Module, ABC):
    """The module that DeepSpeed wraps: forward gives the loss, so that every parameter is used inside it.

    Attributes:
        fetched_whole: classes of modules whose parameters ZeRO-3 gathers all together, not layer by layer.
    """

    fetched_whole: ClassVar[tuple[type[nn.Module], ...]] = ()

    @abstractmethod
    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Mean]]:
        """The weighted mean loss of a batch, and the means to be logged (the same names on every rank).

        A task with discriminators takes a third argument: the adversary, at steps that it takes part in. Its `judge` is
        called once, and its verdict's loss is in the loss that is returned.
        """

    @abstractmethod
    def components(self) -> dict[str, nn.Module]:
        """The model's components that are trained, by their names in a model folder."""

    def save(self, folder: Path, rank: int, files: dict[str, Path]) -> None:
        """Write what was trained to a model folder; every rank calls it. Rank 0 writes each parameter as it is
        gathered, so that no rank holds more than one whole.

        Args:
            files: component → the file that it started from.
        """
        for name, part in self.components().items():
            tensors = stream_state(part)
            if rank == 0:
                stored = weights.Component(name, cast(Any, part.config), specs(part), lambda tensors=tensors: tensors)
                weights.save_components([stored], folder)
            else:
                for _ in tensors:
                    pass


class Task(ABC):
    """One kind of training run.

    Attributes:
        name: as it is typed.
        zero_stage: DeepSpeed ZeRO stage unless the settings say otherwise.
        shares_samples: whether several workers can work on one sample (`workers.sequence_parallel`).
        uses: components that the task needs; what no model folder gives starts from random weights.
    """

    name: ClassVar[str]
    zero_stage: ClassVar[int] = 1
    shares_samples: ClassVar[bool] = False
    uses: tuple[str, ...]

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    @property
    def stage(self) -> int:
        """The ZeRO stage of the run."""
        asked = self.settings.workers.zero_stage
        return self.zero_stage if asked is None else asked

    @abstractmethod
    def dataset(self) -> Dataset:
        """The samples of `settings.input`.

        Raises:
            ValueError: the set is missing, empty, or not one that the task can use.
        """

    def config(self, component: str, files: dict[str, Path]) -> Any:
        """The configuration that a component will have: its file's (component → file), or the preset's."""
        if component in files:
            return weights.configs(files[component])[component]
        return getattr(preset(self.settings.preset), component)

    @abstractmethod
    def build(self, components: dict[str, nn.Module]) -> Trainee:
        """What is trained, out of the components named in `uses`."""

    def discriminators(self) -> "Discriminators | None":
        """What the trainee is trained against, from random weights; None where nothing is."""
        return None

    def check(self, dataset: Dataset, files: dict[str, Path]) -> None:  # noqa: B027
        """Raises ValueError where the data do not belong to the weights (component → its file) that it starts from."""

    @abstractmethod
    def flops(self, trainee: Trainee, batch: Any) -> float:
        """Floating-point operations of one batch, forward and backward."""

    def finish(self, trainee: Trainee, dataset: Dataset, rank: int, world: int) -> None:  # noqa: B027
        """Run on every rank when the last step is done and the trainee holds the averaged weights."""


def generator(seed: int, sample_id: str, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The source of a sample's random draws at a step: a function of its arguments alone."""
    digest = hashlib.sha256(f"{seed}\0{sample_id}\0{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def noise_like(x: Tensor, seed: int, ids: Sequence[str], step: int, purpose: str = "noise") -> Tensor:
    """Standard normal noise of the shape of x (B, …), drawn sample by sample."""
    draws = [
        torch.randn(x.shape[1:], generator=generator(seed, f"{sample_id}/{purpose}", step, x.device), device=x.device)
        for sample_id in ids
    ]
    return torch.stack(draws).to(x.dtype)


def weight_type(module: nn.Module) -> torch.dtype:
    """The type that a module computes in: bfloat16 under bf16."""
    return next(module.parameters()).dtype


def per_sample(loss: Tensor, weights: Tensor, means: dict[str, Tensor]) -> tuple[Tensor, dict[str, Mean]]:
    """What `Trainee.forward` gives, out of each sample's loss (B,), the weights (B,) and values (B,) to be logged."""
    real = (weights > 0).float()
    # A repeat of weight 0 may hold a value that is not finite; 0 · inf would spoil the sum.
    logged = {name: (torch.where(real > 0, value, 0.0).sum(), real.sum()) for name, value in means.items()}
    return (weights * loss).mean(), logged
