"""Score frames of a clip for overlaid text and aesthetics with a CLIP model, and compute their embedding.

The model compares frames with pairs of sentences (`PROMPTS`). A score is the probability that the first sentence of a
pair describes a frame better than the second, averaged over a few frames. The weights are a `.safetensors` file of a
model that open_clip knows by name. Tests use random weights, in a file whose metadata have the key `untrained`: then
the names of the scores begin with `untrained_`, and the embedding is not used to find near duplicates.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

PICTURES = 3  # number of frames of a clip that are scored
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
    """A callable that scores frames with a CLIP model; it keeps the model and the embeddings of the sentences.

    Args:
        model: name of the model in open_clip.
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
        """Return whether the file's metadata mark its weights as random (for tests), so that scores mean nothing."""
        return bool(self.prefix)

    def __call__(self, frames: Sequence[np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
        """Score frames of one clip.

        Args:
            frames: at least one frame (H, W, 3) uint8 RGB.

        Returns:
            For each name in `PROMPTS` the mean probability of its first sentence, in [0, 1], and the normalised mean
            embedding of the frames, (D,) of length 1.
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
    """Load a CLIP model from a file.

    Returns:
        The network; its preprocessing of a PIL picture; the embeddings of the sentences, two per name in `PROMPTS`,
        (4, D); and the prefix of the scores' names ("" or "untrained_").
    """
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
