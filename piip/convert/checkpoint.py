"""Released checkpoint files as models of piip."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from piip.config import BranchConfig, PIIPConfig
from piip.convert.detector import detector_state_dict
from piip.convert.official import translate_network
from piip.errors import CheckpointError
from piip.network import PIIP
from piip.tasks.detection import Detector, DetectorConfig
from piip.weights import load_exactly, read_state_dict

BACKBONE = "backbone."


def convert_checkpoint(
    path: str | Path, config: PIIPConfig, detector: DetectorConfig | None = None
) -> PIIP | Detector:
    """Read a released file of the original (mmdetection, mmsegmentation, DeepSpeed or bare tensors).

    Args:
        path: The file; it is read without unpickling.
        config: The network that the file is of, such as ``piip.get_config("piip_tsb_1120_896_448")``.
        detector: The detector around it; None takes only the network and leaves heads out.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: The file cannot be read, or a tensor is unknown, missing or of another shape.
    """
    state = read_state_dict(path)
    inside, heads = split_backbone(state)
    config = with_released_widths(config, inside).replace(size_divisor=1)  # as the original
    with torch.device("meta"):
        network = PIIP(config)
    translated, unknown = translate_network(inside, network)
    if detector is None:
        load_exactly(network, translated, unknown)
        return network.eval()
    if not heads:
        raise CheckpointError(f"{path} holds a network without a detector; convert it without a recipe.")
    with torch.device("meta"):
        model = Detector(detector, network)
    named = {f"{_backbone_name(model)}.{key}": value for key, value in translated.items()}
    load_exactly(model, named | detector_state_dict(heads), unknown)
    return model.eval()


def split_backbone(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint into the network's tensors, without ``backbone.``, and those of its heads."""
    if not any(key.startswith(BACKBONE) for key in state):
        return dict(state), {}
    inside = {k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)}
    return inside, {key: value for key, value in state.items() if not key.startswith(BACKBONE)}


def with_released_widths(config: PIIPConfig, state: Mapping[str, Tensor]) -> PIIPConfig:
    """Return the description with branch 4 as it was really trained.

    The original builds branch 4 from branch 3's settings (SPEC 15, quirk 2), so a released TSBL model holds two
    small branches; only its image size and block ranges are its own.
    """
    if config.num_branches < 4:
        return config
    widths = [_patch_width(state, number) for number in (3, 4)]
    third, fourth = config.branches[2:4]
    if widths[0] is None or widths[0] != widths[1] or third.arch == fourth.arch:
        return config
    copied = dataclasses.replace(
        third, image_size=fourth.image_size, interaction_indexes=fourth.interaction_indexes
    )
    branches: tuple[BranchConfig, ...] = (*config.branches[:3], copied)
    return dataclasses.replace(config, branches=branches)


def _patch_width(state: Mapping[str, Tensor], number: int) -> int | None:
    kernel = state.get(f"branch{number}.patch_embed.proj.weight")
    return None if kernel is None else len(kernel)


def _backbone_name(model: nn.Module) -> str:
    return next(name for name, module in model.named_children() if isinstance(module, PIIP))
