"""Forward pass and training step of a network, piip's operators against the plain reference."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import piip.interaction
from benchmarks.baseline import reference_deformable_attention
from piip.factory import create_model
from piip.network import PIIP
from piip.ops import deformable_attention

CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "reference": reference_deformable_attention,
    "piip": deformable_attention,
}
STEPS = ("forward", "train")


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, over all rounds."""

    step: str
    contender: str
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    def row(self) -> dict[str, object]:
        """Return minimum, median and maximum of the seconds and of the ratio to the reference."""
        return {
            "step": self.step,
            "contender": self.contender,
            "seconds": _spread(self.seconds),
            "times_faster_than_reference": _spread(self.ratios),
        }


def build_network(name: str) -> PIIP:
    """Build a network with random weights whose interactions are not switched off by zero gates."""
    torch.manual_seed(0)
    network = create_model(name)
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.endswith("_gate"):
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def compare(name: str, rounds: int) -> list[Timing]:
    """Time all contenders in turn, ``rounds`` times, after one round that is not counted."""
    network = build_network(name)
    image = torch.randn(1, 3, network.config.image_size, network.config.image_size)
    seconds: dict[tuple[str, str], list[float]] = {(s, c): [] for s in STEPS for c in CONTENDERS}
    for round_number in range(rounds + 1):
        for step, contender in seconds:
            elapsed = _time(network, image, step, contender)
            if round_number:
                seconds[step, contender].append(elapsed)
    return [
        Timing(
            step,
            contender,
            tuple(times),
            tuple(r / t for r, t in zip(seconds[step, "reference"], times, strict=True)),
        )
        for (step, contender), times in seconds.items()
    ]


def peak_memory(name: str, step: str, contender: str) -> float:
    """Return the peak resident memory in GiB of a process that does one step and nothing else."""
    command = [sys.executable, "-m", "benchmarks.network", name, step, contender]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _time(network: PIIP, image: Tensor, step: str, contender: str) -> float:
    with _operator(contender):
        start = time.perf_counter()
        _run(network, image, step)
        return time.perf_counter() - start


def _run(network: PIIP, image: Tensor, step: str) -> None:
    with torch.set_grad_enabled(step == "train"):
        maps = network(image)
        if step == "train":
            sum(feature.sum() for feature in maps).backward()
            network.zero_grad()


def _operator(contender: str) -> AbstractContextManager[Any]:
    return patch.object(piip.interaction, "deformable_attention", CONTENDERS[contender])


def _spread(values: tuple[float, ...]) -> dict[str, float]:
    spread = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {key: round(value, 3) for key, value in spread.items()}


def _main(name: str, step: str, contender: str) -> None:
    network = build_network(name)
    with _operator(contender):
        size = network.config.image_size
        _run(network, torch.randn(1, 3, size, size), step)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    _main(*sys.argv[1:])
