"""Score how well a phrase fits a picture: the cosine of their open_clip embeddings (Radford et al. 2021)."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from captioning.look.frames import from_jpeg
from captioning.settings import SeenSettings

_PROMPT = "a photo of {}"


def check_weights(settings: SeenSettings) -> None:
    """Check that the file with the open_clip weights exists. Load nothing.

    Raises:
        ValueError: The weights are missing. The message names the setting.
    """
    if not settings.clip or settings.clip.startswith("hf-hub:"):
        return
    path = Path(settings.clip_weights)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(
            f"caption.seen.clip_weights {settings.clip_weights!r}: no such file; give the .safetensors of "
            f"{settings.clip}, or name a model as hf-hub:ID"
        )


class ClipScores:
    """An open_clip model in this process, which scores phrases against pictures.

    Attributes:
        untrained: Whether the weights are marked as random (for tests and trials). Then the scores mean nothing.
    """

    def __init__(self, settings: SeenSettings) -> None:
        """Load the model.

        Raises:
            ValueError: The weights are missing, or open_clip does not know the model.
        """
        check_weights(settings)
        self._network, self._transform, self._tokenizer, self.untrained = _load(settings.clip, settings.clip_weights)
        self._device = settings.device
        self._network.to(self._device)

    def scores(self, pictures: Sequence[bytes], phrases: Sequence[str], shown: Sequence[Sequence[int]]) -> list[float]:
        """Return for each phrase its cosine with the one of its pictures that fits it best.

        Args:
            pictures: JPEG files.
            phrases: The phrases to score.
            shown: For each phrase, the numbers of its pictures, from 1.

        Returns:
            One cosine per phrase, -1 to 1.
        """
        import torch

        batch = torch.stack([self._transform(from_jpeg(file)) for file in pictures]).to(self._device)
        tokens = self._tokenizer([_PROMPT.format(phrase) for phrase in phrases]).to(self._device)
        with torch.inference_mode():
            seen = self._network.encode_image(batch, normalize=True)
            said = self._network.encode_text(tokens, normalize=True)
        cosine = (said @ seen.T).float()
        return [float(cosine[row, [n - 1 for n in numbers]].max()) for row, numbers in enumerate(shown)]


@cache
def _load(model: str, weights: str) -> tuple[Any, Callable[[Any], Any], Any, bool]:
    """Load an open_clip model.

    Returns:
        The network, the transform of a picture, the tokenizer, and whether the weights are marked as random.
    """
    import open_clip  # imports torch, which takes seconds: only where a scorer is configured
    from safetensors import safe_open

    if model.startswith("hf-hub:"):
        made: Any = open_clip.create_model_and_transforms(model)
        return made[0].eval(), made[2], open_clip.get_tokenizer(model), False
    if model not in open_clip.list_models():
        raise ValueError(
            f"caption.seen.clip {model!r}: open_clip has no such model; give one such as ViT-B-32 or ViT-L-14"
        )
    made = open_clip.create_model_and_transforms(model, pretrained=weights)
    with safe_open(weights, "pt") as file:
        untrained = "untrained" in (file.metadata() or {})
    return made[0].eval(), made[2], open_clip.get_tokenizer(model), untrained
