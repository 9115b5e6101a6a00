"""Task `text-projection`: the feature projection W and the connectors under the diffusion loss.

The first stage of training (arXiv 2601.03233 §3): W, the connectors and the transformer learn together, on the raw
hidden states of a frozen text encoder; after it W stays as it is, its features are stored by encode, and `dit` goes on.
With `train_transformer` off a given transformer stays as it is, which is how W is made for another text encoder.

The raw states (49 layers × 3840 channels × 1024 tokens × 2 bytes = 385 MB a caption at full size) are never stored:
each worker holds the whole text encoder and runs it on the captions of its batch. The encoder is no part of the
trainee: it is neither partitioned nor in the checkpoints.
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from data_prep.loading.batch_plan import MicroBatch
from data_prep.loading.loader import CaptionedBatch
from data_prep.packaged_weights import resolve
from model.text_encoder import GemmaTextEncoder
from pipelines.training.settings import TextProjectionSettings, TrainSettings
from pipelines.training.tasks.base import Dataset, Trainee
from pipelines.training.tasks.helpers.diffusion import DiffusionTask, DiffusionTrainee, LatentDataset
from pipelines.training.tasks.helpers.frozen import Frozen


class CaptionedDataset(LatentDataset):
    """Latents with their captions; the stored text features, which are another projection's, are not used."""

    def batch(self, micro: MicroBatch, step: int) -> CaptionedBatch:
        return self.samples.captioned_batch(micro.rows, micro.weights)


class TextProjectionTrainee(DiffusionTrainee):
    """Attributes: `encoder`, frozen; `text_slots`, tokens and pads of the last forward's captions."""

    text_slots: int

    def __init__(self, components: dict[str, nn.Module], encoder: GemmaTextEncoder, task: "TextProjectionTask") -> None:
        super().__init__(components, task)
        self._with_transformer = task.options.train_transformer
        self.encoder = Frozen(encoder)

    def components(self) -> dict[str, nn.Module]:
        trained: dict[str, nn.Module] = {"text_conditioner": self.text_conditioner}
        return {"transformer": self.transformer, **trained} if self._with_transformer else trained

    def text(self, batch: CaptionedBatch) -> tuple[Tensor, Tensor, Tensor]:
        states, mask = self.encoder.on(batch.weights.device).encode(list(batch.captions))
        self.text_slots = mask.numel()
        return *self.text_conditioner.project(states, mask), mask


class TextProjectionTask(DiffusionTask):
    name = "text-projection"
    options: TextProjectionSettings

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__(settings)
        self.options = settings.text_projection
        own = () if settings.text_projection.train_transformer else ("transformer.*",)
        self.frozen = (*own, *settings.text_projection.frozen)

    def dataset(self) -> CaptionedDataset:
        return CaptionedDataset(self.settings.input)

    def build(self, components: dict[str, nn.Module]) -> TextProjectionTrainee:
        # As encode loads it: on a CPU bfloat16 is slower than float32.
        dtype = torch.bfloat16 if self.settings.workers.gpu else torch.float32
        encoder = GemmaTextEncoder.load(resolve(self.options.text_encoder), self.options.max_text_tokens, dtype)
        return TextProjectionTrainee(components, encoder, self)

    def check(self, dataset: Dataset, files: dict[str, Path]) -> None:
        super().check(dataset, files)
        samples = cast(CaptionedDataset, dataset).samples
        samples.caption(0, samples.read(0)[1])
        if not self.options.train_transformer and "transformer" not in files:
            raise ValueError(
                "train text-projection: train_transformer is off and init_from gives no transformer; a fresh one puts "
                "out zeros, from which nothing is learnt; give a trained one, or train it too"
            )
        named = f"train.text_projection.text_encoder {self.options.text_encoder!r}"
        try:
            states, width = GemmaTextEncoder.sizes(resolve(self.options.text_encoder))
        except ValueError as error:
            raise ValueError(f"{named}: {error}") from error
        config = self.config("text_conditioner", files)
        if (states, width) != (config.num_states, config.hidden_size):
            raise ValueError(
                f"{named} gives {states} states of width {width}; the projection W takes {config.num_states} of width "
                f"{config.hidden_size}; name that text encoder, or a preset made for this one"
            )

    def flops(self, trainee: Trainee, batch: CaptionedBatch) -> float:
        """Also of the text encoder, forward, and of W, forward and for its gradient."""
        own = cast(TextProjectionTrainee, trainee)
        transformer = super().flops(trainee, batch)
        encoder = own.encoder.on(batch.weights.device).model
        layers = sum(p.numel() for name, p in encoder.named_parameters() if "embed_tokens" not in name)
        config = own.text_conditioner.config
        streams = (config.video_width, config.audio_width) if config.per_modality_projections else (config.video_width,)
        projection = config.hidden_size * config.num_states * sum(streams)
        return transformer + own.text_slots * (2 * layers + 4 * projection)
