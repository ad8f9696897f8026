"""Training a detector."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from piip.errors import DataError
from piip.tasks.detection import Detector
from piip.train.data import DetectionData
from piip.train.metrics import evaluate, main_metric
from piip.train.module import TrainingModule
from piip.train.recipe import TrainRecipe


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
