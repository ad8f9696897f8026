"""A trained model that takes image files: load it, call ``predict``, look at the result."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from piip.data.geometry import ImageMeta
from piip.data.images import read_image, to_tensor
from piip.data.settings import ImageConfig
from piip.data.transforms import prepare_image
from piip.errors import CheckpointError, ConfigError, DataError
from piip.hub import find_folder, from_pretrained, read_description, save_pretrained
from piip.tasks.detection import Detections, Detector, Instances

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Picture = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor


class Predictor:
    """A detector with everything that it needs to read images.

    Args:
        detector: The model.
        image: How images are prepared, as in training.
        category_ids: COCO category of every class; 1, 2, ... by default.
        device: Where it runs; ``auto`` takes a GPU if there is one.

    Raises:
        ConfigError: The device is not there.
    """

    def __init__(
        self,
        detector: Detector,
        image: ImageConfig,
        category_ids: tuple[int, ...] = (),
        device: str | torch.device = "auto",
    ) -> None:
        self.device = choose_device(device)
        self.detector = detector.to(self.device).eval()
        self.image = image
        self.category_ids = category_ids

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.detector.config.classes

    def predict(self, image: "Picture", score: float = 0.0) -> Detections:
        """Find objects in one image.

        Args:
            image: A file, a PIL image, an RGB array (H, W, 3) or an RGB tensor (3, H, W), both uint8.
            score: Leave out objects with a lower score.

        Raises:
            DataError: The image cannot be read or is no RGB image.
        """
        return next(self.predict_all([image], score))

    def predict_all(self, images: Iterable["Picture"], score: float = 0.0) -> Iterator[Detections]:
        """Find objects in images, one after the other; only one image is held in memory."""
        for number, image in enumerate(images):
            yield self._predict(image, number, score)

    def save(self, folder: str | Path) -> None:
        """Save the model and how it reads images, for `load`."""
        metadata = {"image": self.image.to_dict(), "category_ids": list(self.category_ids)}
        save_pretrained(self.detector, folder, metadata)

    @torch.inference_mode()
    def _predict(self, image: "Picture", number: int, score: float) -> Detections:
        pixels, path = _read(image)
        prepared = prepare_image(pixels, self.image)
        size, original = ((t.shape[-2], t.shape[-1]) for t in (prepared, pixels))
        meta = ImageMeta.of(number, path.name if path else f"image {number}", original, size)
        found = self.detector([prepared.to(self.device)], metas=[meta])
        instances: Instances = found[0]
        return Detections(instances.cpu().filter(score), self.classes, self.category_ids, path, number)


def load(source: str | Path, device: str | torch.device = "auto", revision: str | None = None) -> Predictor:
    """Load a trained detector.

    Args:
        source: A run folder, the folder of a saved model, or ``owner/name`` on the Hugging Face Hub.
        device: Where it runs; ``auto`` takes a GPU if there is one.
        revision: Branch, tag or commit of the repository on the Hub.

    Raises:
        CheckpointError: There is no detector, or it is damaged.
        ConfigError: The device is not there.
    """
    folder = find_folder(source, revision)
    metadata = read_description(folder).get("metadata", {})
    model = from_pretrained(folder)
    if not isinstance(model, Detector) or "image" not in metadata:
        raise CheckpointError(
            f"{folder} holds a {type(model).__name__} without image settings, which cannot predict; give the "
            "folder of a training run or of a converted detector."
        )
    image = ImageConfig.from_dict(metadata["image"])
    return Predictor(model, image, tuple(metadata.get("category_ids", ())), device)


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device of a name; ``auto`` takes a GPU if there is one.

    Raises:
        ConfigError: There is no such device.
    """
    if device == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"The device {device!r} is not there; use --device cpu or auto.") from error
    return chosen


def _read(image: "Picture") -> tuple[Tensor, Path | None]:
    """Return the pixels (3, H, W) uint8 of an image and its file, if it has one."""
    from PIL import Image

    if isinstance(image, str | Path):
        return read_image(image), Path(image)
    if isinstance(image, Image.Image):
        return to_tensor(image), None
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(image.copy()).movedim(-1, 0)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise DataError(
            f"An image is an RGB array (H, W, 3) or tensor (3, H, W) of uint8, got {pixels.dtype} of shape "
            f"{tuple(image.shape)}."
        )
    return pixels, None
