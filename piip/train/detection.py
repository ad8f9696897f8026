"""Training a detector."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from piip.data.coco import DetectionDataset, collate
from piip.data.layout import find_dataset
from piip.errors import DataError
from piip.tasks.detection import Detector, detector_class, detector_config, new_detector
from piip.train.data import TaskData
from piip.train.metrics import evaluate, main_metric
from piip.train.module import TrainingModule
from piip.train.recipe import TrainRecipe
from piip.train.samples import draw_detection, draw_samples
from piip.train.task import Task, require_maps


class DetectionData(TaskData):
    """Training and validation loaders of a detection recipe."""

    train_set: DetectionDataset
    val_set: DetectionDataset

    def read(self) -> None:
        """Read a COCO, Roboflow or YOLO folder."""
        recipe = self.recipe
        layout = find_dataset(recipe.data.folder)
        self.train_set = DetectionDataset(
            layout.split(recipe.data.train),
            recipe.image,
            recipe.augment,
            masks=recipe.masks,
            classes=recipe.data.classes or None,
            keep_empty=recipe.data.keep_empty,
            seed=recipe.trainer.seed,
        )
        self.val_set = DetectionDataset(
            layout.split(recipe.data.val), recipe.image, masks=False, classes=self.train_set.classes
        )
        self._check_validation()

    def _check_validation(self) -> None:
        """Refuse a split on which the run could not be measured."""
        index = self.val_set.index
        strange = [name for name in index.classes if name not in self.train_set.index.classes]
        if strange and not self.recipe.data.classes:
            raise DataError(
                f"{index.source} has the class {strange[0]!r}, which the training split lacks; mend one of them, "
                "or name the classes to keep in data.classes."
            )
        if not len(self.val_set.objects):
            raise DataError(f"{index.source} has no objects, so that nothing can be measured on it.")
        if self.recipe.masks:
            self.val_set.require_outlines(self.val_set.objects)

    @staticmethod
    def collate(items: Any) -> Any:
        """Gather items into lists; images keep their own sizes."""
        return collate(items)

    def groups(self, dataset: Any) -> NDArray[np.int64]:
        """Return the orientation of every image (HEADS 9)."""
        orientations: NDArray[np.int64] = dataset.orientations
        return orientations

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move images and targets; what describes the files stays."""
        images, targets, metas = batch
        moved = [
            {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}
            for target in targets
        ]
        return [image.to(device, non_blocking=True) for image in images], moved, metas


class DetectionModule(TrainingModule):
    """A detector with its losses and COCO metrics.

    Args:
        model: The detector.
        recipe: The run.
        data: Its validation set is the ground truth.
    """

    model: Detector

    def __init__(self, model: Detector, recipe: TrainRecipe, data: DetectionData) -> None:
        super().__init__(model, recipe)
        self._truth = data.val_set

    def losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the losses of both stages."""
        images, targets, metas = batch
        try:
            losses = self.model(images, targets, metas)
        except DataError as error:
            raise self.stopped(str(error)) from error
        assert isinstance(losses, dict)
        return losses

    def evaluate_batch(self, batch: Any) -> list[Any]:
        """Return the detections as COCO results; masks stay compressed."""
        images, _, metas = batch
        found = self.model(images, None, metas)
        results = zip(found, metas, strict=True)
        ids = self._truth.category_ids
        return [entry for instances, meta in results for entry in instances.to_coco(meta.image_id, ids)]

    def score(self, evaluated: list[Any]) -> tuple[dict[str, Any], dict[str, float], float]:
        """Return the COCO metrics."""
        truth = self._truth.coco_dict()
        limit = self.recipe.trainer.max_detections
        scores = evaluate(truth, evaluated, masks=self.model.config.masks, max_detections=limit)
        numbers = [score.numbers(f"val/{kind}") for kind, score in scores.items()]
        logged = {name: value for part in numbers for name, value in part.items()}
        return {kind: score.to_dict() for kind, score in scores.items()}, logged, main_metric(scores)

    def headline(self) -> str:
        """Return the average precisions."""
        return "  ".join(
            f"{kind} AP {100 * score['AP']:.1f} (AP50 {100 * score['AP50']:.1f})"
            for kind, score in self.scores.items()
            if score["AP"] is not None
        )


class DetectionTask(Task):
    """Detection and instance segmentation."""

    model = Detector
    data = DetectionData
    module = DetectionModule

    @staticmethod
    def new_model(network: nn.Module, recipe: TrainRecipe, classes: tuple[str, ...]) -> Detector:
        """Return a detector with a new head on a network.

        Raises:
            ConfigError: The network has too few or too many maps, or a setting of the head is impossible.
        """
        kind = detector_class(recipe.detector)
        name = recipe.detector.get("kind", "rcnn")
        network = require_maps(network, f"detector of the kind {name}", kind.config_class.strides)
        described = {
            "in_channels": network.out_channels,
            "strides": tuple(map(int, network.strides)),
            "classes": classes,
        }
        return new_detector(detector_config(recipe.detector, described), network)

    @staticmethod
    def metadata(recipe: TrainRecipe, data: TaskData) -> dict[str, Any]:
        """Return what a saved detector must know beside its own configuration."""
        return {"image": recipe.image.to_dict(), "category_ids": list(data.val_set.category_ids)}

    @staticmethod
    def draw_samples(model: nn.Module, data: TaskData, folder: Path, count: int) -> None:
        """Draw found and annotated objects of a few validation images."""
        assert isinstance(model, Detector)
        draw_samples(draw_detection, model, data.val_set, folder, count)
