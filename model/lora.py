"""Low-rank adapters of the transformer (LoRA, arXiv 2106.09685): W + B·A, in the layout that the field's loaders read.

    <dir>/transformer.safetensors        the weights that the adapter was trained on
    <dir>/transformer_lora.safetensors   beside them: what is read as the transformer is then the two merged

Keys are those of LoRAs published for LTX-2: `diffusion_model.<module>.lora_A.weight` (rank, in) and `.lora_B.weight`
(out, rank), with the modules' published names. The scale alpha/rank is multiplied into B, for ltx-core's loader knows
no alpha, and diffusers' takes alpha = rank where the file does not say. The metadata hold the base's fingerprint.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.weight_files import FileWriter, Header, Spec, read_header, read_tensors

PREFIX = "diffusion_model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


def adapter_path(base: Path) -> Path:
    """Where the adapter of a kinotone weight file lies."""
    return base.with_name(f"{base.stem}_lora.safetensors")


def save_adapter(path: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, Tensor]], base: str) -> None:
    """Write an adapter whose keys are `<module>.lora_A.weight` and `.lora_B.weight`, tensor by tensor.

    Args:
        base: fingerprint of the transformer that it was trained on.
    """
    metadata = {"format": "pt", "base_fingerprint": base}
    with FileWriter(path, {PREFIX + key: spec for key, spec in specs.items()}, metadata) as file:
        for key, tensor in tensors:
            file.write(PREFIX + key, tensor)
        file.finish()


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk; its tensors are read as they are asked for."""

    path: Path
    header: Header

    @classmethod
    def open(cls, path: Path, base: Mapping[str, Spec], fingerprint: Callable[[], str]) -> "Adapter":
        """Args: `base`, the transformer's tensors; `fingerprint`, which gives its fingerprint.

        Raises:
            ValueError: no such file, an adapter of other weights, or one that does not fit their shapes.
        """
        header = read_header(path)
        for key, spec in header.specs.items():
            module = key.removeprefix(PREFIX).removesuffix(_A).removesuffix(_B)
            other = header.specs.get(f"{PREFIX}{module}{_A if key.endswith(_B) else _B}")
            weight = base.get(f"{module}.weight")
            if other is None or weight is None or not key.startswith(PREFIX):
                raise ValueError(f"{path}: {key!r} is no half of an adapter of this transformer")
            fits = spec.shape[1] == weight.shape[1] if key.endswith(_A) else spec.shape[0] == weight.shape[0]
            if not fits or spec.shape[key.endswith(_A) - 1] != other.shape[key.endswith(_B) - 1]:
                raise ValueError(f"{path}: {key!r} has shape {spec.shape}, the weight has {weight.shape}")
        if (said := header.metadata.get("base_fingerprint")) and said != fingerprint():
            raise ValueError(f"{path}: trained on other weights than those beside it; put it beside its own")
        return cls(path, header)

    def merged(self, key: str, weight: Tensor) -> Tensor:
        """W + B·A, computed in float32, in W's type; a tensor that has no adapter as it is."""
        module = f"{PREFIX}{key.removesuffix('.weight')}"
        if module + _A not in self.header.specs:
            return weight
        (_, a), (_, b) = read_tensors(self.path, [module + _A, module + _B])
        return (weight.float() + b.float() @ a.float()).to(weight.dtype)
