"""Training a segmenter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from piip.data.labels import IGNORED, LabelledSplit
from piip.data.mask_layout import find_masks
from piip.data.segmentation import SegmentationDataset, collate
from piip.errors import ConfigError, DataError
from piip.tasks.segmentation import Segmenter, SegmenterConfig
from piip.train.confusion import count_pixels, segmentation_scores
from piip.train.data import TaskData
from piip.train.module import TrainingModule
from piip.train.recipe import TrainRecipe
from piip.train.samples import draw_samples, draw_segmentation
from piip.train.task import Task, require_maps

LOOKED_AT = 20
"""Masks of a split that are read before training, until one has a class."""


class SegmentationData(TaskData):
    """Training and validation loaders of a segmentation recipe."""

    train_set: SegmentationDataset
    val_set: SegmentationDataset

    def read(self) -> None:
        """Read images and masks."""
        recipe = self.recipe
        layout = find_masks(recipe.data.folder, recipe.data.classes)
        train, val = layout.split(recipe.data.train), layout.split(recipe.data.val)
        self.train_set = SegmentationDataset(train, recipe.image, recipe.augment, recipe.trainer.seed)
        self.val_set = SegmentationDataset(val, recipe.image)
        for split in (train, val):
            _refuse_unlabelled(split)
        if recipe.data.batch_size == 1:
            raise ConfigError(
                "data.batch_size is 1, but the batch norms of UperNet compare images of one batch; give at least 2."
            )

    @staticmethod
    def collate(items: Any) -> Any:
        """Stack crops; whole images come singly."""
        return collate(items)


def _refuse_unlabelled(split: LabelledSplit) -> None:
    """Refuse masks whose values are no classes: nothing could be learned, and no number would say so."""
    looked = min(len(split.images), LOOKED_AT)
    if not any((split.labels(index) != IGNORED).any() for index in range(looked)):
        raise DataError(
            f"No pixel of the first {looked} images in {split.source} has a class: their masks hold none of the "
            f"values of {', '.join(split.classes[:4])}{', ...' * (len(split.classes) > 4)}; piip check-data counts "
            "the pixels of every class."
        )


class SegmentationModule(TrainingModule):
    """A segmenter with its losses and mean intersection over union.

    Args:
        model: The segmenter.
        recipe: The run.
        data: Its loaders.
    """

    model: Segmenter

    def __init__(self, model: Segmenter, recipe: TrainRecipe, data: SegmentationData) -> None:
        super().__init__(model, recipe)

    def losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the losses of both heads."""
        images, labels, _ = batch
        try:
            losses = self.model(images, labels)
        except DataError as error:
            raise self.stopped(str(error)) from error
        assert isinstance(losses, dict)
        return losses

    def evaluate_batch(self, batch: Any) -> list[Any]:
        """Return what was taken for what, counted over the pixels of each image at the size of its file."""
        images, labels, metas = batch
        classes = len(self.model.config.classes)
        found = [
            self.model.segment(image[None], meta.original_size)[0].argmax(0)
            for image, meta in zip(images, metas, strict=True)
        ]
        return [count_pixels(f, t, classes, IGNORED) for f, t in zip(found, labels, strict=True)]

    def score(self, evaluated: list[Any]) -> tuple[dict[str, Any], dict[str, float], float]:
        """Return the mean intersection over union and the accuracies."""
        scores = segmentation_scores(evaluated, self.model.config.classes)
        return {"segmentation": scores.to_dict()}, scores.numbers(), scores.mIoU

    def headline(self) -> str:
        """Return the mean intersection over union and the accuracy."""
        scores = self.scores["segmentation"]
        return f"mIoU {100 * scores['mIoU']:.1f} (accuracy {100 * scores['aAcc']:.1f})"


class SegmentationTask(Task):
    """Semantic segmentation with UperNet."""

    model = Segmenter
    data = SegmentationData
    module = SegmentationModule

    @staticmethod
    def new_model(network: nn.Module, recipe: TrainRecipe, classes: tuple[str, ...]) -> Segmenter:
        """Return a segmenter with new heads on a network.

        Raises:
            ConfigError: The network has no four maps, or a setting of the heads is impossible.
        """
        network = require_maps(network, "segmenter")
        described = {"in_channels": network.out_channels, "ignore_index": IGNORED}
        return Segmenter(
            SegmenterConfig.from_dict(described | recipe.segmenter | {"classes": classes}), network
        )

    @staticmethod
    def metadata(recipe: TrainRecipe, data: TaskData) -> dict[str, Any]:
        """Return how images are prepared."""
        return {"image": recipe.image.to_dict()}

    @staticmethod
    def draw_samples(model: nn.Module, data: TaskData, folder: Path, count: int) -> None:
        """Draw the found and the annotated classes of a few validation images."""
        assert isinstance(model, Segmenter)
        draw_samples(draw_segmentation, model, data.val_set, folder, count)
