"""A trained model that takes image files: load it, call ``predict``, look at the result."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from piip.data.classification import prepare_picture
from piip.data.images import read_image, to_tensor
from piip.data.settings import AugmentedTest, ImageConfig
from piip.data.views import Views
from piip.errors import CheckpointError, ConfigError, DataError
from piip.hub import find_folder, from_pretrained, is_llava, read_description, save_pretrained
from piip.tasks.classification import ImageClassifier, classify_views
from piip.tasks.classified import Classification
from piip.tasks.detection import Detections, Detector, Instances, detect_views
from piip.tasks.segmentation import Segmentation, Segmenter, segment_views

if TYPE_CHECKING:
    from PIL import Image

    Picture = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor


class Predictor(ABC):
    """A model with everything that it needs to read images.

    Args:
        model: The model.
        image: How images are prepared, as in training.
        device: Where it runs; ``auto`` takes a GPU if there is one.
        test: How often, and how, it looks at an image; once by default.

    Attributes:
        test: As above; it may be replaced between images.

    Raises:
        ConfigError: The device is not there.
    """

    def __init__(
        self,
        model: nn.Module,
        image: ImageConfig,
        device: str | torch.device = "auto",
        test: AugmentedTest | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.model: Any = model.to(self.device).eval()
        self.image = image
        self.test = test or AugmentedTest()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        names: tuple[str, ...] = self.model.config.classes
        return names

    def predict(self, image: "Picture", score: float = 0.0) -> Any:
        """Return what the model sees in one image.

        Args:
            image: A file, a PIL image, an RGB array (H, W, 3) or an RGB tensor (3, H, W), both uint8.
            score: Leave out objects with a lower score.

        Raises:
            DataError: The image cannot be read or is no RGB image.
        """
        return next(self.predict_all([image], score))

    def predict_all(self, images: Iterable["Picture"], score: float = 0.0) -> Iterator[Any]:
        """Look at images, one after the other; only one image is held in memory."""
        for number, image in enumerate(images):
            pixels, path = read_pixels(image)
            yield self._predict(pixels, path, number, score)

    def save(self, folder: str | Path) -> None:
        """Save the model and how it reads images, for `load`."""
        save_pretrained(self.model, folder, self.metadata())

    def metadata(self) -> dict[str, Any]:
        """Return what is saved beside the model."""
        return {"image": self.image.to_dict()}

    def gather(self, images: list[dict[str, Any]], records: list[dict[str, Any]]) -> dict[str, Any]:
        """Return one JSON-ready description of the results for many images.

        Args:
            images: ``id``, ``file_name``, ``height`` and ``width`` of every image.
            records: What the ``record`` of every result returned.
        """
        return {"images": [image | record for image, record in zip(images, records, strict=True)]}

    @abstractmethod
    def infer(self, pixels: Tensor) -> Any:
        """Return what the model says of an image (3, H, W) uint8; prediction and evaluation both go this way."""

    @abstractmethod
    def _predict(self, pixels: Tensor, path: Path | None, number: int, score: float) -> Any:
        """Return what `infer` says of an image (3, H, W) uint8 as the result that users get."""


class DetectionPredictor(Predictor):
    """A detector that takes image files; its results are `Detections`.

    Args:
        model: The detector.
        image: How images are prepared, as in training.
        category_ids: COCO category of every class; 1, 2, ... by default.
        device: Where it runs; ``auto`` takes a GPU if there is one.
        test: How often, and how, it looks at an image; once by default.
    """

    def __init__(
        self,
        model: Detector,
        image: ImageConfig,
        category_ids: tuple[int, ...] = (),
        device: str | torch.device = "auto",
        test: AugmentedTest | None = None,
    ) -> None:
        super().__init__(model, image, device, test)
        self.category_ids = category_ids or tuple(range(1, len(self.classes) + 1))

    def metadata(self) -> dict[str, Any]:
        """Return what is saved beside the model."""
        return super().metadata() | {"category_ids": list(self.category_ids)}

    def gather(self, images: list[dict[str, Any]], records: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the objects of all images as a COCO data set."""
        pairs = zip(self.category_ids, self.classes, strict=True)
        categories = [{"id": number, "name": name} for number, name in pairs]
        objects = [
            {"id": number, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0} | entry
            for number, entry in enumerate((e for record in records for e in record["annotations"]), start=1)
        ]
        return {"images": images, "categories": categories, "annotations": objects}

    @torch.inference_mode()
    def infer(self, pixels: Tensor) -> Instances:
        """Return the objects in an image (3, H, W) uint8."""
        return detect_views(self.model, Views(pixels, self.image, self.test, self.device))

    def _predict(self, pixels: Tensor, path: Path | None, number: int, score: float) -> Detections:
        found = self.infer(pixels).cpu().filter(score)
        return Detections(found, self.classes, self.category_ids, path, number)


