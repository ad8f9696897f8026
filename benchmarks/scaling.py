"""Time and memory of one forward pass from 448 to 3584 pixels, and the rates of the network's parts."""

import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.machine import peak_memory_gib
from benchmarks.network import build_network
from benchmarks.timing import Row
from piip.cost import executed_cost
from piip.interaction import InteractionBlock
from piip.memory import keep_freed_memory
from piip.merging import Merging, PyramidLevel
from piip.network import PIIP

SIDES = (448, 896, 1344, 1792, 2688, 3584)


def measure_sizes(name: str, sides: tuple[int, ...] = SIDES) -> list[Row]:
    """Return seconds, memory and multiply-accumulates for square images of every side, each in its own process."""
    rows: list[Row] = []
    for side in sides:
        command = [sys.executable, "-m", "benchmarks.scaling", name, str(side)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, memory, gmacs = (float(word) for word in done.stdout.split()[-3:])
        rows.append(
            {
                "side": side,
                "seconds": round(seconds, 3),
                "peak_memory_gib": round(memory, 2),
                "gmacs": round(gmacs, 1),
                "seconds_per_megapixel": round(seconds / side**2 * 1e6, 3),
            }
        )
    return rows


def measure_parts(name: str, rounds: int) -> list[Row]:
    """Return, for every part of the network, its best seconds in ``rounds`` passes and its multiply-accumulates."""
    network = build_network(name)
    size = network.config.image_size
    macs: Counter[str] = Counter()
    for part in executed_cost(network, size, size).parts:
        macs["branches" if part.name.startswith("branch") else part.name] += int(part.macs)
    image = torch.randn(1, 3, size, size)
    keep_freed_memory("all")
    passes = [_time_parts(network, image) for _ in range(rounds + 1)][1:]
    keep_freed_memory("some")
    return [
        {
            "part": part,
            "seconds": round(min(times[part] for times in passes), 3),
            "gmacs": round(macs[part] / 1e9, 1),
            "gmacs_per_second": round(macs[part] / 1e9 / min(times[part] for times in passes), 1),
        }
        for part in ("branches", "interaction", "merge", "pyramid")
    ]


def _time_parts(network: PIIP, image: torch.Tensor) -> dict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            start = time.perf_counter()
            result = method(*inputs)
            seconds[part] += time.perf_counter() - start
            return result

        return run

    branch = type(network.branch(0))
    methods: list[tuple[str, type, str]] = [
        ("branches", branch, "run"), ("branches", branch, "embed"), ("interaction", InteractionBlock, "forward"),
        ("merge", Merging, "forward"), ("pyramid", PyramidLevel, "forward"),
    ]  # fmt: skip
    patches = [
        patch.object(owner, method, timed(part, getattr(owner, method))) for part, owner, method in methods
    ]
    for active in patches:
        active.start()
    try:
        with torch.no_grad():
            network(image)
    finally:
        patch.stopall()
    return seconds


def _main(name: str, side: str) -> None:
    network, size = build_network(name), int(side)
    keep_freed_memory("all")
    image = torch.randn(1, 3, size, size)
    times = []
    with torch.no_grad():
        for _ in range(2 if size < 2000 else 1):  # the first pass of a process costs a second more
            start = time.perf_counter()
            network(image)
            times.append(time.perf_counter() - start)
    memory = peak_memory_gib()
    gmacs = sum(part.macs for part in executed_cost(network, size, size).parts) / 1e9
    print(min(times), memory, gmacs)


if __name__ == "__main__":
    _main(*sys.argv[1:])
