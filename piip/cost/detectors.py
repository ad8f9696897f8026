"""How a detector is measured: its proposals depend on the image, so as many as its settings allow are assumed."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from piip.config import PIIPConfig
from piip.cost.executed import executed_cost
from piip.cost.table import CostTable
from piip.hub import find_folder, read_description
from piip.network import PIIP
from piip.tasks.detection import DINO, Detector, TwoStage, detector_config, new_detector


def run_detector(detector: Detector, images: Tensor) -> list[Tensor]:
    """Run all layers of a detector once: the ``run`` of `executed_cost`.

    Every box head sees all proposals, every mask head all detections that an image can have. RoI pooling,
    suppression and pasting of masks have no layers and are left out.

    Args:
        detector: The detector.
        images: (B, 3, H, W).
    """
    if isinstance(detector, DINO):
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        memory, places = detector.encode(detector.pyramid(detector.backbone(images)), sizes)
        return [memory, *detector.decode(memory, places, detector.select(memory, places).boxes)]
    assert isinstance(detector, TwoStage)
    config = detector.config
    maps = detector.backbone(images)
    pyramid = list(detector.fpn({str(level): feature for level, feature in enumerate(maps)}).values())
    proposals = detector.rpn(pyramid)
    outputs = [*pyramid, *proposals.logits, *proposals.deltas]

    def pooled(count: int, side: int) -> Tensor:
        return pyramid[0].new_zeros(len(images) * count, config.fpn_channels, side, side)

    for stage in detector.stages:
        outputs += stage.boxes(pooled(config.rpn_post_nms, config.box_pool))
        if stage.masks is not None:
            outputs.append(stage.masks(pooled(config.detections_per_image, config.mask_pool)))
    return outputs


def detector_cost(folder: Path, image: tuple[int, int] | None = None) -> CostTable:
    """Return the cost of a saved model, its head included, for one image.

    Args:
        folder: A run or the folder of a saved model.
        image: Height and width in pixels; the model's nominal square by default.

    Raises:
        CheckpointError: There is no model.
    """
    description = read_description(find_folder(folder))
    config = PIIPConfig.from_dict(description["network"])
    height, width = image or (config.image_size, config.image_size)
    with torch.device("meta"):
        network = PIIP(config)
        if description["kind"] != "detector":
            return executed_cost(network, height, width)
        detector = new_detector(detector_config(description["head"], {}), network)
    return executed_cost(detector, height, width, run=_run)


def _run(model: nn.Module, images: Tensor) -> Any:
    assert isinstance(model, Detector)
    return run_detector(model, images)
