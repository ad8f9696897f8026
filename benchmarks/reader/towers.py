"""The towers: two branches, and two ways of spending as much on one: fewer pixels, or a thinner network."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.reader.settings import Settings
from piip.config import BranchConfig, InteractionConfig, MergingConfig, PIIPConfig
from piip.cost import executed_cost
from piip.llava import PiipLlavaConfig, PiipLlavaForConditionalGeneration

_LARGE = (48, 96, 144, 176)
_SMALL = (24, 48, 72, 96)
_THIN = (32, 64, 96, 112)
_DEPTHS = (1, 1, 2, 1)
_RANGES = ((0, 5), (6, 7))
"""Interactions in the middle and at the end of stride 16; a downsampling is a block, too."""
_STRIDE = 16
_LOW = 32
_ALONE = 64
_OPTIONS = {
    "depths": _DEPTHS,
    "kernel_sizes": 5,
    "output_stride": _STRIDE,
    "norm_layer": "batchnorm2d",  # learns from few images where layer norms need many
    "conv_mlp": True,
    "ls_init_value": None,
}
_INTERACTION = InteractionConfig(num_heads=4, ffn_ratio=None, drop_path_rate=0.0)


def tower(contender: str, settings: Settings) -> PIIPConfig:
    """Return the description of a contender's tower."""
    branches = {
        "two branches": (_branch(_LARGE, _LOW), _branch(_SMALL, settings.side)),
        "one resolution": (_branch(_LARGE, _ALONE),),
        "thin network": (_branch(_THIN, settings.side),),
    }[contender]
    interaction = _INTERACTION if len(branches) > 1 else None
    return PIIPConfig(branches, interaction, MergingConfig("none", pyramid_levels=()))


def out_grid(settings: Settings) -> tuple[int, int]:
    """Return the grid of image tokens of all contenders: that of the branch that reads the whole image."""
    return settings.side // _STRIDE, settings.side // _STRIDE


def costs(contender: str, settings: Settings, text: Any) -> dict[str, int]:
    """Return what a contender executes for an image, and its size.

    Args:
        contender: Which one.
        settings: Of the experiment.
        text: Configuration of the language model.

    Returns:
        ``macs`` of tower and projectors, ``parameters`` of both, and ``side`` of the largest image that is read.
    """
    network = tower(contender, settings)
    config = PiipLlavaConfig.of(network, text, 0, out_grid=out_grid(settings))
    with torch.device("meta"):
        model = PiipLlavaForConditionalGeneration(config)
    cost = executed_cost(model, network.image_size, network.image_size, run=_see)
    seeing: tuple[nn.Module, ...] = (model.model.vision_tower, model.model.multi_modal_projector)
    return {
        "macs": cost.macs,
        "parameters": sum(tensor.numel() for part in seeing for tensor in part.parameters()),
        "side": network.image_size,
    }


def _branch(dims: tuple[int, ...], side: int) -> BranchConfig:
    return BranchConfig("convnext_tiny", side, _RANGES, options=_OPTIONS | {"dims": dims})


def _see(model: Any, images: Tensor) -> Any:
    return model.model.get_image_features(images).pooler_output
