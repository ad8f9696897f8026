"""How saved models are measured, heads included.

The proposals of a detector depend on the image: as many as its settings allow are assumed.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from piip.config import PIIPConfig
from piip.cost.executed import executed_cost
from piip.cost.table import CostTable
from piip.hub import find_folder, read_description, sketch
from piip.meta import on_meta
from piip.tasks.detection import DINO, Detector, TwoStage


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


def saved_cost(folder: Path, image: tuple[int, int] | None = None) -> CostTable:
    """Return the cost of a saved model, its head included, for one image.

    Args:
        folder: A run or the folder of a saved model.
        image: Height and width in pixels; by default those of a landscape image as the model prepares it, or the
            network's nominal square.

    Raises:
        CheckpointError: There is no model.
    """
    folder = find_folder(folder)
    height, width = image or prepared_size(folder)
    with on_meta():
        model = sketch(folder)
    return executed_cost(model, height, width, run=_run)


def prepared_size(folder: Path) -> tuple[int, int]:
    """Return the height and width of a landscape image as a saved model sees it."""
    description = read_description(find_folder(folder))
    prepared = description.get("metadata", {}).get("image")
    if prepared is None:
        side = PIIPConfig.from_dict(description["network"]).image_size
        return side, side
    long, short = prepared["scale"]
    return short, long


def _run(model: nn.Module, images: Tensor) -> Any:
    if isinstance(model, Detector):
        return run_detector(model, images)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # one image has too little to compare where maps are small
    return model(images)
