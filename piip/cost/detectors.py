"""How a detector is measured: its proposals depend on the image, so as many as its settings allow are assumed."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from piip.tasks.detection.detector import Detector


def run_detector(detector: "Detector", images: Tensor) -> list[Tensor]:
    """Run all layers of a detector once: the ``run`` of `executed_cost`.

    The box head sees all proposals, the mask head all detections that an image can have. RoI pooling, suppression
    and pasting of masks have no layers and are left out.

    Args:
        detector: The detector.
        images: (B, 3, H, W).
    """
    config = detector.config
    maps = detector.backbone(images)
    pyramid = list(detector.fpn({str(level): feature for level, feature in enumerate(maps)}).values())
    proposals = detector.rpn(pyramid)
    outputs = [*pyramid, *proposals.logits, *proposals.deltas]

    def pooled(count: int, side: int) -> Tensor:
        return pyramid[0].new_zeros(len(images) * count, config.fpn_channels, side, side)

    outputs += detector.box_head(pooled(config.rpn_post_nms, config.box_pool))
    if detector.mask_head is not None:
        outputs.append(detector.mask_head(pooled(config.detections_per_image, config.mask_pool)))
    return outputs
