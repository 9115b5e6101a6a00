"""Task `dit`: the transformer under the diffusion loss, on the text features that encode stored.

The text connectors train with the transformer; the feature projection W does not, for its features are what is stored.
With `lora.rank` the given weights stay as they are, connectors too, and low-rank adapters on the transformer train.
"""

from pathlib import Path
from typing import cast

from torch import Tensor, nn

from data_prep.loading.batch_plan import MicroBatch
from data_prep.loading.loader import EncodedBatch
from model import weights
from model.lora import adapter_path
from model.presets import preset
from pipelines.training.settings import TrainSettings
from pipelines.training.tasks.base import Dataset
from pipelines.training.tasks.helpers.diffusion import DiffusionTask, DiffusionTrainee, LatentDataset
from pipelines.training.tasks.helpers.lora import add_adapters, save_adapters


class EncodedDataset(LatentDataset):
    """Latents with their stored text features, padded to a multiple of the connectors' registers."""

    def __init__(self, root: str, registers: int) -> None:
        super().__init__(root)
        self._registers = registers

    def batch(self, micro: MicroBatch, step: int) -> EncodedBatch:
        return self.samples.batch(micro.rows, micro.weights, self._registers)


class DiTTrainee(DiffusionTrainee):
    def __init__(self, components: dict[str, nn.Module], task: "DiTTask") -> None:
        super().__init__(components, task)
        self._lora = task.settings.dit.lora

    def components(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "text_conditioner": self.text_conditioner}

    def save(self, folder: Path, rank: int, files: dict[str, Path]) -> None:
        if not self._lora.rank:
            return super().save(folder, rank, files)
        base = weights.fingerprint(files["transformer"], "transformer") if rank == 0 else ""
        save_adapters(self.transformer, self._lora, adapter_path(folder / "transformer.safetensors"), rank, base)

    def text(self, batch: EncodedBatch) -> tuple[Tensor, Tensor, Tensor]:
        return batch.video_features, batch.audio_features, batch.text_mask


class DiTTask(DiffusionTask):
    name = "dit"

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__(settings)
        self.options = settings.dit
        kept = "text_embedding_projection." if settings.dit.train_connectors else ""
        self.frozen = (f"text_conditioner.{kept}*", *settings.dit.frozen)

    def dataset(self) -> EncodedDataset:
        registers = preset(self.settings.preset).text_conditioner.connector_num_learnable_registers
        return EncodedDataset(self.settings.input, registers)

    def build(self, components: dict[str, nn.Module]) -> DiTTrainee:
        return DiTTrainee(components, self)

    def mark_trained(self, module: nn.Module) -> None:
        lora = self.settings.dit.lora
        if not lora.rank:
            return super().mark_trained(module)
        module.requires_grad_(False)
        add_adapters(module.get_submodule("transformer"), lora, self.settings.seed)

    def check(self, dataset: Dataset, files: dict[str, Path]) -> None:
        if self.settings.dit.lora.rank:
            if "transformer" not in files:
                raise ValueError("train dit: lora is for given weights, and init_from gives no transformer; name one")
            if self.settings.dit.frozen:
                raise ValueError(
                    "train dit: under lora all given weights are frozen; remove dit.frozen, or narrow dit.lora.targets"
                )
        super().check(dataset, files)
        if "text_conditioner" not in files:
            raise ValueError(
                "train dit: init_from gives no text_conditioner; name the model folder that encode used, "
                "for the stored text features are its projection's"
            )
        # The connectors may have been trained on; the projection is what the features are of.
        known = cast(EncodedDataset, dataset).samples.read(0)[1].get("text_projection")
        if known and weights.projection_fingerprint(files["text_conditioner"]) != known:
            raise ValueError(
                f"the text features of {self.settings.input} were made by another projection W than that of "
                f"{files['text_conditioner']}; encode again with these weights, or give those that encode used"
            )
