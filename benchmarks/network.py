"""Forward pass, training step and their memory: piip against the original's order of operations, on the CPU."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import piip
from benchmarks.baseline import plain_forward
from benchmarks.machine import matmul_peak, peak_memory_gib
from benchmarks.timing import Row, Work, compared, interleave
from piip.cost import executed_cost
from piip.memory import keep_freed_memory
from piip.network import PIIP

MODEL = "piip_tsb_1120_896_448"
Maps = tuple[Tensor, ...]

KEPT = ", memory kept"
"""Ends the names of contenders for which freed memory stays with the process (`piip.keep_freed_memory`)."""
FORWARD = (
    "plain float32",
    f"plain float32{KEPT}",
    "piip float32",
    f"piip float32{KEPT}",
    f"optimize float32{KEPT}",
    "optimize bfloat16",
    f"optimize bfloat16{KEPT}",
)
TRAIN = (
    "plain float32",
    f"plain float32{KEPT}",
    "piip float32",
    f"piip float32{KEPT}",
    "piip autocast bfloat16",
    f"piip autocast bfloat16{KEPT}",
)
CHECKPOINTED = ("piip float32, checkpointing", "piip autocast bfloat16, checkpointing")
RETURNED = ", memory returned"
"""Ends the names of contenders that give freed memory back at once, so that a peak is what they need."""
NEEDED = tuple(
    f"{contender}{RETURNED}"
    for contender in (
        "plain float32",
        "piip float32",
        "piip float32, light checkpointing",
        "piip autocast bfloat16, light checkpointing",
        *CHECKPOINTED,
    )
)


def build_network(name: str) -> PIIP:
    """Build a network with random weights whose interactions are not switched off by zero gates."""
    torch.manual_seed(0)
    network = piip.create_model(name)
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.endswith("_gate"):
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def images(network: PIIP, batch: int) -> Tensor:
    """Return a batch at the network's own size."""
    return torch.randn(batch, 3, network.config.image_size, network.config.image_size)


def forward(network: PIIP, contender: str) -> Callable[[Tensor], Maps]:
    """Return an inference function of a contender."""
    if contender.startswith("plain"):
        return torch.no_grad()(lambda image: plain_forward(network, image))
    if contender.startswith("optimize"):
        network = piip.optimize(network, torch.bfloat16 if "bfloat16" in contender else None)
    return torch.no_grad()(network)


def train(network: PIIP, contender: str) -> Callable[[Tensor], None]:
    """Return a training step (forward and backward, no optimizer) of a contender."""
    run = (lambda image: plain_forward(network, image)) if contender.startswith("plain") else network

    def step(image: Tensor) -> None:
        mode = "light" if "light" in contender else "checkpointing" in contender
        network.set_grad_checkpointing(mode)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16) if "autocast" in contender else contextlib.nullcontext():
            maps = run(image)
        sum(feature.sum(dtype=torch.float32) for feature in maps).backward()  # type: ignore[union-attr]
        network.zero_grad()

    return step


def measure(name: str, rounds: int, batches: tuple[int, ...], with_memory: bool) -> list[Row]:
    """Return a row for every step, batch and contender."""
    memory: dict[tuple[str, str], float] = {}
    if with_memory:  # first: on Linux a child's peak starts at what its parent has used by then
        asked = [("forward", c) for c in FORWARD] + [("train", c) for c in TRAIN + NEEDED]
        memory = {pair: peak_memory(name, *pair) for pair in asked if not _skips_memory(*pair)}
    network = build_network(name)
    size = network.config.image_size
    macs = sum(part.macs for part in executed_cost(network, size, size).parts)
    peaks = _peaks()
    rows: list[Row] = []
    for batch in batches:
        # A process that gives memory back is the rule of small jobs; for batches, one way is enough.
        chosen = FORWARD if batch == 1 else [c for c in FORWARD if c.startswith("plain") or c.endswith(KEPT)]
        functions = {contender: forward(network, contender) for contender in chosen}
        rows += _rows("forward", functions, images(network, batch), rounds, macs)
    steps = {contender: train(network, contender) for contender in TRAIN}
    rows += _rows("train", steps, images(network, 1), rounds, 3 * macs)
    after = _peaks()
    for row in rows:
        dtype = torch.bfloat16 if "bfloat16" in str(row["contender"]) else torch.float32
        row["share_of_peak"] = round(float(str(row["gflops"])) * 1e9 / max(peaks[dtype], after[dtype]), 3)
        if row["batch"] == 1:
            row["peak_memory_gib"] = memory.pop((str(row["step"]), str(row["contender"])), None)
    return rows + [
        {"step": step, "batch": 1, "contender": contender, "peak_memory_gib": gib}
        for (step, contender), gib in memory.items()
    ]


def _rows(
    step: str,
    functions: Mapping[str, Callable[[Tensor], object]],
    image: Tensor,
    rounds: int,
    macs: float,
) -> list[Row]:
    def bound(function: Callable[[Tensor], object]) -> Work:
        return lambda: function(image)

    works = {name: bound(function) for name, function in functions.items()}
    seconds = interleave(works, rounds, prepare=_prepare)
    keep_freed_memory("some")
    rows = []
    for row in compared(seconds, len(image)):
        rate = 2 * macs / row["seconds"]["median"]  # type: ignore[index]
        rows.append({"step": step, "batch": len(image), **row, "gflops": round(rate / 1e9, 1)})
    return rows


def _skips_memory(step: str, contender: str) -> bool:
    """Return whether a contender's peak says nothing that another one's does not."""
    return contender.endswith(KEPT) and (step == "forward" or contender.startswith("plain"))


def _prepare(contender: str, work: Work) -> None:
    """Set what becomes of freed memory; a first, uncounted run fills it where it is kept."""
    keep_freed_memory("all" if contender.endswith(KEPT) else "some")
    if contender.endswith(KEPT):
        work()


def _peaks() -> dict[torch.dtype, float]:
    return {dtype: matmul_peak(dtype, rounds=30) for dtype in (torch.float32, torch.bfloat16)}


def peak_memory(name: str, step: str, contender: str) -> float:
    """Return the peak resident memory in GiB of a process that does two steps of one image and nothing else."""
    command = [sys.executable, "-m", "benchmarks.network", name, step, contender]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(float(done.stdout.split()[-1]), 2)


def _main(name: str, step: str, contender: str) -> None:
    network = build_network(name)
    if contender.endswith(KEPT):
        keep_freed_memory("all")
    elif contender.endswith(RETURNED):
        keep_freed_memory("none")
    run, image = {"forward": forward, "train": train}[step](network, contender), images(network, 1)
    run(image)
    run(image)
    print(peak_memory_gib())


if __name__ == "__main__":
    _main(*sys.argv[1:])
