"""Each rank's own part of every trained parameter, in fp32, and the way back to whole parameters.

DeepSpeed keeps the fp32 weights that the optimizer updates in flat partitions: with ZeRO-3 every rank holds an equal
slice of every parameter (the last one padded); with ZeRO-1 and 2 a rank's flat slice may hold a piece of a parameter,
all of it or none. The moving average follows the same parts, so that it
costs no communication and is sharded as the weights are.
"""

from collections.abc import Container, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.weight_files import Spec


def local_partitions(module: nn.Module) -> dict[str, Tensor]:
    """Parameter name → this rank's fp32 part, flat; a view of what the optimizer updates."""
    partitions: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            from deepspeed.utils import safe_get_local_fp32_param

            part = safe_get_local_fp32_param(parameter)
            assert part is not None
            partitions[name] = part
        else:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                partitions[name] = mapping.get_hp_fragment()
    return partitions


def spans(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Parameter name → where this rank's part begins in the flat parameter, and the elements of the whole parameter."""
    found = {}
    for name, part in local_partitions(module).items():
        parameter = module.get_parameter(name)
        if hasattr(parameter, "ds_id"):
            rank = dist.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
            found[name] = (rank * part.numel(), parameter.ds_numel)  # type: ignore[attr-defined]
        else:
            found[name] = (parameter._hp_mapping.lp_fragment_address.start, parameter.numel())  # type: ignore[attr-defined]
    return found


def whole(name: str, parameter: nn.Parameter, partitions: dict[str, Tensor]) -> Tensor:
    """A parameter in fp32 out of all ranks' parts; every rank calls it for the same parameters in the same order."""
    if hasattr(parameter, "ds_id"):
        part = partitions[name]
        gathered = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, part.contiguous())
        shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
        return torch.cat(gathered)[: shape.numel()].view(shape)
    full = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
    if name in partitions:
        address = parameter._hp_mapping.lp_fragment_address  # type: ignore[attr-defined]
        full.narrow(0, address.start, address.numel).copy_(partitions[name])
    dist.all_reduce(full)
    return full.view(parameter.shape)


def set_weights(module: nn.Module, partitions: dict[str, Tensor]) -> None:
    """Give the module the weights of `parts` (the moving average's, say), parameter by parameter, on every rank.

    The optimizer's own fp32 weights stay as they are: this is for the end of a run.
    """
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        value = whole(name, parameter, partitions)
        with _gathered(parameter, writing=True), torch.no_grad():
            parameter.copy_(value)


def fill(module: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Give a partitioned module its parameters and buffers, one whole at a time; every rank must run through it."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in tensors:
        with _gathered(own[name], writing=True), torch.no_grad():
            own[name].copy_(tensor)


def stream_state(module: nn.Module, names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name → value of every parameter and saved buffer, or of those of `names`, one whole at a time; every rank must
    run through it.
    """
    kept = {name for name in module.state_dict(keep_vars=True) if names is None or name in names}
    for name, parameter in module.named_parameters():
        if name not in kept:
            continue
        with _gathered(parameter, writing=False):
            yield name, parameter.detach()
    for name, buffer in module.named_buffers():
        if name in kept:
            yield name, buffer


def specs(module: nn.Module) -> dict[str, Spec]:
    """Shape and type of everything that `stream_state` gives, by name."""
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        shape = tensor.ds_shape if hasattr(tensor, "ds_id") else tensor.shape
        found[name] = Spec(tuple(shape), tensor.dtype)
    return found


def _gathered(parameter: Tensor, *, writing: bool):
    from contextlib import nullcontext

    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed import zero

    # A change without `modifier_rank` would be silently undone when the parameter is partitioned again.
    return zero.GatheredParameters([parameter], modifier_rank=0 if writing else None)
