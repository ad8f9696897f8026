"""Training a classifier, by the released recipe's means (SPEC 16.3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from piip.data.classification import ClassificationDataset, collate, find_classes
from piip.errors import ConfigError
from piip.network import PIIP
from piip.tasks.classification import ClassifierConfig, ImageClassifier
from piip.train.confusion import classification_scores, count_pixels
from piip.train.data import TaskData
from piip.train.module import TrainingModule
from piip.train.recipe import TrainRecipe
from piip.train.samples import draw_classification, draw_samples
from piip.train.task import Task

_NONE = -1  # no image is without a class


class ClassificationData(TaskData):
    """Training and validation loaders of a classification recipe."""

    train_set: ClassificationDataset
    val_set: ClassificationDataset

    def read(self) -> None:
        """Read folders or tables of classes."""
        recipe = self.recipe
        train = find_classes(recipe.data.folder, recipe.data.train, recipe.data.classes)
        val = find_classes(recipe.data.folder, recipe.data.val, train.classes)
        self.train_set = ClassificationDataset(train, recipe.image, recipe.augment, recipe.trainer.seed)
        self.val_set = ClassificationDataset(val, recipe.image)
        if recipe.data.batch_size % 2 and (recipe.augment.mixup or recipe.augment.cutmix):
            raise ConfigError(
                f"data.batch_size is {recipe.data.batch_size}, but mixup and cutmix mix pairs; give an even number."
            )

    @staticmethod
    def collate(items: Any) -> Any:
        """Stack images and labels."""
        return collate(items)


class ClassificationModule(TrainingModule):
    """A classifier with its loss and accuracies.

    Args:
        model: The classifier.
        recipe: The run.
        data: Its loaders.
    """

    model: ImageClassifier

    def __init__(self, model: ImageClassifier, recipe: TrainRecipe, data: ClassificationData) -> None:
        super().__init__(model, recipe)
        augment, classes = recipe.augment, model.config.num_classes
        self._mix: Any = None
        self._loss: nn.Module = LabelSmoothingCrossEntropy(augment.label_smoothing)
        if augment.mixup or augment.cutmix:
            self._mix = Mixup(
                augment.mixup, augment.cutmix, label_smoothing=augment.label_smoothing, num_classes=classes
            )
            self._loss = SoftTargetCrossEntropy()

    def losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the cross entropy of a batch, mixed where the recipe says so."""
        images, labels, _ = batch
        if self._mix is not None:
            if len(images) % 2:  # the last batch of an epoch
                images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
            np.random.seed(torch.initial_seed() % 2**32)
            images, labels = self._mix(images, labels)
        return {"loss_ce": self._loss(self.model(images).float(), labels)}

    def evaluate_batch(self, batch: Any) -> list[Any]:
        """Return the five most probable classes and the right one of every image."""
        images, labels, _ = batch
        best = self.model(images).topk(min(5, self.model.config.num_classes)).indices.cpu().numpy()
        return list(zip(best.tolist(), labels.tolist(), strict=True))

    def score(self, evaluated: list[Any]) -> tuple[dict[str, Any], dict[str, float], float]:
        """Return top-1 and top-5 accuracy and what was taken for what."""
        scores = scores_of(evaluated, self.model.config.classes)
        return {"classification": scores}, {f"val/{k}": scores[k] for k in ("top1", "top5")}, scores["top1"]

    def headline(self) -> str:
        """Return the accuracies."""
        scores = self.scores["classification"]
        return f"top-1 {100 * scores['top1']:.1f} (top-5 {100 * scores['top5']:.1f})"


def scores_of(evaluated: list[Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the accuracies, JSON-ready, of (best five, right class) pairs."""
    best = torch.tensor([top for top, _ in evaluated]).view(len(evaluated), -1)
    right = torch.tensor([label for _, label in evaluated], dtype=torch.int64)
    counts = count_pixels(best[:, 0], right, len(classes), _NONE)
    in_five = float((best == right[:, None]).any(1).float().mean())
    return classification_scores(counts, in_five, classes)


class ClassificationTask(Task):
    """Image classification."""

    model = ImageClassifier
    data = ClassificationData
    module = ClassificationModule

    @staticmethod
    def new_model(network: nn.Module, recipe: TrainRecipe, classes: tuple[str, ...]) -> ImageClassifier:
        """Return a classifier with new heads on a network.

        Raises:
            ConfigError: The network has no maps that such heads read, or a setting of the heads is impossible.
        """
        assert isinstance(network, PIIP)
        merged = network.config.merging.kind != "none"
        tokens = all(branch.prefix_tokens for branch in network.config.branches)
        described: dict[str, Any] = {
            "head": "merged" if merged else "branch_heads",
            "token": "class" if tokens and not merged else "mean",
        }
        described |= recipe.classifier | {"num_classes": len(classes), "classes": classes}
        return ImageClassifier(ClassifierConfig.from_dict(described), network)

    @staticmethod
    def metadata(recipe: TrainRecipe, data: TaskData) -> dict[str, Any]:
        """Return how images are prepared."""
        return {"image": recipe.image.to_dict()}

    @staticmethod
    def draw_samples(model: nn.Module, data: TaskData, folder: Path, count: int) -> None:
        """Draw the most probable classes of a few validation images."""
        assert isinstance(model, ImageClassifier)
        draw_samples(draw_classification, model, data.val_set, folder, count)
