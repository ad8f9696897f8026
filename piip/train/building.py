"""Building the model of a recipe."""

from torch import nn

from piip.errors import ConfigError
from piip.factory import build, create_model, load_branches
from piip.hub import from_pretrained
from piip.network import PIIP
from piip.tasks.detection import Detector, DetectorConfig
from piip.train.recipe import ModelRecipe, TrainRecipe
from piip.weights import load_pretrained


def build_detector(recipe: TrainRecipe, classes: tuple[str, ...]) -> Detector:
    """Return the detector that a recipe trains, its weights loaded and its branches frozen.

    Args:
        recipe: The run.
        classes: Class names of the data, in label order.

    Raises:
        ConfigError: The recipe names no model, or a model that knows other classes than the data has.
        CheckpointError: Weights cannot be loaded.
    """
    start = _load_start(recipe.model)
    if isinstance(start, Detector) and not recipe.model.new_head:
        _check_classes(start, classes, recipe.model)
        detector = start
    else:
        network = start.backbone if isinstance(start, Detector) else start
        detector = new_detector(build_network(recipe.model) if network is None else network, recipe, classes)
    network = detector.backbone
    if isinstance(network, PIIP):
        network.freeze(recipe.model.freeze)
        network.set_grad_checkpointing(recipe.trainer.grad_checkpointing)
    return detector.train()


def build_network(model: ModelRecipe) -> PIIP:
    """Return the network of a recipe with its branches' weights.

    Raises:
        ConfigError: The recipe names no network, or an impossible one.
        CheckpointError: Weights cannot be loaded.
    """
    if model.name:
        network = create_model(model.name, **model.changes)
    elif model.branches:
        network = build(model.branches, model.sizes, **model.changes)
    else:
        raise ConfigError("The recipe names no model; give model.name, model.branches or model.start.")
    if model.pretrained:
        load_branches(network)
    for number, source in model.weights.items():
        if not 1 <= number <= len(network.branches):
            raise ConfigError(
                f"model.weights names branch {number}; branches go from 1 to {len(network.branches)}."
            )
        load_pretrained(network.branches[number - 1], source)  # type: ignore[arg-type]
    return network


def new_detector(network: nn.Module, recipe: TrainRecipe, classes: tuple[str, ...]) -> Detector:
    """Return a detector with a new head on a network.

    Raises:
        ConfigError: The network has no four maps, or a setting of the head is impossible.
    """
    if not isinstance(network, PIIP) or len(network.out_channels) != 4:
        found = len(network.out_channels) if isinstance(network, PIIP) else 0
        raise ConfigError(
            f"A detector needs a network with four maps, this one has {found}; choose a detection model or set "
            "merging.pyramid_levels to [1, 2, 3, 4]."
        )
    described = {"in_channels": network.out_channels, "strides": tuple(map(int, network.strides))}
    return Detector(DetectorConfig.from_dict(described | recipe.detector | {"classes": classes}), network)


def _load_start(model: ModelRecipe) -> Detector | PIIP | None:
    if model.start is None:
        return None
    loaded = from_pretrained(model.start)
    if not isinstance(loaded, Detector | PIIP):
        raise ConfigError(f"{model.start} is a {type(loaded).__name__}; start from a detector or a network.")
    return loaded


def _check_classes(detector: Detector, classes: tuple[str, ...], model: ModelRecipe) -> None:
    known = detector.config.classes
    if known == classes:
        return
    raise ConfigError(
        f"{model.start} knows {_listed(known)}, the data set has {_listed(classes)}; add --model.new_head true to "
        "start a new head, or choose data.classes."
    )


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return f"{len(classes)} class{'es' * (len(classes) != 1)} ({shown})"
