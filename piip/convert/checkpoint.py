"""Released checkpoint files as models of piip."""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from piip.config import BranchConfig, PIIPConfig
from piip.convert.detector import detector_state_dict
from piip.convert.dino import dino_state_dict
from piip.convert.official import convert_network, translate_network
from piip.convert.segmenter import segmenter_state_dict
from piip.errors import CheckpointError
from piip.meta import on_meta
from piip.network import PIIP
from piip.tasks.classification import ImageClassifier
from piip.tasks.detection import DINO, Detector, DetectorConfig, new_detector
from piip.tasks.segmentation import Segmenter, SegmenterConfig
from piip.weights import load_exactly, read_state_dict

State = dict[str, Tensor]

NETWORK_INSIDE = {
    "backbone.": ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "decode_head.", "auxiliary_head."),
    "model.vision_tower.vision_tower.": ("model.", "lm_head."),
}
"""What stands before the network's names in detectors and segmenters and in LLaVAs, and before all other names."""


def convert_checkpoint(
    path: str | Path, config: PIIPConfig, head: DetectorConfig | SegmenterConfig | None = None
) -> PIIP | ImageClassifier | Detector | Segmenter:
    """Read a released file of the original.

    Args:
        path: A file of mmdetection, mmsegmentation, DeepSpeed, a classifier, a LLaVA or a bare network; it is read
            without unpickling.
        config: The network that the file is of, such as ``piip.get_config("piip_tsb_1120_896_448")``.
        head: The detector or segmenter around it; None takes only the network, with the heads of a classifier, and
            leaves the heads of detectors and segmenters and the language models of LLaVAs out.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: The file cannot be read, or a tensor is unknown, missing or of another shape.
    """
    state = read_state_dict(path)
    inside, heads, strange = split_network(state)
    config = with_released_widths(config, inside).replace(size_divisor=1)  # as the original
    if head is None:
        if heads:
            names = sorted({key.partition(".")[0] for key in heads})
            warnings.warn(f"{len(heads)} tensors of {', '.join(names)} are left out.", stacklevel=2)
        return convert_network(config, inside | strange)  # which reports the strange ones
    if not heads:
        raise CheckpointError(f"{path} holds a network without a head; convert it without a recipe.")
    with on_meta():
        network = PIIP(config)
        model = _with_head(head, network)
    translated, unknown = translate_network(inside, network)
    named = {f"{_backbone_name(model)}.{key}": value for key, value in translated.items()}
    load_exactly(model, named | _renamed(model, heads), [*unknown, *strange])
    return model.eval()


def _with_head(head: DetectorConfig | SegmenterConfig, network: PIIP) -> Segmenter | Detector:
    if isinstance(head, SegmenterConfig):
        return Segmenter(head, network)
    return new_detector(head, network)


def _renamed(model: Segmenter | Detector, heads: State) -> State:
    if isinstance(model, Segmenter):
        return segmenter_state_dict(heads)
    return dino_state_dict(heads) if isinstance(model, DINO) else detector_state_dict(heads)


def split_network(state: Mapping[str, Tensor]) -> tuple[State, State, State]:
    """Split a checkpoint into the network's tensors, under their own names, known heads and the rest."""
    for prefix, around in NETWORK_INSIDE.items():
        if any(key.startswith(prefix) for key in state):
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            outside = {k: v for k, v in state.items() if not k.startswith(prefix)}
            heads = {k: v for k, v in outside.items() if k.startswith(around)}
            return inside, heads, {k: v for k, v in outside.items() if k not in heads}
    return dict(state), {}, {}


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
