"""Perceptual distance of pictures (LPIPS; Zhang et al. 2018, arXiv 1801.03924 §3).

The distance is the squared difference of a VGG-16's channel-normalised activations after five of its blocks, weighted
per channel by the published heads, or summed over channels without heads.

The recipe names the weight files: torchvision's `vgg16` (`.pth` or `.safetensors`; the classifier is not read), and the
heads of the package `lpips` (`lpips/weights/v0.1/vgg.pth`).
"""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# The five blocks end after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, before these layers of torchvision's
# `features`.
_TAPS = (4, 9, 16, 23, 30)
# ImageNet's mean and standard deviation per channel, for pixels in [−1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance(nn.Module):
    """The LPIPS distance of two batches of videos: mean over frames and positions, summed over the five blocks.

    Args:
        features: the convolutional part of VGG-16.
        heads: weights per channel, one (1, C, 1, 1) per block; None to sum over channels.
    """

    def __init__(self, features: nn.Sequential, heads: list[Tensor] | None) -> None:
        super().__init__()
        starts = (0, *_TAPS[:-1])
        self.blocks = nn.ModuleList(features[start:end] for start, end in zip(starts, _TAPS, strict=True))
        for n, head in enumerate(heads or ()):
            self.register_buffer(f"head{n}", head)
        self.weighted = heads is not None
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, x_bcfhw: Tensor, y_bcfhw: Tensor) -> Tensor:
        """Return the distances (B,) of pixels (B, 3, F, H, W) in [−1, 1]."""
        size = len(x_bcfhw)
        both = torch.cat([x_bcfhw, y_bcfhw]).transpose(1, 2).flatten(0, 1).float()
        both = (both - self.get_buffer("shift")) / self.get_buffer("scale")
        total = torch.zeros(size, device=both.device)
        for n, block in enumerate(self.blocks):
            both = block(both)
            # The small value is inside the root, because the root has no finite gradient at zero.
            unit = both * torch.rsqrt(both.square().sum(1, keepdim=True) + 1e-10)
            x, y = unit.chunk(2)
            square = (x - y).square()
            square = square * self.get_buffer(f"head{n}").view(1, -1, 1, 1) if self.weighted else square
            total = total + square.sum(1).unflatten(0, (size, -1)).flatten(1).mean(1)
        return total


def load_perceptual(backbone: str, heads: str) -> PerceptualDistance:
    """Load the distance from two weight files.

    Args:
        backbone: file of torchvision's vgg16.
        heads: file of the LPIPS heads; empty for none.

    Raises:
        ValueError: a file is missing, is no weight file, or belongs to another network.
    """
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs["D"])
    stored = {
        name.removeprefix("features."): tensor
        for name, tensor in _read(backbone, "perceptual.backbone").items()
        if name.startswith("features.")
    }
    try:
        features.load_state_dict(stored)
    except RuntimeError:
        raise ValueError(
            f"perceptual.backbone: {backbone} does not hold torchvision's vgg16 (features.0.weight …); give that file"
        ) from None
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    if not heads:
        return PerceptualDistance(features, None)
    found = _read(heads, "perceptual.heads")
    names = [f"lin{n}.model.1.weight" for n in range(len(_TAPS))]
    if any(name not in found for name in names):
        raise ValueError(f"perceptual.heads: {heads} does not hold LPIPS heads ({names[0]} …); give lpips' vgg.pth")
    return PerceptualDistance(features, [found[name].float() for name in names])


def _read(path: str, setting: str) -> dict[str, Tensor]:
    """Return name → tensor of a weight file.

    Args:
        path: of the file.
        setting: the setting that gives the path, for the error messages.

    Raises:
        ValueError: the file is missing or is no weight file.
    """
    file = Path(path)
    if not path or not file.is_file():
        raise ValueError(f"{setting}: no file {path!r}; name one, or set perceptual.weight to 0")
    try:
        return load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{setting}: {path} is no weight file ({' '.join(str(error).split())[:80]})") from None
