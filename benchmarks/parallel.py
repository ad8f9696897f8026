"""Data parallel training on the cores of one machine (gloo): ``python -m benchmarks.parallel``.

Two processes of one thread each train the same small detector. The contenders are the ways in which PyTorch's
DistributedDataParallel can look after gradients; they take turns, step by step. ``alone`` computes and exchanges
nothing. Processor time includes that of gloo's own threads.
"""

import argparse
import copy
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.machine import RESULTS, machine
from piip import create_model
from piip.files import write_json
from piip.train.detection import DetectionTask
from piip.train.recipe import TrainRecipe

SIDE = 256
Times = dict[str, list[tuple[float, float]]]
CONTENDERS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "unused parameters looked for": {"find_unused_parameters": True},
    "plain": {},
    "gradients in the buckets": {"gradient_as_bucket_view": True},
    "static graph": {"gradient_as_bucket_view": True, "static_graph": True},
}


class Losses(nn.Module):
    """A detector whose losses are one number."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        small = {"fpn_channels": 64, "representation_size": 256, "mask_channels": 64, "box_samples": 128}
        self.detector = DetectionTask.new_model(
            create_model(name), TrainRecipe(detector=small), ("a", "b", "c")
        ).train()

    def forward(self, image: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Return the sum of the losses of an image."""
        losses = self.detector([image], [target])
        assert isinstance(losses, dict)
        return torch.stack(list(losses.values())).sum()


def example(rank: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return an image of noise with two objects."""
    image = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(rank))
    boxes = torch.tensor([[20.0, 30.0, 120.0, 100.0], [100.0, 90.0, 250.0, 220.0]])
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    masks[0, 30:100, 20:120] = masks[1, 90:220, 100:250] = 1
    return image, {"boxes": boxes, "labels": torch.tensor([0, 2]), "masks": masks}


def step(model: nn.Module, data: tuple[Tensor, dict[str, Tensor]]) -> tuple[float, float]:
    """Return wall and processor seconds of forward and backward."""
    torch.manual_seed(0)
    wall, processor = time.perf_counter(), time.process_time()
    model(*data).backward()
    seconds = time.perf_counter() - wall, time.process_time() - processor
    model.zero_grad()
    return seconds


def interleaved(models: dict[str, nn.Module], rank: int, steps: int, wait: Callable[[], Any]) -> Times:
    """Return the seconds of the steps of every model; two of each are not counted."""
    data = example(rank)
    times: Times = {name: [] for name in models}
    for turn in range(steps + 2):
        for name, model in models.items():
            wait()
            seconds = step(model, data)
            if turn >= 2:  # buckets are arranged anew after the first
                times[name].append(seconds)
    return times


def one_process(name: str, steps: int) -> list[tuple[float, float]]:
    """Return the seconds of the steps of a process that has the machine to itself."""
    torch.set_num_threads(1)
    return interleaved({"": Losses(name)}, 0, steps, lambda: None)[""]


def run_rank(rank: int, port: int, name: str, steps: int, output: Path) -> None:
    """Train in one of two processes; the first one writes what it has measured."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    base = Losses(name)
    models: dict[str, nn.Module] = {}
    for title, options in CONTENDERS.items():
        model = copy.deepcopy(base)
        models[title] = model if options is None else DistributedDataParallel(model, **options)
    times = interleaved(models, rank, steps, dist.barrier)
    gradients = torch.zeros(sum(parameter.numel() for parameter in base.parameters()))
    exchange = []
    for _ in range(steps):
        dist.barrier()
        wall, processor = time.perf_counter(), time.process_time()
        dist.all_reduce(gradients)
        exchange.append((time.perf_counter() - wall, time.process_time() - processor))
    if rank == 0:
        found = {"gradient_bytes": 4 * len(gradients), "all_reduce": exchange, "steps": times}
        torch.save(found, output)
    dist.destroy_process_group()


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel", description=__doc__)
    parser.add_argument("--model", default="piip_nano_deit", help="a name of `piip list`")
    parser.add_argument("--steps", type=int, default=15, help="steps of each contender (default 15)")
    parser.add_argument("--output", type=Path, default=RESULTS / "parallel.json", help="where the json goes")
    options = parser.parse_args()
    single = one_process(options.model, options.steps)
    passed = options.output.with_suffix(".part")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, options.model, options.steps, passed)
    spawn(run_rank, args=arguments, nprocs=2)
    found = torch.load(passed, weights_only=True)
    passed.unlink()
    rows = {"one process": summary(single)} | {name: summary(times) for name, times in found["steps"].items()}
    command = f"python -m benchmarks.parallel --model {options.model} --steps {options.steps}"
    result = {"command": command, "machine": machine(), "gradient_bytes": found["gradient_bytes"]}
    write_json(options.output, result | {"all_reduce": summary(found["all_reduce"]), "steps": rows})
    print(
        f"gradients {found['gradient_bytes'] / 2**20:.1f} MiB, exchanged alone {summary(found['all_reduce'])} s"
    )
    for name, row in rows.items():
        print(f"{name:30} {row} s per step")


def summary(times: list[tuple[float, float]]) -> dict[str, list[float]]:
    """Return minimum, median and maximum of wall and processor seconds."""
    kinds = zip(("wall", "processor"), zip(*times, strict=True), strict=True)
    return {kind: [round(f(values), 4) for f in (min, statistics.median, max)] for kind, values in kinds}


if __name__ == "__main__":
    main()
