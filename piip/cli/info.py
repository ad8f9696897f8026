"""``piip info``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from piip.cli.console import console, table
from piip.config import PIIPConfig
from piip.cost import CostTable, convention_of, executed_cost, published_cost, run_detector
from piip.errors import ConfigError
from piip.hub import find_folder, read_description
from piip.network import PIIP, build_on_meta
from piip.presets import get_config
from piip.tasks.detection import Detector, DetectorConfig


def info(
    model: str,
    sizes: tuple[int, ...] | None = None,
    published: bool = False,
    image: tuple[int, int] | None = None,
) -> CostTable:
    """Show what a model costs for one image, part by part.

    Counted is what the network really executes, activation memory included. Nothing is downloaded and no weight
    takes memory, so that the largest models take seconds.

    Args:
        model: A published configuration, a run, or the folder of a saved model.
        sizes: Other image sides of the branches in pixels, largest image first.
        published: Count as the papers do instead, to compare with their tables.
        image: Height and width of the image in pixels; the model's nominal square by default.
    """
    folder = Path(model)
    if folder.is_dir() and sizes is None and not published:
        cost = detector_cost(folder, image)
        config = _config_of(model)
    else:
        config = with_sizes(_config_of(model), sizes)
        height, width = image or (config.image_size, config.image_size)
        cost = (
            published_cost(config, convention_of(model))
            if published
            else executed_cost(build_on_meta(config), height, width)
        )
    heading, *rows = cost.to_rows()
    sides = " / ".join(str(branch.image_size) for branch in reversed(config.branches))
    table(f"{model} at {sides}", heading, rows)
    console().print(cost.counted)
    if cost.peak_bytes is not None:
        console().print(
            f"Peak of activations in inference, batch 1, float32: {cost.peak_bytes / 2**20:,.0f} MiB."
        )
    return cost


def detector_cost(folder: Path, image: tuple[int, int] | None = None) -> CostTable:
    """Return the cost of a saved model, its head included, for one image.

    Args:
        folder: A run or the folder of a saved model.
        image: Height and width in pixels; the model's nominal square by default.

    Raises:
        CheckpointError: There is no model.
    """
    description = read_description(find_folder(folder))
    config = PIIPConfig.from_dict(description["network"])
    height, width = image or (config.image_size, config.image_size)
    with torch.device("meta"):
        network = PIIP(config)
        if description["kind"] != "detector":
            return executed_cost(network, height, width)
        detector = Detector(DetectorConfig.from_dict(description["head"]), network)
    return executed_cost(detector, height, width, run=_run)


def _run(model: nn.Module, images: Tensor) -> Any:
    assert isinstance(model, Detector)
    return run_detector(model, images)


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


def _config_of(model: str) -> PIIPConfig:
    if Path(model).is_dir():
        return PIIPConfig.from_dict(read_description(find_folder(model))["network"])
    return get_config(model)
