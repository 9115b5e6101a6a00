"""Low-rank adapters of the transformer (LoRA, arXiv 2106.09685 §4.1): W + B·A, in the layout of LoRAs for LTX-2.

    <dir>/transformer.safetensors        the base: the weights that the adapter was trained on
    <dir>/transformer_lora.safetensors   the adapter; reading the transformer then merges the two

Keys are `diffusion_model.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank), with the published names
of the modules. The scale alpha/rank is multiplied into B: ltx-core's loader has no alpha, and that of diffusers uses
alpha = rank where the file gives no alpha. The metadata have the fingerprint of the base.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.weight_files import FileWriter, Header, Spec, read_header, read_tensors

PREFIX = "diffusion_model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


def adapter_path(base: Path) -> Path:
    """Return the path of the adapter that belongs to a transformer file: `<stem>_lora.safetensors` in its folder."""
    return base.with_name(f"{base.stem}_lora.safetensors")


def save_adapter(path: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, Tensor]], base: str) -> None:
    """Write an adapter, tensor by tensor.

    Args:
        path: file to write.
        specs: shapes and types by key, `<module>.lora_A.weight` and `<module>.lora_B.weight`.
        tensors: the same keys with their tensors, in any order.
        base: fingerprint of the transformer that the adapter was trained on.
    """
    metadata = {"format": "pt", "base_fingerprint": base}
    with FileWriter(path, {PREFIX + key: spec for key, spec in specs.items()}, metadata) as file:
        for key, tensor in tensors:
            file.write(PREFIX + key, tensor)
        file.finish()


@dataclass(frozen=True)
class Adapter:
    """An adapter file that was checked against its transformer. `merged` reads its tensors when it needs them.

    Attributes:
        path: of the file.
        header: of the file.
    """

    path: Path
    header: Header

    @classmethod
    def open(cls, path: Path, base: Mapping[str, Spec], fingerprint: Callable[[], str]) -> "Adapter":
        """Open an adapter and check that it belongs to the transformer.

        Args:
            path: file of the adapter.
            base: shapes and types of the transformer's tensors.
            fingerprint: returns the transformer's fingerprint; called only where the adapter stores that of its base.

        Raises:
            ValueError: there is no such file, it is an adapter of other weights, or its shapes do not fit.
        """
        header = read_header(path)
        for key, spec in header.specs.items():
            module = key.removeprefix(PREFIX).removesuffix(_A).removesuffix(_B)
            other = header.specs.get(f"{PREFIX}{module}{_A if key.endswith(_B) else _B}")
            weight = base.get(f"{module}.weight")
            if other is None or weight is None or not key.startswith(PREFIX):
                raise ValueError(f"{path}: {key!r} is not one half of an adapter of this transformer")
            fits = spec.shape[1] == weight.shape[1] if key.endswith(_A) else spec.shape[0] == weight.shape[0]
            if not fits or spec.shape[key.endswith(_A) - 1] != other.shape[key.endswith(_B) - 1]:
                raise ValueError(f"{path}: {key!r} has shape {spec.shape}, the weight has {weight.shape}")
        if (said := header.metadata.get("base_fingerprint")) and said != fingerprint():
            raise ValueError(f"{path}: trained on other weights than those beside it; put it beside its base")
        return cls(path, header)

    def merged(self, key: str, weight: Tensor) -> Tensor:
        """Merge the adapter into a tensor of the transformer.

        Args:
            key: of the tensor.
            weight: W.

        Returns:
            W + B·A, computed in float32, in the type of W; `weight` itself where the adapter has no such key.
        """
        module = f"{PREFIX}{key.removesuffix('.weight')}"
        if module + _A not in self.header.specs:
            return weight
        (_, a), (_, b) = read_tensors(self.path, [module + _A, module + _B])
        return (weight.float() + b.float() @ a.float()).to(weight.dtype)
