"""What a classifier says of an image."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from piip.data.images import picture_to_draw_on
from piip.files import atomic_write

if TYPE_CHECKING:
    from PIL import Image

_SHOWN = 5


@dataclass(frozen=True)
class Classification:
    """What prediction returns for one image: the probability of every class.

    Attributes:
        probabilities: (C,) from 0 to 1, summing to 1.
        class_names: Name of each class.
        original_size: Height and width of the image.
        path: File of the image; None if it came as an array.
        image_id: Number of the image.
    """

    probabilities: Tensor
    class_names: tuple[str, ...]
    original_size: tuple[int, int]
    path: Path | None = None
    image_id: int = 0

    def top(self, count: int = _SHOWN) -> list[tuple[str, float]]:
        """Return the most probable classes and their probabilities."""
        values, labels = self.probabilities.topk(min(count, len(self.class_names)))
        return [(self.class_names[k], v) for k, v in zip(labels.tolist(), values.tolist(), strict=True)]

    def summary(self) -> str:
        """Return the three most probable classes in words."""
        return ", ".join(f"{name} {100 * share:.0f}%" for name, share in self.top(3))

    def record(self) -> dict[str, Any]:
        """Return what a list of predictions says of this image, JSON-ready."""
        height, width = self.original_size
        top = [{"class": name, "probability": round(value, 5)} for name, value in self.top()]
        return {"height": height, "width": width, "top": top}

    def plot(
        self, path: str | Path | None = None, *, image: "Image.Image | None" = None, truth: str | None = None
    ) -> "Image.Image":
        """Draw the image and a bar for each of the most probable classes.

        Args:
            path: Also write the picture there.
            image: The image, needed where the classification knows no file.
            truth: The right class, whose bar is marked.

        Raises:
            DataError: There is no image.
        """
        from piip.tasks.bars import draw_bars

        image = picture_to_draw_on(image, self.path, self.original_size)
        picture = draw_bars(image, self.top(), truth)
        if path is not None:
            with atomic_write(path) as temporary:
                picture.save(temporary)
        return picture
