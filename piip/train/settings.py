"""The settings of the optimiser, of its learning rate and of a language model; reading them needs no torch."""

import math
from dataclasses import dataclass, field
from typing import Literal

from piip.described import Described
from piip.errors import ConfigError

ScheduleKind = Literal["constant", "step", "cosine", "poly"]
Part = Literal["projectors", "interactions", "branches", "language"]
PARTS: tuple[Part, ...] = ("projectors", "interactions", "branches", "language")
"""What a PIIP-LLaVA is made of."""
INSTRUCTION = "Answer the question using a single word or phrase."
"""What LLaVA models were trained to be told, and are told by the published evaluations of POPE and TextVQA."""


@dataclass(frozen=True)
class OptimizerConfig(Described, called="optimizer"):
    """AdamW.

    Attributes:
        lr: Learning rate of the parts at full rate, for the recipe's total batch; it is never scaled silently.
        weight_decay: Weight decay; none for biases and other one-dimensional parameters.
        betas: Decay of the moving averages.
        layer_decay: Factor of the learning rate per transformer block below the last; 1 = the same everywhere.
        num_layers: Blocks over which the rate falls; default: the depth of the deepest transformer.
        rest_factor: Factor of the learning rate of everything but the branches: interactions, merging and heads.
        factors: Further factors of the learning rate, by a part of parameters' names, such as
            ``multi_modal_projector``, ``interactions`` or ``head``.
        skip_stride: For branches 2, 3, ...: how many of ``num_layers`` one of their blocks counts as; default:
            ``num_layers`` divided by their depth, as in all released recipes.
    """

    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0
    num_layers: int | None = None
    rest_factor: float = 1.0
    factors: dict[str, float] = field(default_factory=dict)
    skip_stride: tuple[float, ...] | None = None

    def check(self) -> None:
        """Refuse values with which nothing can be learned."""
        self.check_range("lr", 0, above=True)
        self.check_range("weight_decay", 0)
        self.check_range("betas", 0, 1)
        self.check_range("layer_decay", 0, 1, above=True, closed=True)
        self.check_range("num_layers", 1)
        self.check_range("rest_factor", 0, above=True)
        self.check_range("skip_stride", 0, above=True)
        for name, factor in self.factors.items():
            if not 0 < factor < math.inf:
                raise ConfigError(f"optimizer.factors.{name} is {factor!r}; give a number above 0.")


@dataclass(frozen=True)
class ScheduleConfig(Described, called="schedule"):
    """How the learning rate changes.

    Attributes:
        kind: ``step`` drops at ``milestones``; ``cosine`` and ``poly`` fall to ``min_lr`` at the end.
        milestones: Epochs after which the rate drops. Only for ``step``.
        gamma: Factor of every drop. Only for ``step``.
        power: Exponent of the polynomial. Only for ``poly``.
        min_lr: Lowest rate.
        by_epoch: Whether ``cosine`` and ``poly`` change after every epoch or after every step.
        warmup_steps: Optimiser steps of the linear warm-up.
        warmup_ratio: First rate of the warm-up relative to the regular one.
    """

    kind: ScheduleKind = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    power: float = 1.0
    min_lr: float = 0.0
    by_epoch: bool = False
    warmup_steps: int = 500
    warmup_ratio: float = 0.001

    def check(self) -> None:
        """Refuse what is no schedule."""
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(f"schedule.milestones is {self.milestones}; give rising epochs.")
        self.check_range("gamma", 0, 1, above=True, closed=True)
        self.check_range("power", 0, above=True)
        self.check_range("min_lr", 0)
        self.check_range("warmup_steps", 0)
        self.check_range("warmup_ratio", 0, 1, above=True, closed=True)


@dataclass(frozen=True)
class LanguageConfig(Described, called="language"):
    """The language model behind the network, and what is learnt of both (SPEC 9, 16.4).

    Attributes:
        model: A causal language model with its tokenizer: a folder or a name on the Hub. Not needed with a
            PIIP-LLaVA in ``model.start``.
        learn: Parts that are trained: ``projectors``, ``interactions``, ``branches`` and ``language``. The released
            first stage learns the projectors alone, the second one everything.
        lora_rank: Rank of the matrices (LoRA, by peft) that are learnt in place of the language model's own; 0 =
            the model's own.
        lora_alpha: Weight of these matrices, divided by their rank; twice the rank when null.
        lora_dropout: Share of their inputs that is left out at random.
        projector_norm: ``group`` normalises over the map (released models), ``layer`` every token.
        out_grid: Height and width in tokens of every image; by default that of the branch with the largest image.
        keep_aspect_ratio: Show images in their own aspect ratio instead of as squares.
        chat: Form of a conversation: ``vicuna``, as released, or the tokenizer's ``own``.
        captions: Show images and answers alone, without questions: LLaVA's form of its first stage.
        max_length: Tokens of a sample, those of images included; longer ones are cut.
        instruction: A line after every question of an evaluation.
        max_new_tokens: Where answers of an evaluation are cut off.
    """

    model: str = ""
    learn: tuple[Part, ...] = PARTS
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_dropout: float = 0.05
    projector_norm: Literal["group", "layer"] = "group"
    out_grid: tuple[int, int] | None = None
    keep_aspect_ratio: bool = False
    chat: Literal["vicuna", "own"] = "vicuna"
    captions: bool = False
    max_length: int = 2048
    instruction: str = INSTRUCTION
    max_new_tokens: int = 16

    def check(self) -> None:
        """Refuse settings with which nothing can be learnt."""
        self.check_range("lora_rank", 0)
        self.check_range("lora_alpha", 0, above=True)
        self.check_range("lora_dropout", 0, 1)
        self.check_range("out_grid", 1)
        self.check_range("max_length", 1)
        self.check_range("max_new_tokens", 1)
        if not self.learn:
            raise ConfigError(f"language.learn is empty; name some of {', '.join(PARTS)}.")
        if self.lora_rank and "language" not in self.learn:
            raise ConfigError(
                f"language.lora_rank is {self.lora_rank}, but the language model is not learnt; add language to "
                "language.learn, or set lora_rank to 0."
            )
