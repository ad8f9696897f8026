"""How a prepared image relates to the file it came from."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageMeta:
    """Sizes of one image before and after resizing, needed to bring predictions back (HEADS 1.3).

    Attributes:
        image_id: Identity of the image in its data set.
        file_name: File, relative to the image folder of the data set.
        original_size: Height and width of the file in pixels, its EXIF orientation applied.
        size: Height and width after resizing, before any padding.
        scale_factor: ``(sx, sy)`` = ``size / original_size``, rounded to float32. Dividing a box by it
            gives pixels of the original image, as long as the image was not cropped.
    """

    image_id: int
    file_name: str
    original_size: tuple[int, int]
    size: tuple[int, int]
    scale_factor: tuple[float, float]

    @classmethod
    def of(
        cls, image_id: int, file_name: str, original_size: tuple[int, int], size: tuple[int, int]
    ) -> "ImageMeta":
        """Build a meta whose scale factor follows from the two sizes (height, width)."""
        return cls(image_id, file_name, original_size, size, scale_factor(original_size, size))


def scale_factor(original_size: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Return ``(sx, sy)``, both rounded to float32, for two sizes given as (height, width)."""
    (height, width), (new_height, new_width) = original_size, size
    return float(np.float32(new_width / width)), float(np.float32(new_height / height))
