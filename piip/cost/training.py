"""What training a model takes of every GPU's memory, on paper: weights, gradients, moments and activations."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from piip.cost.watching import MemoryWatch

Level = Literal["ddp", "zero1", "zero2", "fsdp"]
LEVELS: dict[Level, str] = {
    "ddp": "DDP (ZeRO-0)",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "fsdp": "FSDP (ZeRO-3)",
}
"""What GPUs share: nothing; moments; gradients too; weights too. piip runs the first and the last."""
_SPLIT: dict[Level, tuple[str, ...]] = {
    "ddp": (),
    "zero1": ("moments",),
    "zero2": ("moments", "gradients"),
    "fsdp": ("moments", "gradients", "learnt", "fixed"),
}
MOMENTS = 2
"""Numbers that AdamW keeps for every learnt one."""
GATHERED = 2
"""Units of which FSDP holds all weights at a time: the one that runs and the one that is fetched meanwhile."""
USABLE = 0.9
"""Share of a GPU's memory that a run can count on; CUDA, communication and gaps between tensors take the rest."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that one process takes if it shares nothing, and what FSDP holds in whole all the same.

    Attributes:
        fixed: Weights that are not learnt.
        learnt: Weights that are learnt.
        gradients: Their gradients.
        moments: AdamW's two numbers for each of them.
        activations: Most bytes of everything else at once, from the forward to the end of the backward pass: what
            is kept for the backward pass, what is computed again in it, copies of weights in bfloat16.
        gathered: Weights and gradients that FSDP has in whole at once.
    """

    fixed: int
    learnt: int
    gradients: int
    moments: int
    activations: int
    gathered: int = 0

    def per_gpu(self, level: Level, gpus: int) -> int:
        """Return the bytes that each of some GPUs needs, the same batch on each of them."""
        parts = {name: getattr(self, name) for name in ("fixed", "learnt", "gradients", "moments")}
        split = _SPLIT[level]
        states = sum(-(-size // gpus) if name in split else size for name, size in parts.items())
        if level != "fsdp" or gpus == 1:
            return states + self.activations
        evaluating = self.fixed + self.learnt + -(-self.moments // gpus)  # piip then gathers all weights
        return max(states + self.gathered + self.activations, evaluating)

    def to_dict(self) -> dict[str, int]:
        """Return all numbers."""
        return asdict(self)


def training_memory(
    model: nn.Module, step: Callable[[], Tensor], units: Iterable[nn.Module], bf16: bool = False
) -> TrainingMemory:
    """Return what training a model takes.

    Nothing is computed: forward and backward pass run on tensors without memory, and every tensor that they make is
    followed to its end.

    Args:
        model: On the meta device, in training mode; what is learnt has ``requires_grad``. Afterwards its tensors
            are fake ones.
        step: Returns the loss of a batch; called with tensors on the CPU that have no memory.
        units: Modules of which FSDP gathers one after the other.
        bf16: Whether the forward pass runs in bfloat16 where that is safe (autocast).
    """
    fixed, learnt = (_bytes(model.parameters(), trained) for trained in (False, True))
    gathered = gathered_bytes(model, list(units))
    return TrainingMemory(
        fixed, learnt, learnt, MOMENTS * learnt, activation_bytes(model, step, bf16), gathered
    )


def gathered_bytes(model: nn.Module, units: Sequence[nn.Module]) -> int:
    """Return the bytes of weights and gradients that FSDP holds in whole at once.

    What belongs to no unit is gathered by the model as a whole, and stays so until the end of a step.
    """
    inside = {parameter for unit in units for parameter in unit.parameters()}
    rest = [parameter for parameter in model.parameters() if parameter not in inside]
    sizes = sorted((_bytes(unit.parameters()) for unit in units), reverse=True)
    learnt = max((_bytes(unit.parameters(), True) for unit in units), default=0)
    return _bytes(rest) + _bytes(rest, True) + sum(sizes[:GATHERED]) + learnt


def activation_bytes(model: nn.Module, step: Callable[[], Tensor], bf16: bool = False) -> int:
    """Return the most bytes that one training step holds at once beside weights, gradients and moments.

    Args:
        model: On the meta device; afterwards its tensors are fake ones.
        step: Returns the loss of a batch.
        bf16: Whether the forward pass runs under autocast.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        watch = _Timeline([*model.parameters(), *model.buffers()])
        with watch:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = step()
            loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        labels = {watch.known[gradient.untyped_storage()] for gradient in gradients}
        return watch.peak(without=labels)


class _Timeline(MemoryWatch):
    """Remembers when every tensor began and ended."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__(existing)
        self._changes: list[tuple[Hashable, int]] = []
        self._count = 0

    def label(self) -> int:
        self._count += 1
        return self._count

    def changed(self, label: Hashable, size: int) -> None:
        self._changes.append((label, size))

    def peak(self, without: set[Any]) -> int:
        """Return the most bytes that were alive at once, some tensors left out."""
        most = now = 0
        for label, size in self._changes:
            if label not in without:
                now += size
                most = max(most, now)
        return most


def _bytes(parameters: Iterable[nn.Parameter], learnt: bool | None = None) -> int:
    chosen = (p for p in parameters if learnt is None or p.requires_grad == learnt)
    return sum(parameter.numel() * parameter.element_size() for parameter in chosen)
