"""Factors that weights take over, for inference."""

from torch import Tensor, nn


def scale_outputs(layer: nn.Linear | nn.Conv2d, scale: Tensor) -> None:
    """Multiply what a layer returns, channel by channel, by a scale (out_features), in place."""
    layer.weight.mul_(scale.view(-1, *(1,) * (layer.weight.ndim - 1)))
    if layer.bias is not None:
        layer.bias.mul_(scale)
