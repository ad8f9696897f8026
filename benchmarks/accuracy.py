"""How far every way of computing the network is from float64: outputs and gradients."""

import contextlib
import copy

import torch
from torch import Tensor

import piip
from benchmarks.baseline import plain_forward
from benchmarks.network import build_network
from benchmarks.timing import Row
from piip.network import PIIP

SIDE = 448
"""Side of the test image in pixels: errors do not depend on it, double precision is slow."""


def measure(name: str) -> list[Row]:
    """Return, per contender, the relative L2 error of the finest map and, where it trains, of all gradients."""
    network = build_network(name)
    image = torch.randn(1, 3, SIDE, SIDE)
    truth, true_gradients = _outputs_and_gradients(copy.deepcopy(network).double(), image.double())
    rows: list[Row] = []
    for contender in ("plain float32", "piip float32", "plain autocast bfloat16", "piip autocast bfloat16"):
        context = (
            torch.autocast("cpu", torch.bfloat16) if "autocast" in contender else contextlib.nullcontext()
        )
        output, gradients = _outputs_and_gradients(
            network, image, context, plain=contender.startswith("plain")
        )
        rows.append(
            {
                "contender": contender,
                "output": _error(output, truth),
                "gradients": _error(gradients, true_gradients),
            }
        )
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            output = piip.optimize(network, dtype)(image)[0]
        rows.append({"contender": f"optimize {str(dtype).split('.')[-1]}", "output": _error(output, truth)})
    return rows


def _outputs_and_gradients(
    network: PIIP,
    image: Tensor,
    context: contextlib.AbstractContextManager[object] | None = None,
    plain: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the finest map and the gradients of a fixed weighting of all maps."""
    with context or contextlib.nullcontext():
        maps = plain_forward(network, image) if plain else network(image)
    weights = [
        torch.linspace(-1, 1, m.numel(), dtype=torch.float64).view(m.shape).to(image.dtype) for m in maps
    ]
    torch.stack([(m.to(image.dtype) * w).mean() for m, w in zip(maps, weights, strict=True)]).sum().backward()
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    return maps[0].detach(), torch.cat(gradients)


def _error(tensor: Tensor, truth: Tensor) -> float:
    return float(f"{float((tensor.double() - truth).norm() / truth.norm()):.2e}")
