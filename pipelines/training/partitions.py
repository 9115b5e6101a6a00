"""This rank's fp32 partitions of the trained parameters, and how to gather complete parameters from all ranks.

DeepSpeed stores the fp32 weights that the optimizer updates in flat partitions. With ZeRO-3 every rank has an equal
slice of every parameter (the last slice is padded). With ZeRO-1 and 2 a rank has a slice of a parameter, all of it or
nothing. The moving average uses the same partitions, so it is divided among the ranks and needs no communication.
"""

from collections.abc import Container, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.weight_files import Spec


def local_partitions(module: nn.Module) -> dict[str, Tensor]:
    """Return name → this rank's flat fp32 partition of the parameter, a view of the tensor that the optimizer updates.

    Parameters that are not trained, or of which this rank has no element, are left out.
    """
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
    """Return name → (index in the flat parameter at which this rank's partition begins, size of the parameter)."""
    found = {}
    for name, part in local_partitions(module).items():
        parameter = module.get_parameter(name)
        if hasattr(parameter, "ds_id"):
            rank = dist.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
            found[name] = (rank * part.numel(), parameter.ds_numel)  # type: ignore[attr-defined]
        else:
            found[name] = (parameter._hp_mapping.lp_fragment_address.start, parameter.numel())  # type: ignore[attr-defined]
    return found


def gather(name: str, parameter: nn.Parameter, partitions: dict[str, Tensor]) -> Tensor:
    """Gather a complete parameter in fp32 from the partitions of all ranks.

    Every rank calls it, for the same parameters in the same order.

    Args:
        name: of the parameter.
        parameter: used for its shape and the position of this rank's partition, not for its values.
        partitions: name → this rank's values, divided as in `local_partitions`.

    Returns:
        The parameter, in its complete shape.
    """
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
    """Set the trained parameters of a module, one at a time; every rank calls it.

    The optimizer's fp32 weights do not change, and its next step would undo the call. Call it only at the end of a run.

    Args:
        module: the trained module.
        partitions: name → this rank's values, such as those of the moving average.
    """
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        value = gather(name, parameter, partitions)
        with _gathered(parameter, writing=True), torch.no_grad():
            parameter.copy_(value)


def fill(module: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Set the parameters and buffers of a partitioned module, one at a time; every rank calls it.

    Args:
        module: its parameters may be partitioned.
        tensors: name and complete value of each parameter or buffer to set.
    """
    targets = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in tensors:
        with _gathered(targets[name], writing=True), torch.no_grad():
            targets[name].copy_(tensor)


def stream_state(module: nn.Module, names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of every parameter and persistent buffer, gathered one at a time.

    Every rank must iterate to the end, because gathering is a collective call.

    Args:
        module: its parameters may be partitioned.
        names: yield only these; None for all.
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
    """Return name → complete shape and dtype of everything that `stream_state` yields."""
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        shape = tensor.ds_shape if hasattr(tensor, "ds_id") else tensor.shape
        found[name] = Spec(tuple(shape), tensor.dtype)
    return found


def _gathered(parameter: Tensor, *, writing: bool) -> AbstractContextManager:
    """Return a context in which a partitioned parameter is complete.

    Args:
        parameter: one that is not partitioned stays as it is.
        writing: whether the `with` block changes the parameter.
    """
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed import zero

    # Without `modifier_rank` a change would be lost when the parameter is partitioned again.
    return zero.GatheredParameters([parameter], modifier_rank=0 if writing else None)
