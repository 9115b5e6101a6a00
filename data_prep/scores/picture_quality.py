"""What a CLIP model says of a clip's picture, zero-shot: text over it, how good it looks; and its embedding.

Each score is the probability of the first of two sentences over the second, the mean of some pictures. The weights are
a `.safetensors` file of a model that open_clip knows by name. A file whose metadata says `untrained` (tests, trials)
gives scores whose names say so too, and no embedding that near duplicates are looked for with.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

PICTURES = 3
PROMPTS = {
    "text_overlay": (
        "a video frame with subtitles, a title or a watermark written over it",
        "a video frame without any writing",
    ),
    "aesthetic": (
        "a sharp, well lit and well composed photograph",
        "a blurred, badly exposed, low quality photograph",
    ),
}


class PictureQuality:
    """A CLIP model and the sentences it knows, in this process."""

    def __init__(self, model: str, weights: str) -> None:
        """Raises ValueError when the weights are not there, or open_clip does not know the model."""
        path = Path(weights)
        if path.suffix != ".safetensors" or not path.is_file():
            raise ValueError(f"picture_quality_weights {weights!r}: no such file; give the .safetensors of {model}")
        self.network, self.transform, self.sentences, self.prefix = _load(model, str(path.absolute()))

    @property
    def untrained(self) -> bool:
        return bool(self.prefix)

    def __call__(self, frames: Sequence[np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
        """Of (H, W, 3) uint8 RGB pictures of one clip: each of `PROMPTS`, a probability; and their mean embedding, (D,)
        of length 1.
        """
        import torch
        from PIL import Image

        batch = torch.stack([self.transform(Image.fromarray(frame)) for frame in frames])
        with torch.inference_mode():
            seen = self.network.encode_image(batch, normalize=True)
            logits = self.network.logit_scale.exp() * seen @ self.sentences.T
        pairs = logits.float().reshape(len(frames), len(PROMPTS), 2).softmax(dim=2)[:, :, 0].mean(dim=0)
        scores = {self.prefix + name: float(value) for name, value in zip(PROMPTS, pairs, strict=True)}
        mean = seen.float().mean(dim=0)
        return scores, (mean / mean.norm()).numpy()


@cache
def _load(model: str, path: str) -> tuple[Any, Callable[[Any], Any], Any, str]:
    """The network, what makes a picture its input, the sentences' features, and what scores' names begin with."""
    import open_clip  # brings torch: seconds, and only here
    import torch
    from safetensors import safe_open

    if model not in open_clip.list_models():
        raise ValueError(f"picture_quality {model!r}: open_clip knows no such model; such as ViT-B-32, ViT-L-14")
    made: Any = open_clip.create_model_and_transforms(model, pretrained=path)
    network, transform = made[0].eval(), made[2]
    tokens = open_clip.get_tokenizer(model)([sentence for pair in PROMPTS.values() for sentence in pair])
    with torch.inference_mode():
        sentences = network.encode_text(tokens, normalize=True)
    with safe_open(path, "pt") as file:
        untrained = "untrained" in (file.metadata() or {})
    return network, transform, sentences, "untrained_" if untrained else ""
