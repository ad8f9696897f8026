"""What differs between tasks: how data is read, what is trained on it, and what is shown of the result."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from piip.errors import ConfigError, require
from piip.hub import save_pretrained
from piip.network import PIIP
from piip.train.data import TaskData
from piip.train.optimizer import find_network
from piip.train.recipe import TrainRecipe

_STAND_INS = ("one class", "another")
"""Classes of a model that is built before those of the data are known."""
_WORDS = {0: "none", 1: "one", 2: "two", 3: "three", 4: "four"}


class Task(ABC):
    """A task, as training sees it.

    Attributes:
        model: The class of its models.
        data: Reads its data.
        module: Trains and evaluates its models; built with a model, a recipe and the data.
        network_changes: Changes of networks that the task needs, unless a recipe says otherwise.
    """

    model: ClassVar[type[nn.Module]]
    data: ClassVar[type[TaskData]]
    module: ClassVar[Any]
    network_changes: ClassVar[Mapping[str, Any]] = {}

    @staticmethod
    @abstractmethod
    def new_model(network: nn.Module, recipe: TrainRecipe, classes: tuple[str, ...]) -> nn.Module:
        """Return a model with a new head on a network."""

    @staticmethod
    def without_weights(recipe: TrainRecipe, data: TaskData) -> nn.Module | None:
        """Return the model that a recipe trains with any weights, or None where that saves nothing.

        It is for processes that get their shards of the weights from another one.
        """
        return None

    @classmethod
    def check_head(cls, network: nn.Module, recipe: TrainRecipe) -> None:
        """Refuse a head that is impossible on a network of the meta device, before data are read."""
        cls.new_model(network, recipe, _STAND_INS)

    @staticmethod
    def prepare(model: nn.Module, recipe: TrainRecipe) -> None:
        """Choose what of a model is trained."""
        find_network(model)[1].freeze(recipe.model.freeze)

    @staticmethod
    @abstractmethod
    def metadata(recipe: TrainRecipe, data: TaskData) -> dict[str, Any]:
        """Return what is saved beside a model, so that it can predict."""

    @classmethod
    def save(cls, model: nn.Module, folder: Path, recipe: TrainRecipe, data: TaskData) -> None:
        """Save a trained model, so that it can predict."""
        save_pretrained(model, folder, metadata=cls.metadata(recipe, data))

    @staticmethod
    @abstractmethod
    def draw_samples(model: nn.Module, data: TaskData, folder: Path, count: int) -> None:
        """Draw what a model sees in a few validation images, and what is there."""


def task_of(recipe: TrainRecipe) -> type[Task]:
    """Return the task of a recipe."""
    if recipe.task == "segmentation":
        from piip.train.segmentation import SegmentationTask

        return SegmentationTask
    if recipe.task == "classification":
        from piip.train.classification import ClassificationTask

        return ClassificationTask
    if recipe.task == "multimodal":
        require("transformers", "llava", "PIIP-LLaVA")
        from piip.train.multimodal import MultimodalTask

        return MultimodalTask
    from piip.train.detection import DetectionTask

    return DetectionTask


def require_maps(network: nn.Module, wanted: str, strides: Sequence[int] = (4, 8, 16, 32)) -> PIIP:
    """Return the network if it has as many maps as a head reads.

    Args:
        network: The network.
        wanted: What the head is called.
        strides: Pixels per cell of the maps that it reads in a network of a usual size.

    Raises:
        ConfigError: It has more or fewer.
    """
    found = len(network.out_channels) if isinstance(network, PIIP) else 0
    if isinstance(network, PIIP) and found == len(strides):
        return network
    levels = [{4: 1, 8: 2, 16: 3, 32: 4}[stride] for stride in strides]
    raise ConfigError(
        f"A {wanted} needs a network with {_WORDS[len(strides)]} maps, this one has {_WORDS.get(found, found)}; "
        f"choose a network that is made for it or set model.changes.merging.pyramid_levels to {levels}."
    )
