"""Task `dit`: train the transformer with the diffusion loss, on the latents and text features that encode stored.

The text connectors are trained with the transformer. The feature projection W is not, because the stored features were
made with it. With `lora.rank` above 0, only low-rank adapters on the transformer are trained; all given weights are
frozen.
"""

from pathlib import Path
from typing import cast

from torch import nn

from model import weights
from model.lora import adapter_path
from model.presets import preset
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.base import Dataset, Trainee
from pipelines.training.tasks.helpers.diffusion import DiffusionTask, DiffusionTrainee, LatentDataset
from pipelines.training.tasks.helpers.lora import add_adapters, save_adapters


class DiTTask(DiffusionTask):
    """The task that trains transformer and text connectors, or adapters on the transformer, on an encoded set."""

    name = "dit"

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__(settings)
        self.options = settings.dit
        kept = "text_embedding_projection." if settings.dit.train_connectors else ""
        self.frozen = (f"text_conditioner.{kept}*", *settings.dit.frozen)

    def dataset(self) -> LatentDataset:
        """Open the encoded set; batches hold text features padded to a multiple of the connectors' registers."""
        registers = preset(self.settings.preset).text_conditioner.connector_num_learnable_registers
        return LatentDataset(self.settings.input, registers)

    def mark_trained(self, module: nn.Module) -> None:
        """Freeze the parameters that the task does not train; with LoRA, add adapters and freeze everything else."""
        lora = self.settings.dit.lora
        if not lora.rank:
            return super().mark_trained(module)
        module.requires_grad_(False)
        add_adapters(module.get_submodule("transformer"), lora, self.settings.seed)

    def validate(self, dataset: Dataset, files: dict[str, Path]) -> None:
        """Check what `DiffusionTask` checks, the settings of LoRA, and that W made the stored text features."""
        if self.settings.dit.lora.rank:
            if "transformer" not in files:
                raise ValueError(
                    "train dit: lora needs a given transformer, and init_from gives no transformer; name one"
                )
            if self.settings.dit.frozen:
                raise ValueError(
                    "train dit: under lora all given weights are frozen; remove dit.frozen, or narrow dit.lora.targets"
                )
        super().validate(dataset, files)
        if "text_conditioner" not in files:
            raise ValueError(
                "train dit: init_from gives no text_conditioner; name the model folder that encode used, "
                "because its projection W made the stored text features"
            )
        # Compare W alone: the connectors may have been trained since.
        known = cast(LatentDataset, dataset).samples.read(0)[1].get("text_projection")
        if known and weights.projection_fingerprint(files["text_conditioner"]) != known:
            raise ValueError(
                f"the text features of {self.settings.input} were made by another projection W than that of "
                f"{files['text_conditioner']}; encode again with these weights, or give those that encode used"
            )

    def save(self, trainee: Trainee, folder: Path, rank: int, files: dict[str, Path]) -> None:
        """Write the trained components; with LoRA, only the adapters. Every rank calls it."""
        lora = self.settings.dit.lora
        if not lora.rank:
            return super().save(trainee, folder, rank, files)
        base = weights.fingerprint(files["transformer"], "transformer") if rank == 0 else ""
        transformer = cast(DiffusionTrainee, trainee).transformer
        save_adapters(transformer, lora, adapter_path(folder / "transformer.safetensors"), rank, base)