class SegmentationPredictor(Predictor):
    """A segmenter that takes image files; its results are `Segmentation`s."""

    @torch.inference_mode()
    def infer(self, pixels: Tensor) -> Tensor:
        """Return the class numbers uint8 (H, W) of the pixels of an image (3, H, W) uint8."""
        return segment_views(self.model, Views(pixels, self.image, self.test, self.device)).to(torch.uint8)

    def _predict(self, pixels: Tensor, path: Path | None, number: int, score: float) -> Segmentation:
        return Segmentation(self.infer(pixels).cpu(), self.classes, path, number)


class ClassificationPredictor(Predictor):
    """A classifier that takes image files; its results are `Classification`s."""

    @torch.inference_mode()
    def infer(self, pixels: Tensor) -> Tensor:
        """Return the logits (C,) of an image (3, H, W) uint8."""
        return classify_views(self.model, Views(pixels, self.image, self.test, self.device, prepare_picture))

    def _predict(self, pixels: Tensor, path: Path | None, number: int, score: float) -> Classification:
        probabilities = self.infer(pixels).softmax(0).cpu()
        size = (pixels.shape[-2], pixels.shape[-1])
        return Classification(probabilities, self.classes, size, path, number)


def load(
    source: str | Path,
    device: str | torch.device = "auto",
    revision: str | None = None,
    test: AugmentedTest | None = None,
) -> Predictor:
    """Load a trained detector, segmenter or classifier.

    Args:
        source: A run folder, the folder of a saved model, or ``owner/name`` on the Hugging Face Hub.
        device: Where it runs; ``auto`` takes a GPU if there is one.
        revision: Branch, tag or commit of the repository on the Hub.
        test: How often, and how, it looks at an image (test-time augmentation); once by default.

    Raises:
        CheckpointError: There is no model that can predict, or it is damaged.
        ConfigError: The device is not there.
    """
    folder = find_folder(source, revision)
    if is_llava(folder):
        raise CheckpointError(f"{folder} holds a PIIP-LLaVA; load it by piip.llava.Answerer.load.")
    metadata = read_description(folder).get("metadata", {})
    model = from_pretrained(folder)
    if not isinstance(model, Detector | Segmenter | ImageClassifier) or "image" not in metadata:
        raise CheckpointError(
            f"{folder} holds a {type(model).__name__} without image settings, which cannot predict; give the "
            "folder of a training run or of a converted model."
        )
    image = ImageConfig.from_dict(metadata["image"])
    if isinstance(model, Segmenter):
        return SegmentationPredictor(model, image, device, test)
    if isinstance(model, ImageClassifier):
        return ClassificationPredictor(model, image, device, test)
    return DetectionPredictor(model, image, tuple(metadata.get("category_ids", ())), device, test)


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


def read_pixels(image: "Picture") -> tuple[Tensor, Path | None]:
    """Return the pixels (3, H, W) uint8 of an image and its file, if it has one.

    Raises:
        DataError: The image cannot be read or is no RGB image.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        return read_image(image), Path(image)
    if isinstance(image, Image.Image):
        return to_tensor(image), None
    if not isinstance(image, Tensor | np.ndarray):
        raise DataError(
            "An image is a file, a PIL image, an RGB array (H, W, 3) or tensor (3, H, W), got "
            f"{type(image).__name__}."
        )
    kind, channels = (torch.uint8, 0) if isinstance(image, Tensor) else (np.uint8, -1)
    if image.dtype != kind or image.ndim != 3 or image.shape[channels] != 3:
        raise DataError(
            f"An image is an RGB array (H, W, 3) or tensor (3, H, W) of uint8, got {image.dtype} of shape "
            f"{tuple(image.shape)}."
        )
    return image if isinstance(image, Tensor) else torch.from_numpy(image.copy()).movedim(-1, 0), None
