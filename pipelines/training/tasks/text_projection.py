"""Task `text-projection`: train the feature projection W and the text connectors with the diffusion loss.

This is the first stage of training (arXiv 2601.03233 §3): W, the connectors and the transformer learn together from the
hidden states of a frozen text encoder. Afterwards W is not changed any more: encode stores the features that it makes,
and `dit` continues with them. With `train_transformer` off, a given transformer is frozen; use this to train W for
another text encoder.

The hidden states are never stored, because they are large: 49 layers × 3840 channels × 1024 tokens × 2 bytes = 385 MB
per caption at full size. Each worker loads the complete text encoder and runs it on the captions of its batch. The
encoder is no submodule of the trainee: it is neither partitioned nor written to checkpoints.
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from data_prep.loading.loader import CaptionedBatch, LatentBatch
from data_prep.packaged_weights import resolve
from model.text_encoder import GemmaTextEncoder
from pipelines.training.settings import TextProjectionSettings, TrainSettings
from pipelines.training.tasks.base import Dataset, Trainee
from pipelines.training.tasks.helpers.diffusion import DiffusionTask, DiffusionTrainee, LatentDataset
from pipelines.training.tasks.helpers.frozen import Frozen


class TextProjectionTrainee(DiffusionTrainee):
    """Transformer and text conditioner with the diffusion loss, for batches with captions.

    Args:
        components: "transformer" and "text_conditioner".
        encoder: the text encoder, which is frozen.
        task: the task of the run.

    Attributes:
        encoder: the frozen text encoder.
        text_slots: number of tokens of the last batch's captions, B · S, with padding.
    """

    text_slots: int

    def __init__(self, components: dict[str, nn.Module], encoder: GemmaTextEncoder, task: "TextProjectionTask") -> None:
        super().__init__(components, task)
        self.encoder = Frozen(encoder)

    def text(self, batch: CaptionedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the captions and project their hidden states; return features and mask as `DiffusionTrainee.text`."""
        states, mask = self.encoder.on(batch.weights.device).encode(list(batch.captions))
        self.text_slots = mask.numel()
        return *self.text_conditioner.project(states, mask), mask


class TextProjectionTask(DiffusionTask):
    """The task that trains W, the text connectors and (unless it is frozen) the transformer on an encoded set."""

    name = "text-projection"
    # A narrower type than in the base class. This is safe, because it is set only in __init__.
    options: TextProjectionSettings

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__(settings)
        self.options = settings.text_projection  # pyright: ignore[reportIncompatibleVariableOverride]
        self.frozen = settings.text_projection.frozen
        if not settings.text_projection.train_transformer:
            self.frozen = ("transformer.*", *self.frozen)
            self.trained = ("text_conditioner",)

    def dataset(self) -> LatentDataset:
        """Open the encoded set; batches have captions, because another W made the stored text features."""
        return LatentDataset(self.settings.input, registers=None)

    def build(self, components: dict[str, nn.Module]) -> TextProjectionTrainee:
        """Load the text encoder, as encode does, and build the trainee with it."""
        # On a CPU bfloat16 is slower than float32.
        dtype = torch.bfloat16 if self.settings.workers.gpu else torch.float32
        encoder = GemmaTextEncoder.load(resolve(self.options.text_encoder), self.options.max_text_tokens, dtype)
        return TextProjectionTrainee(components, encoder, self)

    def validate(self, dataset: Dataset, files: dict[str, Path]) -> None:
        """Check what `DiffusionTask` checks, that the samples have captions, and that W fits the text encoder."""
        super().validate(dataset, files)
        samples = cast(LatentDataset, dataset).samples
        samples.caption(0, samples.read(0)[1])
        if not self.options.train_transformer and "transformer" not in files:
            raise ValueError(
                "train text-projection: train_transformer is off and init_from gives no transformer; a new one "
                "returns only zeros, so nothing can be learned; give a trained one, or train it too"
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

    def flops(self, trainee: Trainee, batch: LatentBatch) -> float:
        """Count the transformer, the forward of the text encoder, and for W its forward and the gradient of its weight.

        W needs no gradient of its input, because the text encoder is frozen.
        """
        trainee, batch = cast(TextProjectionTrainee, trainee), cast(CaptionedBatch, batch)
        transformer = super().flops(trainee, batch)
        encoder = trainee.encoder.on(batch.weights.device).model
        layers = sum(p.numel() for name, p in encoder.named_parameters() if "embed_tokens" not in name)
        config = trainee.text_conditioner.config
        streams = (config.video_width, config.audio_width) if config.per_modality_projections else (config.video_width,)
        projection = config.hidden_size * config.num_states * sum(streams)
        return transformer + trainee.text_slots * (2 * layers + 4 * projection)
