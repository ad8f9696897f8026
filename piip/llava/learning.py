"""What of a PIIP-LLaVA is learnt: parts of it, or low-rank matrices beside the language model's own (LoRA)."""

from collections.abc import Collection
from typing import Any

from torch import nn

from piip.errors import ConfigError, require
from piip.llava.loading import silence_bitsandbytes
from piip.llava.modeling import PiipLlavaForConditionalGeneration


def learn_parts(model: PiipLlavaForConditionalGeneration, parts: Collection[str]) -> None:
    """Let gradients into some parts of a model alone.

    Args:
        model: Changed in place.
        parts: Of ``projectors``, ``interactions``, ``branches`` and ``language``. Branches that are not among them
            are frozen: they stay in evaluation mode. Matrices of `add_lora` are learnt in place of the language
            model's own.
    """
    network = model.model.vision_tower.network
    model.requires_grad_(False)
    network.freeze(() if "branches" in parts else range(1, network.config.num_branches + 1))
    if "projectors" in parts:
        model.model.multi_modal_projector.requires_grad_(True)
    for name, child in network.named_children():
        child.requires_grad_(("branches" if name == "branches" else "interactions") in parts)
    if "language" not in parts:
        return
    adapted = _adapted(model)
    for parameter in [*model.model.language_model.parameters(), *model.lm_head.parameters()]:
        parameter.requires_grad_(not adapted)
    for layer in adapted.values():
        layer.set_adapter(layer.active_adapters)


def add_lora(
    model: PiipLlavaForConditionalGeneration, rank: int, alpha: float | None = None, dropout: float = 0.0
) -> None:
    """Put low-rank matrices beside every linear layer of the language model but its head (arXiv 2106.09685).

    Args:
        model: Changed in place; `merge_lora` makes it an ordinary model again.
        rank: Rank of the matrices.
        alpha: Their weight, divided by their rank; twice the rank by default.
        dropout: Share of their inputs left out in training.

    Raises:
        MissingExtraError: peft is not installed.
        ConfigError: The language model has no linear layers.
    """
    silence_bitsandbytes()  # which peft imports where it is installed
    peft = require("peft", "llava", "LoRA")
    language = model.model.language_model
    names = [name for name, module in language.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ConfigError(
            f"{type(language).__name__} has no linear layers for LoRA; set language.lora_rank to 0."
        )
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=names,
    )
    peft.inject_adapter_in_model(config, language)
    for layer in _adapted(model).values():  # what is learnt stays in float32, whatever stands beside it
        for matrix in (*layer.lora_A.values(), *layer.lora_B.values()):
            matrix.float()


def merge_lora(model: PiipLlavaForConditionalGeneration) -> None:
    """Add low-rank matrices to those beside which they stand; nothing is left of peft in the model."""
    for name, layer in _adapted(model).items():
        layer.merge()
        model.model.language_model.set_submodule(name, layer.get_base_layer())


def _adapted(model: PiipLlavaForConditionalGeneration) -> dict[str, Any]:
    """Return the layers of the language model that have low-rank matrices, by name."""
    modules = model.model.language_model.named_modules()
    return {name: module for name, module in modules if hasattr(module, "get_base_layer")}
