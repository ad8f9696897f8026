"""Detection in one or several views of an image (test-time augmentation).

Boxes of all views are brought back to the image and suppressed class by class as if they came from one. Masks are
predicted for the boxes that remain, in every view, and their probabilities averaged.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from piip.tasks.detection.box_head import Scored
from piip.tasks.detection.boxes import clip, mirror
from piip.tasks.detection.config import DetectorConfig
from piip.tasks.detection.detector import Detector
from piip.tasks.detection.masks import compress
from piip.tasks.detection.result import Instances

if TYPE_CHECKING:
    from piip.data.views import View, Views

    Reading = tuple[View, list[Tensor]]  # a view and the maps that the head reads of it

DEFAULT_IOU = 0.7
"""IoU above which two detections of one class are one, where a detector's config has no ``nms``."""


@runtime_checkable
class MaskDetector(Protocol):
    """What a `Detector` with masks has, so that the same boxes can be looked at in several views."""

    @property
    def config(self) -> Any:
        """A config with ``mask_threshold``."""

    def features(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps that the head reads of images."""

    def detect_boxes(self, pyramid: Sequence[Tensor], sizes: Tensor, scales: Tensor) -> list[Scored]:
        """Return the boxes found in each image, in pixels before it was resized by ``scales``."""

    def detect_masks(
        self, pyramid: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the mask probabilities (D_i, s, s) of the labels of boxes (D_i, 4) in network pixels."""


def detect_views(detector: Detector, views: "Views") -> Instances:
    """Return what a detector finds in an image; one view is detected in as ever.

    With several views, the maps of all of them are held until the masks are predicted.

    Args:
        detector: In evaluation mode.
        views: The image.
    """
    if len(views) == 1:
        return _detect(detector, next(iter(views)))
    if detector.config.masks:
        assert isinstance(detector, MaskDetector), f"{type(detector).__name__} cannot average masks"
        return _detect_with_masks(detector, views)
    found = []
    for view in views:
        instances = _detect(detector, view)
        found.append(to_image(Scored(instances.boxes, instances.scores, instances.labels), view))
    return Instances(*merge(found, detector.config), None, views.original_size)


def merge(found: Sequence[Scored], config: DetectorConfig) -> Scored:
    """Return the detections of all views as those of one image, best first.

    Args:
        found: Those of each view, in pixels of the original image.
        config: Knows when two detections are one, and how many are kept.
    """
    iou: float = getattr(config, "nms", DEFAULT_IOU)
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = batched_nms(boxes, scores, labels, iou)[: config.detections_per_image]
    return Scored(boxes[kept], scores[kept], labels[kept])


def to_image(found: Scored, view: "View") -> Scored:
    """Return detections in pixels of the image that a view was made of, which may be mirrored, in the image's."""
    if not view.flipped:
        return found
    size = found.boxes.new_tensor(view.meta.original_size)
    return found._replace(boxes=clip(mirror(found.boxes, view.meta.original_size[1]), size))


def to_view(boxes: Tensor, view: "View") -> Tensor:
    """Return boxes (N, 4) of the image in pixels of a view."""
    if view.flipped:
        boxes = mirror(boxes, view.meta.original_size[1])
    return boxes * boxes.new_tensor(view.meta.scale_factor * 2)


def mean_masks(detector: MaskDetector, seen: "Sequence[Reading]", found: Scored) -> Tensor:
    """Return the mask probabilities (D, s, s) of the detections of an image, averaged over its views."""
    masks = []
    for view, pyramid in seen:
        (own,) = detector.detect_masks(pyramid, [to_view(found.boxes, view)], [found.labels])
        masks.append(own.flip(-1) if view.flipped else own)
    return torch.stack(masks).mean(0)


@torch.no_grad()
def _detect_with_masks(detector: MaskDetector, views: "Views") -> Instances:
    seen = [(view, detector.features([view.image])) for view in views]
    with torch.autocast(seen[0][0].image.device.type, enabled=False):
        found = merge(
            [to_image(_detect_boxes(detector, *reading), reading[0]) for reading in seen], detector.config
        )
        masks = mean_masks(detector, seen, found)
    size = views.original_size
    return Instances(*found, compress(masks, found.boxes, size, detector.config.mask_threshold), size)


def _detect_boxes(detector: MaskDetector, view: "View", pyramid: Sequence[Tensor]) -> Scored:
    scales = pyramid[0].new_tensor([view.meta.scale_factor * 2])
    sizes = torch.tensor([view.meta.size], device=scales.device)
    return detector.detect_boxes(pyramid, sizes, scales)[0]


def _detect(detector: Detector, view: "View") -> Instances:
    found = detector([view.image], metas=[view.meta])[0]
    assert isinstance(found, Instances)
    return found
