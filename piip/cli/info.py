"""``piip info``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from piip.cli.console import console, table
from piip.config import PIIPConfig
from piip.errors import ConfigError
from piip.presets import get_config

if TYPE_CHECKING:
    from piip.cost import CostTable
    from piip.train.recipe import TrainRecipe


def info(
    model: str,
    sizes: tuple[int, ...] | None = None,
    published: bool = False,
    image: tuple[int, int] | None = None,
    batch_size: int | None = None,
    tokens: int | None = None,
) -> None:
    """Show what a model costs for one image, part by part.

    Counted is what the network really executes, activation memory included. Nothing is downloaded and no weight
    takes memory, so that the largest models take seconds. Of the recipe of a PIIP-LLaVA, the memory that training
    takes of every GPU is shown, too.

    Args:
        model: A published configuration, a recipe, a run, or the folder of a saved model.
        sizes: Other image sides of the branches in pixels, largest image first.
        published: Count as the papers do instead, to compare with their tables.
        image: Height and width of the image in pixels; by default the model's nominal square, of a run that of its
            images.
        batch_size: With the recipe of a PIIP-LLaVA: samples per GPU and step; the recipe's by default.
        tokens: With the recipe of a PIIP-LLaVA: length of every sample; the recipe's longest by default.
    """
    recipe = _recipe_of(model)
    learner = recipe if recipe is not None and recipe.task == "multimodal" else None
    if (batch_size or tokens) and learner is None:
        raise ConfigError("--batch_size and --tokens are for the recipe of a PIIP-LLaVA; leave them out.")
    config = with_sizes(_config_of(model), sizes)  # a wrong name is found before torch is imported
    saved = Path(model).is_dir() and sizes is None and not published
    if saved and image is None:
        image = _prepared_size(model)
    costs = _costs(model, config, image, published, saved)
    heading, *rows = costs.to_rows()
    table(f"{model} at {_sides(config, image)}", heading, rows)
    console().print(costs.counted)
    if costs.peak_bytes is not None:
        console().print(
            f"Peak of activations in inference, batch 1, float32: {costs.peak_bytes / 2**20:,.0f} MiB."
        )
    if learner is not None:
        from piip.cli.memory import show_memory

        show_memory(learner, Path(model).parent, batch_size, tokens)


def _costs(
    model: str, config: PIIPConfig, image: tuple[int, int] | None, published: bool, saved: bool
) -> "CostTable":
    from piip import cost, network

    if published:
        return cost.published_cost(config, cost.convention_of(model))
    if saved:
        return cost.saved_cost(Path(model), image)
    height, width = image or (config.image_size, config.image_size)
    return cost.executed_cost(network.build_on_meta(config), height, width)


def _prepared_size(model: str) -> tuple[int, int]:
    from piip.cost import prepared_size

    return prepared_size(Path(model))


def _sides(config: PIIPConfig, image: tuple[int, int] | None) -> str:
    """Return the sides in pixels of the images of all branches, largest first."""
    height, width = image or (config.image_size, config.image_size)
    if height == width == config.image_size:
        return " / ".join(str(branch.image_size) for branch in reversed(config.branches))
    parts = [branch.image_size / config.image_size for branch in reversed(config.branches)]
    return " / ".join(f"{round(width * part)}x{round(height * part)}" for part in parts)


def with_sizes(config: PIIPConfig, sizes: tuple[int, ...] | None) -> PIIPConfig:
    """Return a configuration with other image sides, largest image first.

    Raises:
        ConfigError: Their number is not that of the branches.
    """
    if sizes is None:
        return config
    if len(sizes) != config.num_branches:
        raise ConfigError(
            f"--sizes has {len(sizes)} numbers for {config.num_branches} branches; give one for each, "
            "largest first."
        )
    pairs = zip(config.branches, reversed(sizes), strict=True)
    return replace(config, branches=tuple(replace(branch, image_size=size) for branch, size in pairs))


def _recipe_of(model: str) -> "TrainRecipe | None":
    if Path(model).suffix not in (".yaml", ".yml"):
        return None
    from piip.train.recipe import load_recipe

    return load_recipe(model)


def _config_of(model: str) -> PIIPConfig:
    if (recipe := _recipe_of(model)) is not None:
        from piip.train.planning import planned_network

        return planned_network(recipe, Path(model).parent)
    if not Path(model).is_dir():
        return get_config(model)
    from piip.hub import find_folder, read_description

    return PIIPConfig.from_dict(read_description(find_folder(model))["network"])
