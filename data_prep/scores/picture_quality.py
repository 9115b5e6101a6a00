"""Score a clip's picture with a CLIP model, zero-shot: overlaid text and aesthetics; also compute its embedding.

Each score is the probability of the first of two sentences against the second, averaged over a few pictures. The
weights are a `.safetensors` file of a model that open_clip knows by name. A file whose metadata has the key `untrained`
(for tests) gives scores whose names begin with `untrained_`, and its embedding is not used to find near duplicates.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

PICTURES = 3  # of a clip
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
    """A CLIP model, and the features of the sentences that pictures are compared with.

    Args:
        model: its name in open_clip.
        weights: path of its .safetensors file.

    Raises:
        ValueError: the weights do not exist, or open_clip does not know the model.
    """

    def __init__(self, model: str, weights: str) -> None:
        path = Path(weights)
        if path.suffix != ".safetensors" or not path.is_file():
            raise ValueError(f"picture_quality_weights {weights!r}: no such file; give the .safetensors of {model}")
        self.network, self.transform, self.sentences, self.prefix = _load(model, str(path.absolute()))

    @property
    def untrained(self) -> bool:
        """Whether the weights are untrained."""
        return bool(self.prefix)

    def __call__(self, frames: Sequence[np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
        """Score pictures of one clip.

        Args:
            frames: pictures (H, W, 3) uint8 RGB.

        Returns:
            The probability of each of `PROMPTS`, and the mean embedding of the pictures, (D,) of length 1.
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
    """Load the network, its picture transform, the features of the sentences, and the prefix of the scores' names."""
    import open_clip  # imports torch, which takes seconds, so only where it is needed
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
