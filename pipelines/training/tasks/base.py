"""What a training task is, and how to write one.

A task defines the data, the modules, the loss, and what is written at the end. The training loop (`worker`) does
everything else: DeepSpeed, learning rate, moving average, checkpoints, resume, logging. Three classes work together:

    Dataset   lists the samples with their buckets and token counts, and loads a batch of them
    Trainee   the `nn.Module` that DeepSpeed wraps; its forward returns the loss of a batch
    Task      builds the two above from the settings, checks the user's input, and writes the trained weights

To write a task:

1. Subclass `Task`: set `name`, `needs` and `uses`; implement `dataset`, `build` and `flops`. `upscaler` is a short
   example. A new component must be in `model.COMPONENTS`, in `model.ltx2` and in `model.ModelConfig`.
2. Subclass `Trainee`: implement `forward` and `components`. For samples, use a dataset of `helpers.clips` (pixels or
   sound of a curated set) or `helpers.diffusion` (latents of an encoded set), or subclass `Dataset`.
3. Add a section of settings to `TrainSettings` in `pipelines/training/settings.py`.
4. Add the class to `driver.tasks`, and its name to the docstring of `driver.train`.
5. Add an entry to `tasks:` in `jobs/recipes/tiny/tiny.yaml`; a test compares it with `driver.tasks`.
6. Add the name to the help texts of `Train` in `jobs/verbs.py` and to the table in `README.md`.
7. Write the reference of the settings again: `python -m jobs.settings_reference > docs/settings.md`.

Take every random draw (noise, crops, dropout) from `helpers.random_draws`: a function of seed, sample id and step,
never of the rank. Then a run resumes bit-exactly with the same number of workers, and with another number it is the
same up to rounding.

For adversarial training, return the discriminators from `Task.discriminators`. The loop then passes an `Adversary` to
the trainee's forward.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, cast

import pyarrow as pa
import torch
from torch import Tensor, nn

from data_prep.loading.batch_plan import MicroBatch
from model import preset, weights
from pipelines.training.metrics import Mean
from pipelines.training.partitions import specs, stream_state
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.helpers.adversary import Discriminators


class Dataset(ABC):
    """The samples that a task trains on.

    Attributes:
        buckets: the bucket key of every sample. A batch has samples of one bucket.
        tokens: bucket key → number of tokens of one sample.
        skipped: number of samples in the set that the task cannot use, by reason.
    """

    buckets: pa.Array | pa.ChunkedArray | list[str]
    tokens: dict[str, int]
    skipped: dict[str, int]

    @abstractmethod
    def batch(self, micro: MicroBatch, step: int) -> Any:
        """Load a batch into CPU memory. The loader calls it in its own thread.

        Args:
            micro: rows of the samples (indices into `buckets`), and their loss weights.
            step: training step, for the random draws.

        Returns:
            A `data_prep.loading.loader.Batch`: `weights` (B,), `ids`, `to(device)`, `pin_memory()`.
        """


class Trainee(nn.Module, ABC):
    """The module that DeepSpeed wraps: the trained components with their loss.

    Forward computes the loss too, because DeepSpeed expects that parameters are used only inside forward.

    Attributes:
        leaf_classes: classes of modules whose parameters ZeRO-3 gathers together, not layer by layer.
    """

    leaf_classes: ClassVar[tuple[type[nn.Module], ...]] = ()

    @abstractmethod
    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Mean]]:
        """Compute the loss of a batch.

        With discriminators, forward gets a third argument, the `Adversary`, from the step `start_step` of its settings
        on. Call its `judge` once, and add the loss of its verdict to the returned loss.

        Args:
            batch: from `Dataset.batch`, on the device.
            step: training step, for the random draws.

        Returns:
            The weighted mean loss (), and the means to log, with the same names on every rank.
        """

    @abstractmethod
    def components(self) -> dict[str, nn.Module]:
        """Return the trained components of the model, by their names in a model folder."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return the dtype of the module's parameters: bfloat16 with precision bf16, else float32."""
        return next(self.parameters()).dtype


class Task(ABC):
    """One kind of training run.

    Attributes:
        name: the NAME in `kinotone train NAME`.
        needs: the kind of set that `settings.input` must be, as text for an error message.
        zero_stage: DeepSpeed ZeRO stage when `workers.zero_stage` is not set.
        shares_samples: whether several workers can share the tokens of one sample (`workers.sequence_parallel`).
        uses: names of the components that the task needs. A component without a file starts from random weights.
    """

    name: ClassVar[str]
    needs: ClassVar[str] = "a curated set (kinotone curate)"
    zero_stage: ClassVar[int] = 1
    shares_samples: ClassVar[bool] = False
    uses: tuple[str, ...]

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    @property
    def stage(self) -> int:
        """Return the ZeRO stage of the run: `workers.zero_stage` of the settings, or else the task's `zero_stage`."""
        asked = self.settings.workers.zero_stage
        return self.zero_stage if asked is None else asked

    @abstractmethod
    def dataset(self) -> Dataset:
        """Open the samples of `settings.input`.

        Raises:
            ValueError: the set is missing or empty, or the task cannot use it.
        """

    @abstractmethod
    def build(self, components: dict[str, nn.Module]) -> Trainee:
        """Build the trainee. components: name → module, for every name in `uses`."""

    @abstractmethod
    def flops(self, trainee: Trainee, batch: Any) -> float:
        """Return the floating-point operations of one batch, forward and backward."""

    def config(self, component: str, files: dict[str, Path]) -> Any:
        """Return the configuration of a component: from its file if it has one, else from the preset.

        Args:
            component: name of the component.
            files: component → the file that it starts from.
        """
        if component in files:
            return weights.configs(files[component])[component]
        return getattr(preset(self.settings.preset), component)

    def validate(self, dataset: Dataset, files: dict[str, Path]) -> None:  # noqa: B027
        """Check the user's input before any worker starts; by default, check nothing.

        Args:
            dataset: what `dataset` returned.
            files: component → the file that it starts from.

        Raises:
            ValueError: the settings, the samples and the given weights do not fit together.
        """

    def discriminators(self) -> Discriminators | None:
        """Build the discriminators from random weights; None for a task without an adversary."""
        return None

    def finish(self, trainee: Trainee, dataset: Dataset, rank: int, world: int) -> None:  # noqa: B027
        """Do what the task needs after the last step, such as statistics; by default, nothing. Every rank calls it.

        Args:
            trainee: with the averaged weights.
            dataset: what `dataset` returned.
            rank: of this process.
            world: number of ranks.
        """

    def save(self, trainee: Trainee, folder: Path, rank: int, files: dict[str, Path]) -> None:
        """Write the trained components to a model folder; every rank calls it.

        Parameters are gathered one at a time, and rank 0 writes each of them before the next is gathered, so that no
        rank has a complete component in memory.

        Args:
            trainee: the trained module.
            folder: the model folder.
            rank: of this process.
            files: component → the file that it started from.
        """
        for name, component in trainee.components().items():
            tensors = stream_state(component)
            if rank == 0:
                config = cast(Any, component.config)
                stored = weights.Component(name, config, specs(component), lambda tensors=tensors: tensors)
                weights.save_components([stored], folder)
            else:
                for _ in tensors:
                    pass
