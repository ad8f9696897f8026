"""AdamW with the released layer-wise learning rates (SPEC 13)."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from piip.errors import ConfigError
from piip.network import PIIP
from piip.train.settings import OptimizerConfig

_IN_BRANCH = re.compile(r"branches\.(?P<branch>\d+)\.(?:blocks\.(?P<block>\d+)\.)?")


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, one_by_one: bool = False
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of a network or of a model around one.

    Args:
        model: A `PIIP` or a module that has one as a submodule.
        config: Rates and decay.
        one_by_one: Update parameters singly instead of in groups, which must not mix sharded and whole ones.

    Raises:
        ConfigError: Every parameter is frozen, or the model holds no network.
    """
    prefix, network = find_network(model)
    depths = [_depth(branch) for branch in network.branches]
    num_layers = config.num_layers or max(filter(None, depths), default=1)
    strides = config.skip_stride or tuple(num_layers / depth if depth else 1.0 for depth in depths[1:])
    groups = layer_decay_groups(
        model,
        config.lr,
        config.weight_decay,
        num_layers,
        config.layer_decay,
        strides,
        prefix,
        config.rest_factor,
        config.factors,
    )
    if not groups:
        raise ConfigError("Every parameter is frozen; leave at least one branch or the head trainable.")
    # One kernel for each parameter instead of a dozen: a quarter of the time on a CPU.
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    how = {"foreach": False} if one_by_one else {"fused": True} if devices <= {"cpu", "cuda"} else {}
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, **how
    )


def find_network(model: nn.Module) -> tuple[str, PIIP]:
    """Return the name prefix (empty or ending in a dot) and the `PIIP` inside a model.

    Raises:
        ConfigError: There is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, PIIP):
            return f"{name}." if name else "", module
    raise ConfigError(f"{type(model).__name__} has no PIIP network inside.")


def layer_decay_groups(
    model: nn.Module,
    base_lr: float,
    weight_decay: float,
    num_layers: int,
    decay: float,
    skip_stride: Sequence[float],
    prefix: str = "",
    rest_factor: float = 1.0,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups by the released rule (SPEC 13).

    Position and patch embeddings have layer 0, block ``l`` of branch 1 has layer ``l + 1``, that of branch i
    layer ``(l + 1) * skip_stride[i - 2]``. The rate falls by ``decay`` per layer below the last block.
    Interactions, merging, ConvNeXt branches and everything outside the network keep the full rate.

    Args:
        model: The network, or a model that has it under ``prefix``. Frozen parameters are left out.
        base_lr: The full rate.
        weight_decay: Weight decay of all but one-dimensional parameters and biases. As released, scalars,
            position embeddings and bias tables do decay.
        num_layers: Blocks of the deepest branch.
        decay: Factor of the rate per layer.
        skip_stride: One number for each branch from the second.
        prefix: Name of the network inside the model with a final dot, or empty.
        rest_factor: Factor of the rate of everything outside the branches.
        factors: Further factors, of parameters in whose names the keys are found.

    Returns:
        Groups of ``params``, ``lr``, ``weight_decay``, ``lr_scale``, ``name`` and ``param_names``.

    Raises:
        ConfigError: ``skip_stride`` does not fit the number of branches, or no parameter has a key of ``factors``
            in its name.
    """
    _check_factors(model, factors)
    network = model.get_submodule(prefix.removesuffix(".")) if prefix else model
    branches: Sequence[nn.Module] = list(network.branches)  # type: ignore[arg-type]
    if len(skip_stride) < len(branches) - 1:
        raise ConfigError(
            f"skip_stride has {len(skip_stride)} numbers for {len(branches)} branches; give one for each branch "
            "from the second."
        )
    strides = [1.0, *skip_stride]
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in _trainable(model):
        inside = _IN_BRANCH.match(name.removeprefix(prefix)) if name.startswith(prefix) else None
        layer: float = num_layers + 1
        if inside and _depth(branches[int(inside["branch"])]):
            block = inside["block"]
            layer = (int(block) + 1) * strides[int(inside["branch"])] if block is not None else 0
        plain = parameter.ndim == 1 or name.endswith(".bias")
        # The key truncates a fractional layer, and a group keeps the rate of the parameter that created it:
        # fractional layers therefore act as rounded down.
        rest = inside is None and rest_factor != 1
        own = [part for part in factors if part in name]
        key = "_".join(["rest" if rest else f"layer_{int(layer)}", *own, "no_decay" if plain else "decay"])
        if key not in groups:
            scale = decay ** (num_layers + 1 - layer) * (rest_factor if rest else 1)
            scale *= math.prod(factors[part] for part in own)
            groups[key] = {"params": [], "param_names": [], "lr": base_lr * scale, "lr_scale": scale}
            groups[key] |= {"weight_decay": 0.0 if plain else weight_decay, "name": key}
        groups[key]["params"].append(parameter)
        groups[key]["param_names"].append(name)
    return list(groups.values())


def _check_factors(model: nn.Module, factors: Mapping[str, float]) -> None:
    for part in factors:
        if not any(part in name for name, _ in _trainable(model)):
            raise ConfigError(
                f"optimizer.factors names {part}, which is in the name of no parameter that is trained; "
                "correct or remove it."
            )


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)


def _depth(branch: nn.Module) -> int:
    """Return the number of blocks of a transformer branch, 0 for a ConvNeXt: its layers are all at full rate."""
    if getattr(branch, "family", "") == "convnext":
        return 0
    return len(branch.blocks)  # type: ignore[arg-type]
