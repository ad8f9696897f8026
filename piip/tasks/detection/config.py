"""The description of a detector: everything but its backbone."""

from dataclasses import dataclass, fields
from typing import ClassVar

from piip.described import Described
from piip.errors import ConfigError


@dataclass(frozen=True)
class DetectorConfig(Described):
    """What every detector has.

    Attributes:
        classes: Class names in label order; the background is no class of its own.
        in_channels: Channels of the backbone's maps, fine to coarse.
        masks: Whether to predict a mask for each object.
        strides: Pixels per cell of the backbone's maps.
        pad_divisor: Images are padded at the bottom and the right with 0 to its multiple; None pads nothing but
            what a batch needs.
        detections_per_image: Detections kept per image.

    Raises:
        ConfigError: A value is impossible.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = ()

    classes: tuple[str, ...]
    in_channels: tuple[int, ...]
    masks: bool = False
    strides: tuple[int, ...] = (4, 8, 16, 32)
    pad_divisor: int | None = 32
    detections_per_image: int = 100

    def check(self) -> None:
        """Refuse what no detector can have."""
        self._check_classes()
        self._check_numbers()
        self._check_lengths()

    @property
    def num_classes(self) -> int:
        """Number of classes, without the background."""
        return len(self.classes)

    def _check_classes(self) -> None:
        if not self.classes:
            raise ConfigError("classes is empty; a detector needs at least one class name.")
        for name in self.classes:
            if self.classes.count(name) > 1:
                raise ConfigError(f"classes names {name!r} more than once; class names are unique.")

    def _check_numbers(self) -> None:
        for field in fields(self):
            may_be_zero = field.name in self.may_be_zero
            if getattr(self, field.name) == ():
                raise ConfigError(f"{field.name} is empty; give at least one number.")
            if field.type in (int, int | None, tuple[int, ...]):
                self.check_range(field.name, 0 if may_be_zero else 1)
            elif field.name.endswith(("_iou", "_fraction", "_threshold", "nms")):
                self.check_range(field.name, 0, 1, closed=True)
            elif field.type in (float, tuple[float, ...]):
                self.check_range(field.name, 0, above=not may_be_zero)

    def _check_lengths(self) -> None:
        if len(self.in_channels) != len(self.strides):
            raise ConfigError(
                f"in_channels has {len(self.in_channels)} entries and strides {len(self.strides)}; "
                "give one of each for every map of the backbone."
            )
        if any(b != 2 * a for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise ConfigError(
                f"strides is {self.strides}; each is twice the one before, as in (4, 8, 16, 32)."
            )


@dataclass(frozen=True)
class RCNNConfig(DetectorConfig):
    """A Mask R-CNN (``masks=True``) or Faster R-CNN (``masks=False``) on four maps.

    The defaults are the settings of every released checkpoint (HEADS.md sections 0 and 2).

    The RPN adds one map of twice the last stride.

    Attributes:
        fpn_channels: Channels of the feature pyramid.
        anchor_scale: Side of the square anchor in strides.
        anchor_ratios: Height over width of the anchors of one cell.
        rpn_pre_nms_train: Boxes kept per level before suppression, in training.
        rpn_pre_nms_test: The same in prediction.
        rpn_post_nms: Proposals kept per image.
        rpn_nms: IoU above which the weaker of two proposals of one level is dropped.
        rpn_positive_iou: IoU from which an anchor is an object.
        rpn_negative_iou: IoU below which an anchor is background; between the two it is ignored.
        rpn_min_iou: IoU from which the best anchors of an object are its own in any case.
        rpn_samples: Anchors per image that enter the loss.
        rpn_positive_fraction: Largest share of objects among them.
        box_pool: Side of the pooled feature of the box head.
        representation_size: Width of the box head's two hidden layers.
        box_stds: Standard deviations that scale the box head's (dx, dy, dw, dh).
        box_positive_iou: IoU from which a proposal is an object, else it is background.
        box_low_quality: Whether the best proposals of an object are its own in any case (from the same IoU).
        box_samples: Proposals per image that enter the loss.
        box_positive_fraction: Largest share of objects among them.
        mask_pool: Side of the pooled feature of the mask head; masks are twice as large.
        mask_channels: Width of the mask head.
        mask_depth: Convolutions of the mask head before the upsampling.
        mask_threshold: Probability from which a pixel belongs to the object.
        score_threshold: Detections need a higher score.
        nms: IoU above which the weaker of two detections of one class is dropped.

    Raises:
        ConfigError: A value is impossible.
    """

    masks: bool = True
    fpn_channels: int = 256
    anchor_scale: float = 8.0
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_pre_nms_train: int = 2000
    rpn_pre_nms_test: int = 1000
    rpn_post_nms: int = 1000
    rpn_nms: float = 0.7
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_min_iou: float = 0.3
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    box_pool: int = 7
    representation_size: int = 1024
    box_stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    box_positive_iou: float = 0.5
    box_low_quality: bool = True
    box_samples: int = 512
    box_positive_fraction: float = 0.25
    mask_pool: int = 14
    mask_channels: int = 256
    mask_depth: int = 4
    mask_threshold: float = 0.5
    score_threshold: float = 0.05
    nms: float = 0.5

    def check(self) -> None:
        """Refuse what no detector can have."""
        super().check()
        if self.rpn_negative_iou > self.rpn_positive_iou:
            raise ConfigError(
                f"rpn_negative_iou ({self.rpn_negative_iou}) is above rpn_positive_iou "
                f"({self.rpn_positive_iou}); make it at most as large."
            )
        if len(self.box_stds) != 4:
            raise ConfigError(f"box_stds has {len(self.box_stds)} entries; it needs 4: dx, dy, dw, dh.")
