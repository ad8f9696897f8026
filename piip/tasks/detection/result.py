"""What a detector found in an image."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from piip.data.images import picture_to_draw_on
from piip.errors import DataError, require
from piip.files import atomic_write
from piip.tasks.detection.anchors import Size
from piip.tasks.detection.masks import RLE, decode_masks

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Instances:
    """Objects found in one image, best first.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the original image.
        scores: (N,) from 0 to 1.
        labels: (N,) class numbers from 0.
        masks: A mask for each object as COCO's compressed run lengths; None from a detector without masks.
        original_size: (height, width) of the original image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: list[RLE] | None
    original_size: Size

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.scores)

    def to(self, device: str | torch.device) -> Self:
        """Return the same objects with their tensors on ``device``."""
        tensors = {name: getattr(self, name).to(device) for name in ("boxes", "scores", "labels")}
        return replace(self, **tensors)

    def cpu(self) -> Self:
        """Return the same objects with their tensors in main memory."""
        return self.to("cpu")

    def filter(self, score: float) -> Self:
        """Return the objects with at least this score."""
        kept = (self.scores >= score).nonzero()[:, 0]
        masks = None if self.masks is None else [self.masks[i] for i in kept.tolist()]
        return replace(
            self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], masks=masks
        )

    def to_coco(self, image_id: int, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
        """Return COCO result entries; ``category_ids`` gives the category of each label."""
        corners = self.boxes.double().cpu()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        entries = [
            {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for label, box, score in zip(self.labels.tolist(), boxes, self.scores.tolist(), strict=True)
        ]
        for entry, mask in zip(entries, self.masks or (), strict=bool(self.masks)):
            entry["segmentation"] = mask
        return entries


@dataclass(frozen=True)
class Detections:
    """What prediction returns for one image: its objects, and what they are called.

    Attributes:
        instances: The objects.
        class_names: Name of each label.
        category_ids: COCO category of each label; 1, 2, ... by default.
        path: File of the image; None if it came as an array.
        image_id: Number of the image in COCO results.
    """

    instances: Instances
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] = field(default=())
    path: Path | None = None
    image_id: int = 0

    def __post_init__(self) -> None:
        """Number the categories where they have no numbers."""
        if not self.category_ids:
            object.__setattr__(self, "category_ids", tuple(range(1, len(self.class_names) + 1)))
        if len(self.category_ids) != len(self.class_names):
            raise DataError(
                f"There are {len(self.category_ids)} category_ids for {len(self.class_names)} class names; "
                "give one for each."
            )

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.instances)

    def __repr__(self) -> str:
        """Return what there is, short enough for a notebook."""
        return f"Detections({self.summary() or 'nothing'}; path={str(self.path) if self.path else None!r})"

    def names(self) -> list[str]:
        """Return the class name of each object."""
        return [self.class_names[label] for label in self.instances.labels.tolist()]

    def filter(self, score: float) -> Self:
        """Return the objects with at least this score."""
        return replace(self, instances=self.instances.filter(score))

    def summary(self) -> str:
        """Return how many objects of each class there are, in words."""
        counts = {name: self.names().count(name) for name in self.class_names if name in self.names()}
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    def record(self) -> dict[str, Any]:
        """Return what a list of predictions says of this image, JSON-ready."""
        height, width = self.instances.original_size
        return {"height": height, "width": width, "annotations": self.to_coco()}

    def to_coco(self) -> list[dict[str, Any]]:
        """Return COCO result entries with ``bbox`` (x, y, w, h) and, from masks, ``segmentation``."""
        return self.instances.to_coco(self.image_id, self.category_ids)

    def to_supervision(self) -> Any:
        """Return a ``supervision.Detections`` with the class names as its data.

        Raises:
            MissingExtraError: supervision is not installed.
        """
        supervision = require("supervision", "supervision", "Detections.to_supervision")
        found = self.instances.cpu()
        masks = None if found.masks is None else decode_masks(found.masks, found.original_size)
        return supervision.Detections(
            xyxy=found.boxes.numpy(),
            mask=masks,
            confidence=found.scores.numpy(),
            class_id=found.labels.numpy(),
            data={"class_name": self.names()},
        )

    def plot(
        self,
        path: str | Path | None = None,
        *,
        image: "Image.Image | None" = None,
        score: float = 0.0,
        scores: bool = True,
    ) -> "Image.Image":
        """Draw the objects on the image.

        Args:
            path: Also write the picture there.
            image: The image, needed where the detections know no file.
            score: Leave out objects with a lower score.
            scores: Write scores behind the names.

        Returns:
            The picture; small images are enlarged so that the labels can be read.

        Raises:
            DataError: There is no image to draw on, or it is not the one that was searched.
        """
        from piip.tasks.detection.draw import draw

        image = picture_to_draw_on(image, self.path, self.instances.original_size)
        picture = draw(image, self.instances.filter(score).cpu(), self.class_names, scores)
        if path is not None:
            with atomic_write(path) as temporary:
                picture.save(temporary)
        return picture
