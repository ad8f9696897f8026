"""What a network really executes: multiply-accumulates, parameters and activation memory of every part.

The network runs on fake tensors, which have shapes but no memory, so that a model of billions of parameters takes
seconds. Nothing comes from formulas of the architecture: every operation is seen where it happens.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from piip.cost.attribution import Attribution
from piip.cost.table import CostTable, PartCost
from piip.cost.watching import MemoryWatch
from piip.ops import fused as _registers_the_operator  # noqa: F401

COUNTED = (
    "Counted as executed: linear layers, convolutions, attention, the sampling of deformable attention (5 per "
    "value: four corners, one weight) and resizing (4 per value bilinear, 16 bicubic); not counted: norms, "
    "activation functions and sums."
)
SAMPLE_MACS = 5
Run = Callable[[nn.Module, Tensor], Any]
Weights = dict[str, Tensor]


def executed_cost(
    model: nn.Module,
    height: int,
    width: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    run: Run | None = None,
) -> CostTable:
    """Measure a network, or a model around one, on images of a size.

    Args:
        model: A `PIIP` or a model that contains one, on any device, also meta. It is left as it was.
        height: Height of the images in pixels, before the network's own padding.
        width: Width of the images in pixels.
        batch: Number of images.
        dtype: Type of weights and activations.
        run: What to do with the model and the images (B, 3, H, W); default: ``model(images)``.

    Returns:
        The parts ``image`` (padding and resizing), ``branch1.embed``, ``branch1.blocks``, ..., ``interaction``,
        ``merge``, ``pyramid``, one for every further child of the model, and ``other`` for the rest. Branches that
        share their weights are one part, ``branches``.

    Raises:
        ConfigError: The model contains no `PIIP`.
        DataError: The network refuses images of this size.
    """
    attribution = Attribution(model)
    with FakeTensorMode(allow_non_fake_inputs=True), attribution, _modes_kept(model):
        weights = _fake_weights(model, dtype)
        image = torch.empty(batch, 3, height, width, dtype=dtype)
        call = _Call(model, weights, run or _forward)
        macs, peak = _infer(call, image, attribution)
        kept = _train(call, image, attribution)
    parts = [
        PartCost(name, macs[name], params, trainable, kept[name])
        for name, (params, trainable) in attribution.parameters().items()
        if macs[name] or params or kept[name]
    ]
    return CostTable(tuple(parts), COUNTED, peak)


class _Call(nn.Module):
    """Calls a model with other weights than its own."""

    def __init__(self, model: nn.Module, weights: Weights, run: Run) -> None:
        super().__init__()
        self.model, self.run = model, run
        self.weights = {f"model.{name}": weight for name, weight in weights.items()}

    def forward(self, image: Tensor) -> Any:
        return self.run(self.model, image)

    def with_weights(self, image: Tensor) -> Any:
        return functional_call(self, self.weights, (image,))


class _Memory(MemoryWatch):
    """Sums up tensors by the part that made them.

    Attributes:
        live: Bytes that are alive, by the part that made them.
        peak: Most bytes that were alive at once.
    """

    def __init__(self, existing: Iterable[Tensor], attribution: Attribution) -> None:
        super().__init__(existing)
        self.live: Counter[Hashable] = Counter()
        self.total = self.peak = 0
        self._attribution = attribution

    def label(self) -> str:
        return self._attribution.current

    def changed(self, label: Hashable, size: int) -> None:
        self.live[label] += size
        self.total += size
        self.peak = max(self.peak, self.total)


def _infer(call: _Call, image: Tensor, attribution: Attribution) -> tuple[Counter[str], int]:
    """Return the multiply-accumulates of every part and the peak of activations in bytes."""
    macs: Counter[str] = Counter()
    call.eval()
    memory = _Memory([*call.weights.values(), image], attribution)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter, memory:

        def charge(part: str) -> None:
            macs[part] += counter.get_total_flops() // 2 - macs.total()

        attribution.on_switch = charge
        call.with_weights(image)
        charge(attribution.current)
    attribution.on_switch = _ignore
    return macs, memory.peak


def _train(call: _Call, image: Tensor, attribution: Attribution) -> Counter[Hashable]:
    """Return the bytes of every part that are still alive when the backward pass would start."""
    call.train()
    with torch.enable_grad(), _Memory([*call.weights.values(), image], attribution) as memory:
        result = call.with_weights(image)
        kept = Counter(memory.live)
    del result
    return kept


def _fake_weights(model: nn.Module, dtype: torch.dtype) -> Weights:
    """Return stand-ins without memory for all parameters and buffers."""
    weights = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        weights[name] = torch.empty(tensor.shape, dtype=kind, requires_grad=tensor.requires_grad)
    return weights


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore training and evaluation modes on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _forward(model: nn.Module, image: Tensor) -> Any:
    return model(image)


def _ignore(_: str) -> None:
    return None


def _operations_per_value(macs: int) -> Callable[..., int]:
    def formula(*_: Any, out_shape: Any, **__: Any) -> int:
        return 2 * macs * torch.Size(out_shape).numel()

    return formula


def _deformable(
    value: Any, levels: Any, reference: Any, query_grid: Any, offsets: Any, *_: Any, **__: Any
) -> int:
    """Count every sample of every channel of a head; shapes as in `piip.ops.fused`."""
    return 2 * SAMPLE_MACS * (torch.Size(offsets).numel() // 2) * value[-1]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


# FlopCounterMode counts two operations per multiply-accumulate; that of torch 2.11 knows no attention on CPUs.
_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.grid_sampler_2d: _operations_per_value(SAMPLE_MACS),
    torch.ops.piip.deformable_attention: _deformable,
    torch.ops.aten.upsample_bilinear2d: _operations_per_value(4),
    torch.ops.aten.upsample_bicubic2d: _operations_per_value(16),
}
