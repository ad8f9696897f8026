"""Mask R-CNN and Faster R-CNN as the released checkpoints have them (HEADS.md sections 1.5 and 2)."""

from torch import nn

from piip.tasks.detection.box_head import BoxHead
from piip.tasks.detection.config import BoxStage, RCNNConfig
from piip.tasks.detection.masks import MaskHead
from piip.tasks.detection.two_stage import Stage, TwoStage


class RCNN(TwoStage):
    """A two-stage detector on any backbone with four maps; masks are a matter of the config.

    Its losses are ``loss_rpn_cls``, ``loss_rpn_box``, ``loss_cls``, ``loss_box`` and, for masks, ``loss_mask``.

    Args:
        config: What to detect and how.
        backbone: As for `Detector`.
    """

    config: RCNNConfig
    config_class = RCNNConfig

    def __init__(self, config: RCNNConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.box_head = BoxHead(config, BoxStage(config.box_positive_iou, config.box_stds))
        self.mask_head = MaskHead(config) if config.masks else None

    @property
    def stages(self) -> list[Stage]:
        """The only stage."""
        return [Stage("", self.box_head, self.mask_head)]
