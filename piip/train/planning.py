"""What a recipe trains, before there are data, weights or the run that it starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip.config import PIIPConfig
from piip.cost.training import Level, TrainingMemory, training_memory
from piip.errors import ConfigError, require
from piip.hub import find_folder, is_llava
from piip.train.building import network_config
from piip.train.recipe import TrainRecipe, load_recipe
from piip.train.sharding import sharding_units


def origin(recipe: TrainRecipe, beside: Path) -> TrainRecipe:
    """Return the recipe that describes the model of a recipe.

    That is the recipe itself, or that of the run from which it starts, if this run is not there yet.

    Args:
        recipe: The run.
        beside: The folder of its file, in which ``NAME.yaml`` is the recipe of the run ``runs/NAME``.
    """
    start = recipe.model.start
    if start is None or Path(start).is_dir():
        return recipe
    path = beside / f"{Path(start).name}.yaml"
    return origin(load_recipe(path), beside) if path.is_file() else recipe


def planned_network(recipe: TrainRecipe, beside: Path) -> PIIPConfig:
    """Return the network that a recipe trains.

    Args:
        recipe: The run.
        beside: The folder of its file.

    Raises:
        ConfigError: The recipe names no network.
        CheckpointError: It starts from a run of which there is neither folder nor recipe.
    """
    return network_config(origin(recipe, beside))


def planned_llava(recipe: TrainRecipe, beside: Path, strategy: str | None = None) -> Any:
    """Return the PIIP-LLaVA that a recipe trains, on the meta device, with what is learnt and recomputed.

    Args:
        recipe: The run.
        beside: The folder of its file, as for `planned_network`.
        strategy: In place of the recipe's.

    Raises:
        ConfigError: The recipe names no network or no language model.
    """
    require("transformers", "llava", "PIIP-LLaVA")
    from piip.train.multimodal import outline

    # What "light" keeps follows from where tensors lie in memory, which is nowhere here.
    again = recipe.trainer.grad_checkpointing is True
    trainer = recipe.trainer.replace(strategy=strategy or recipe.trainer.strategy, grad_checkpointing=again)
    return outline(_llava_config(recipe, beside), recipe.replace(trainer=trainer))


@dataclass(frozen=True)
class Plan:
    """What training takes of every GPU.

    Attributes:
        copied: Without sharding of weights.
        sharded: With FSDP, for which weights that are not learnt are not halved.
        samples: Samples per GPU and step.
        length: Tokens of every sample.
    """

    copied: TrainingMemory
    sharded: TrainingMemory
    samples: int
    length: int

    def per_gpu(self, level: Level, gpus: int) -> int:
        """Return the bytes that each of some GPUs needs at a level of sharding."""
        return (self.sharded if level == "fsdp" else self.copied).per_gpu(level, gpus)


def plan_llava(
    recipe: TrainRecipe, beside: Path, samples: int | None = None, length: int | None = None
) -> Plan:
    """Return the memory that training a PIIP-LLaVA takes; it takes seconds and no memory.

    ``trainer.grad_checkpointing: light`` counts as none.

    Args:
        recipe: The run.
        beside: The folder of its file.
        samples: Samples per GPU and step; the recipe's ``data.batch_size`` by default.
        length: Tokens of every sample; ``language.max_length`` by default, the most that there can be.

    Raises:
        ConfigError: The recipe names no network or no language model.
    """
    from piip.llava.stepping import largest_step

    samples, length = samples or recipe.data.batch_size, length or recipe.language.max_length

    def memory(strategy: str) -> tuple[Any, TrainingMemory]:
        model = planned_llava(recipe, beside, strategy)
        kinds = {name: (value.dtype, value.requires_grad) for name, value in model.named_parameters()}
        if known and known[0] == kinds:
            return known
        bf16 = recipe.trainer.precision == "bf16"
        units = sharding_units(model)
        return kinds, training_memory(model, lambda: largest_step(model, samples, length), units, bf16)

    known: tuple[Any, Any] | None = None
    known = memory("ddp")
    return Plan(known[1], memory("fsdp")[1], samples, length)


def _llava_config(recipe: TrainRecipe, beside: Path) -> Any:
    from piip.llava.assembly import vocabulary_rows
    from piip.llava.configuration import PiipLlavaConfig
    from piip.llava.languages import language_sizes

    first = origin(recipe, beside)
    settings = recipe.language if recipe.model.new_head else first.language
    if first.model.start is not None and not recipe.model.new_head:
        folder = find_folder(first.model.start)
        if is_llava(folder):
            return PiipLlavaConfig.from_pretrained(folder)
    if not settings.model:
        raise ConfigError(
            "The recipe names no language model; give language.model, a folder or a name on the Hub."
        )
    text = language_sizes(settings.model)
    image_token_id = text.vocab_size
    text.vocab_size = vocabulary_rows(text.vocab_size, image_token_id)
    names = ("projector_norm", "out_grid", "keep_aspect_ratio")
    options = {name: getattr(settings, name) for name in names}
    return PiipLlavaConfig.of(planned_network(recipe, beside), text, image_token_id, **options)
