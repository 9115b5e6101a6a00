"""Low-rank adapters on a frozen transformer (LoRA, arXiv 2106.09685), with `peft`.

An adapter adds B·A to the weight of a linear layer. A starts at random and B at zero, so training starts from the loss
of the given weights. Only the adapters are trained. `model.lora` defines the file to which they are exported.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from model.lora import save_adapter
from model.weight_files import Spec
from pipelines.training.partitions import specs, stream_state
from pipelines.training.settings import LoRASettings

_NAME = "default"  # peft's name for the only adapter of a module


def add_adapters(module: nn.Module, options: LoRASettings, seed: int) -> None:
    """Put adapters on the linear layers that match `options.targets`, in place, and freeze all other parameters.

    Args:
        module: the transformer.
        options: rank, scale and targets.
        seed: of the adapters' random start.

    Raises:
        ValueError: a pattern matches no linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    chosen: set[str] = set()
    for pattern in options.targets:
        fitting = [name for name in linear if fnmatchcase(f".{name}", f"*.{pattern}")]
        if not fitting:
            raise ValueError(f"dit.lora.targets {pattern!r} fits no linear layer; names are such as {linear[-1]}")
        chosen.update(fitting)
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=sorted(chosen), lora_dropout=0.0)
    dtype = next(module.parameters()).dtype
    torch.manual_seed(seed)
    inject_adapter_in_model(config, module, adapter_name=_NAME)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(f".{_NAME}." in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)  # DeepSpeed needs one dtype for all parameters


def save_adapters(module: nn.Module, options: LoRASettings, path: Path, rank: int, base: str) -> None:
    """Gather the adapters one at a time and write them; every rank calls it, rank 0 writes.

    Args:
        module: the transformer with its adapters.
        options: rank and scale.
        path: the file to write.
        rank: of this process.
        base: fingerprint of the weights for which the adapters were trained.
    """
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    scale = options.alpha / options.rank

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, value in stream_state(module, set(trained)):
            yield _published(name), value * scale if ".lora_B." in name else value

    if rank == 0:
        kinds = specs(module)
        announced: dict[str, Spec] = {_published(name): kinds[name] for name in trained}
        save_adapter(path, announced, tensors(), base)
    else:
        for _ in tensors():
            pass


def _published(name: str) -> str:
    """Return the name of a parameter in the exported file: without peft's name of the adapter."""
    return name.replace(f".{_NAME}.", ".")
