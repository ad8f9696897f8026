"""Factors that weights take over."""

from torch import Tensor, nn

from piip.ops.onednn import Linear, linear
from piip.recomputing import scaled


def scale_outputs(layer: nn.Linear | nn.Conv2d, scale: Tensor) -> None:
    """Multiply what a layer returns, channel by channel, by a scale (out_features), in place."""
    layer.weight.mul_(scale.view(-1, *(1,) * (layer.weight.ndim - 1)))
    if layer.bias is not None:
        layer.bias.mul_(scale)


def gated_linear(layer: nn.Linear, x: Tensor, gate: Tensor | None) -> Tensor:
    """Compute ``gate * layer(x)`` with a gate per output channel, differentiable in all of it.

    The gate scales the weights, which are smaller than what the layer returns; nor does that have to be kept for
    the gate's gradient. Layers that are no plain ones any more (adapters, quantised or offloaded weights) or are
    being watched by hooks are called as they are.
    """
    if gate is None:
        return layer(x)
    if type(layer) not in (nn.Linear, Linear) or _is_hooked(layer):
        return gate * layer(x)
    bias = gate * layer.bias if layer.bias is not None else None
    return linear(x, scaled(layer.weight, gate[:, None]), bias)


def _is_hooked(layer: nn.Module) -> bool:
    """Return whether something else happens when a layer is called; accelerate replaces ``forward`` for that."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)
