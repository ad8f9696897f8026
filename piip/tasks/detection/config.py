"""The description of a detector: everything but its backbone."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

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
                raise ConfigError(f"{field.name} is empty; give at least one entry.")
            if field.type in (int, int | None, tuple[int, ...]):
                self.check_range(field.name, 0 if may_be_zero else 1)
            elif field.name.endswith(("_iou", "_fraction", "_threshold", "nms")):
                self.check_range(field.name, 0, 1, closed=True)
            elif field.type in (float, float | None, tuple[float, ...]):
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
class TwoStageConfig(DetectorConfig):
    """What R-CNN and its cascade share: proposals from an RPN on four maps, and heads that look at each of them.

    The defaults are the settings of every released checkpoint (HEADS.md sections 0 and 2).

    The RPN adds one map of twice the last stride.

    Attributes:
        fpn_channels: Channels of the feature pyramid.
        anchor_scale: Side of the square anchor in strides.
        anchor_ratios: Height over width of the anchors of one cell.
        rpn_pre_nms_train: Boxes kept per level before suppression, in training.
        rpn_pre_nms_test: The same in prediction.
        rpn_post_nms: Proposals kept per image.
        rpn_post_nms_train: The same in training; None = as many as in prediction.
        rpn_nms: IoU above which the weaker of two proposals of one level is dropped.
        rpn_positive_iou: IoU from which an anchor is an object.
        rpn_negative_iou: IoU below which an anchor is background; between the two it is ignored.
        rpn_min_iou: IoU from which the best anchors of an object are its own in any case.
        rpn_inside: Whether only anchors wholly inside the image train.
        rpn_samples: Anchors per image that enter the loss.
        rpn_positive_fraction: Largest share of objects among them.
        rpn_beta: Error below which the loss of proposals' boxes is quadratic (smooth L1); None = plain L1.
        box_pool: Side of the pooled feature of the box head.
        representation_size: Width of the box head's two hidden layers.
        box_class_agnostic: Whether one box serves all classes, instead of one box for every class.
        box_low_quality: Whether the best proposals of an object are its own in any case (from the same IoU).
        box_samples: Proposals per image that enter the loss.
        box_positive_fraction: Largest share of objects among them.
        box_beta: As ``rpn_beta``, for the loss of the box head.
        mask_pool: Side of the pooled feature of the mask head; masks are twice as large.
        mask_channels: Width of the mask head.
        mask_depth: Convolutions of the mask head before the upsampling.
        mask_threshold: Probability from which a pixel belongs to the object.
        score_threshold: Detections need a higher score.
        nms: IoU above which the weaker of two detections of one class is dropped, or from which ``linear``
            lowers its score.
        nms_kind: ``hard`` drops overlapping detections, ``linear`` and ``gaussian`` lower their scores (Soft-NMS).
        soft_nms_sigma: Width of the Gaussian; only for ``gaussian``, which has no use for ``nms``.
        soft_nms_threshold: Lowered scores below it are dropped; not for ``hard``.

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
    rpn_post_nms_train: int | None = None
    rpn_nms: float = 0.7
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_min_iou: float = 0.3
    rpn_inside: bool = False
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_beta: float | None = None
    box_pool: int = 7
    representation_size: int = 1024
    box_class_agnostic: bool = False
    box_low_quality: bool = True
    box_samples: int = 512
    box_positive_fraction: float = 0.25
    box_beta: float | None = None
    mask_pool: int = 14
    mask_channels: int = 256
    mask_depth: int = 4
    mask_threshold: float = 0.5
    score_threshold: float = 0.05
    nms: float = 0.5
    nms_kind: Literal["hard", "linear", "gaussian"] = "hard"
    soft_nms_sigma: float = 0.5
    soft_nms_threshold: float = 0.001

    def check(self) -> None:
        """Refuse what no detector can have."""
        super().check()
        if self.rpn_negative_iou > self.rpn_positive_iou:
            raise ConfigError(
                f"rpn_negative_iou ({self.rpn_negative_iou}) is above rpn_positive_iou "
                f"({self.rpn_positive_iou}); make it at most as large."
            )


@dataclass(frozen=True)
class RCNNConfig(TwoStageConfig):
    """A Mask R-CNN (``masks=True``) or Faster R-CNN (``masks=False``).

    Attributes:
        box_stds: Standard deviations that scale the box head's (dx, dy, dw, dh).
        box_positive_iou: IoU from which a proposal is an object, else it is background.

    Raises:
        ConfigError: A value is impossible.
    """

    box_stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    box_positive_iou: float = 0.5

    def check(self) -> None:
        """Refuse what no detector can have."""
        super().check()
        _check_stds("box_stds", self.box_stds)


def _check_stds(name: str, stds: tuple[float, ...]) -> None:
    if len(stds) != 4:
        raise ConfigError(f"{name} has {len(stds)} entries; it needs 4: dx, dy, dw, dh.")


@dataclass(frozen=True)
class BoxStage(Described, called="stage"):
    """What one stage of box and mask heads has of its own.

    Attributes:
        iou: IoU from which a RoI is an object, else it is background.
        stds: Standard deviations that scale the box head's (dx, dy, dw, dh).
        weight: Factor of the stage's losses.

    Raises:
        ConfigError: A value is impossible.
    """

    iou: float
    stds: tuple[float, ...]
    weight: float = 1.0

    def check(self) -> None:
        """Refuse what no stage can have."""
        _check_stds("stds", self.stds)
        self.check_range("iou", 0, 1, closed=True)
        for name in ("stds", "weight"):
            self.check_range(name, 0, above=True)


@dataclass(frozen=True)
class CascadeRCNNConfig(TwoStageConfig):
    """A Cascade Mask R-CNN (``masks=True``) or Cascade R-CNN (``masks=False``).

    The defaults are the original's base settings (HEADS.md 2.10).

    Attributes:
        stages: The stages in order; each gets the boxes of the one before and wants them to be better.

    Raises:
        ConfigError: A value is impossible.
    """

    rpn_post_nms_train: int | None = 2000
    rpn_inside: bool = True
    rpn_beta: float | None = 1 / 9
    box_class_agnostic: bool = True
    box_low_quality: bool = False
    box_beta: float | None = 1.0
    stages: tuple[BoxStage, ...] = (
        BoxStage(0.5, (0.1, 0.1, 0.2, 0.2)),
        BoxStage(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
        BoxStage(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
    )
