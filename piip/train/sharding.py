"""Sharding a model over devices (FSDP2) and what its scalar parameters need there.

The branch weights of the merging are scalars, which cannot be sharded: they stay whole on every device, and their
gradients are averaged here. All weights are those of the first process: the others need to have none.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_UNITS = ("blocks", "layers")
"""What branches and language models call the lists of their blocks."""


def shard(model: nn.Module, mesh: Any) -> None:
    """Shard a model in place; every one of its `sharding_units` is gathered only while it runs.

    Args:
        model: The model, with the same tensors in all processes; their values count in the first one alone.
        mesh: The one-dimensional device mesh of the processes.
    """
    from torch.distributed.fsdp import fully_shard

    whole = {name: tensor.detach() for name, tensor in _tensors(model).items()}
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for scalar in scalars:
        if scalar.requires_grad:
            scalar.register_post_accumulate_grad_hook(partial(_average, mesh=mesh))
    for unit in sharding_units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    _take_over_from_first(model, whole, mesh)


def sharding_units(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of all branches, and those of a language model."""
    lists = (getattr(module, name, None) for module in model.modules() for name in _UNITS)
    return [unit for units in lists if isinstance(units, nn.ModuleList) for unit in units]


def gather(model: nn.Module) -> None:
    """Give every process the whole sharded model until `scatter`.

    Evaluation needs no gradients, for which there is room then. Processes no longer wait for each other: they may
    have different numbers of images, of windows in an image, and of words in an answer.
    """
    for unit in _units(model):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def scatter(model: nn.Module) -> None:
    """Undo `gather`."""
    for unit in _units(model):
        unit.set_reshard_after_forward(unit is not model, recurse=False)  # the root is needed again at once
        unit.reshard()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients, some of them sharded and some not, to a norm of at most ``max_norm``.

    Returns:
        The norm before.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = [_whole(torch.linalg.vector_norm(gradient)).square() for gradient in gradients]
    norm = torch.stack(squares).sum().sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).item()
    for gradient in gradients:
        gradient.mul_(factor)
    return norm


def _units(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, also buffers that no checkpoint holds."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@torch.no_grad()
def _take_over_from_first(model: nn.Module, whole: Mapping[str, Tensor], mesh: Any) -> None:
    """Give every process its shards of the first one's tensors, one tensor after the other.

    Args:
        model: Sharded.
        whole: Its tensors before that.
        mesh: The processes.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    group, device = mesh.get_group(), torch.device(mesh.device_type)
    for name, tensor in _tensors(model).items():
        value = (
            whole[name].to(device)
            if mesh.get_local_rank() == 0
            else torch.empty_like(whole[name], device=device)
        )
        torch.distributed.broadcast(value, group=group, group_src=0)
        if isinstance(tensor, DTensor):
            shards = distribute_tensor(value, mesh, tensor.placements, src_data_rank=None)
            tensor.to_local().copy_(shards.to_local())
        else:
            tensor.copy_(value)


def _average(parameter: Tensor, mesh: Any) -> None:
    assert parameter.grad is not None, "the hook runs after the gradient is there"
    torch.distributed.all_reduce(parameter.grad, group=mesh.get_group())
    parameter.grad /= mesh.size()


def _whole(value: Any) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value
