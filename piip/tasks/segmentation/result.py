"""What a segmenter sees in an image."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from piip.data.images import picture_to_draw_on
from piip.files import atomic_write

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Segmentation:
    """What prediction returns for one image: the class of every pixel.

    Attributes:
        labels: (H, W) uint8 class numbers from 0, at the size of the file; 255 = no class (ground truth only).
        class_names: Name of each label.
        path: File of the image; None if it came as an array.
        image_id: Number of the image.
    """

    labels: Tensor
    class_names: tuple[str, ...]
    path: Path | None = None
    image_id: int = 0

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.labels.shape[0], self.labels.shape[1]

    def shares(self) -> dict[str, float]:
        """Return the share of the image that each class covers, the largest first, without absent ones."""
        counts = torch.bincount(self.labels.flatten().long(), minlength=256)[: len(self.class_names)]
        order = counts.argsort(descending=True, stable=True).tolist()
        total = self.labels.numel()
        return {self.class_names[k]: int(counts[k]) / total for k in order if counts[k]}

    def summary(self) -> str:
        """Return the classes and how much they cover, in words."""
        return ", ".join(
            f"{100 * share:.0f}% {name}" for name, share in self.shares().items() if share >= 0.005
        )

    def save_mask(self, path: str | Path) -> None:
        """Write the labels as a PNG with one class number per pixel, coloured by a palette."""
        from PIL import Image

        from piip.tasks.segmentation.draw import palette

        picture = Image.fromarray(self.labels.cpu().numpy().astype(np.uint8))
        picture.putpalette(palette())
        with atomic_write(path) as temporary:
            picture.save(temporary, "PNG")

    def plot(self, path: str | Path | None = None, *, image: "Image.Image | None" = None) -> "Image.Image":
        """Draw the classes over the image, with a legend.

        Args:
            path: Also write the picture there.
            image: The image, needed where the segmentation knows no file.

        Raises:
            DataError: There is no image to draw on, or it is not the one that was segmented.
        """
        from piip.tasks.segmentation.draw import draw

        image = picture_to_draw_on(image, self.path, self.original_size)
        picture = draw(image, self.labels.cpu(), self.class_names)
        if path is not None:
            with atomic_write(path) as temporary:
                picture.save(temporary)
        return picture

    def record(self) -> dict[str, Any]:
        """Return what a list of predictions says of this image, JSON-ready."""
        height, width = self.original_size
        shares = {name: round(share, 4) for name, share in self.shares().items()}
        return {"height": height, "width": width, "shares": shares}
