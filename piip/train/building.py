"""Building the model of a recipe."""

import torch
from torch import nn

from piip.config import PIIPConfig
from piip.errors import ConfigError, require
from piip.factory import build, create_model, load_branches
from piip.hub import find_folder, from_pretrained, is_llava, read_description
from piip.meta import on_meta
from piip.network import PIIP
from piip.train.optimizer import find_network
from piip.train.recipe import ModelRecipe, TrainRecipe
from piip.train.task import task_of
from piip.weights import load_pretrained


def check_model(recipe: TrainRecipe) -> None:
    """Refuse a network or a head that is impossible whatever the data are, before these are read.

    The model is built without memory for its weights. One that is trained on, head and all, is checked when it is
    loaded.

    Raises:
        ConfigError: The recipe names no model, or an impossible one.
        CheckpointError: There is no model to start from.
    """
    if recipe.model.start is not None and not recipe.model.new_head:
        return
    with on_meta():
        task_of(recipe).check_head(PIIP(network_config(recipe)), recipe)


def network_config(recipe: TrainRecipe) -> PIIPConfig:
    """Return the description of the network that a recipe trains; no weight is read.

    Raises:
        ConfigError: The recipe names no network, or an impossible one.
        CheckpointError: There is no model to start from.
    """
    start = recipe.model.start
    if start is None:
        with on_meta():
            return build_network(described(recipe).replace(pretrained=False, weights={})).config
    config = PIIPConfig.from_dict(read_description(find_folder(start))["network"])
    return config.replace(**task_of(recipe).network_changes)


def build_model(recipe: TrainRecipe, classes: tuple[str, ...]) -> nn.Module:
    """Return the model that a recipe trains, its weights loaded and its branches frozen.

    Args:
        recipe: The run.
        classes: Class names of the data, in label order; none where a task knows no classes.

    Raises:
        ConfigError: The recipe names no model, or a model that knows other classes than the data has.
        CheckpointError: Weights cannot be loaded.
    """
    task = task_of(recipe)
    start = load_start(recipe.model.start) if recipe.model.start is not None else None
    if isinstance(start, task.model) and not recipe.model.new_head:
        if classes:
            _check_classes(start, classes, recipe.model)
        model = start
    else:
        network = build_network(described(recipe)) if start is None else find_network(start)[1]
        model = task.new_model(network, recipe, classes)
    find_network(model)[1].set_grad_checkpointing(recipe.trainer.grad_checkpointing)
    task.prepare(model, recipe)
    return model.train()


def described(recipe: TrainRecipe) -> ModelRecipe:
    """Return the network that a recipe describes, with what its task needs."""
    return recipe.model.replace(changes={**task_of(recipe).network_changes, **recipe.model.changes})


def load_start(source: str) -> nn.Module:
    """Return a saved model of any kind."""
    folder = find_folder(source)
    if not is_llava(folder):
        return from_pretrained(folder)
    require("transformers", "llava", "PIIP-LLaVA")
    from piip.llava.loading import load_model

    return load_model(folder, {"dtype": torch.float32})


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


def _check_classes(start: nn.Module, classes: tuple[str, ...], model: ModelRecipe) -> None:
    known: tuple[str, ...] = start.config.classes  # type: ignore[union-attr, assignment]
    if known == classes:
        return
    raise ConfigError(
        f"{model.start} knows {_listed(known)}, the data set has {_listed(classes)}; add --model.new_head true to "
        "start a new head, or choose data.classes."
    )


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return f"{len(classes)} class{'es' * (len(classes) != 1)} ({shown})"
