"""Cascade R-CNN and Cascade Mask R-CNN (HEADS.md 2.10; arXiv 1906.09756)."""

from typing import cast

from torch import nn

from piip.tasks.detection.box_head import BoxHead
from piip.tasks.detection.config import CascadeRCNNConfig
from piip.tasks.detection.masks import MaskHead
from piip.tasks.detection.two_stage import Stage, TwoStage


class CascadeRCNN(TwoStage):
    """A cascade of heads: each learns from the boxes of the one before, with a higher IoU for what is an object.

    In training, a stage samples anew from the RoIs that the stage before has sampled and moved, and from the
    objects themselves. The losses of the stages are ``loss_cls_1``, ``loss_box_1``, ``loss_mask_1``,
    ``loss_cls_2``, ..., already multiplied by the stage's weight.

    Args:
        config: What to detect and how.
        backbone: As for `Detector`.
    """

    config: CascadeRCNNConfig
    config_class = CascadeRCNNConfig

    def __init__(self, config: CascadeRCNNConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.box_heads = nn.ModuleList(BoxHead(config, stage) for stage in config.stages)
        self.mask_heads = nn.ModuleList(MaskHead(config) for _ in config.stages if config.masks)

    @property
    def stages(self) -> list[Stage]:
        """One stage for each of the config's."""
        boxes = cast(list[BoxHead], list(self.box_heads))
        masks = cast(list[MaskHead | None], list(self.mask_heads) or [None] * len(boxes))
        pairs = zip(boxes, masks, strict=True)
        return [Stage(f"_{number}", *pair) for number, pair in enumerate(pairs, start=1)]
