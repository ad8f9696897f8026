"""Deformable attention alone, at the shapes of PIIP-TSB 1120/896/448: ``python -m benchmarks.operator``.

Every contender computes softmax, locations, sampling and the weighted sum; they take turns in one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import RESULTS, machine
from benchmarks.reference import reference_deformable_attention
from piip.files import write_json
from piip.ops import deformable_attention, use_implementation
from piip.ops.reference import reference_points

# Side of the query grid, side of the value grid, channels per head; 16 heads, 4 points.
SHAPES = ((56, 70, 12), (70, 56, 6), (28, 56, 24), (56, 28, 12))
HEADS, POINTS = 16, 4


def inputs(queries: int, values: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return value, reference, offsets and logits of a shape."""
    torch.manual_seed(0)
    value = torch.randn(1, values**2, HEADS, width, dtype=dtype)
    offsets = torch.randn(1, queries**2, HEADS, 1, POINTS, 2, dtype=dtype) * 2
    logits = torch.randn(1, queries**2, HEADS, 1, POINTS, dtype=dtype)
    return [value, reference_points((queries, queries), value.device), offsets, logits]


def contenders() -> dict[str, Callable[..., Tensor]]:
    """Return the original's formulation and piip's two."""

    def chosen(name: str) -> Callable[..., Tensor]:
        def attend(*tensors: Tensor) -> Tensor:
            side = round(tensors[0].shape[1] ** 0.5)
            with use_implementation(name):  # type: ignore[arg-type]
                return deformable_attention(tensors[0], [(side, side)], *tensors[1:])

        return attend

    def original(*tensors: Tensor) -> Tensor:
        side = round(tensors[0].shape[1] ** 0.5)
        return reference_deformable_attention(tensors[0], [(side, side)], *tensors[1:])

    return {"reference": original, "grid_sample": chosen("grid_sample"), "fused": chosen("fused")}


def measure(shape: tuple[int, int, int], rounds: int) -> list[dict[str, object]]:
    """Return a row for every contender and step of one shape."""
    tensors = inputs(*shape)
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for name, attend in contenders().items():
            for step in ("forward", "forward+backward"):
                seconds = _time(attend, tensors, step)
                if turn:  # the first round compiles
                    times.setdefault((step, name), []).append(1000 * seconds)
    exact = contenders()["grid_sample"](*(tensor.double() for tensor in tensors))
    rows: list[dict[str, object]] = []
    for (step, name), values in times.items():
        ratios = [r / t for r, t in zip(times[step, "reference"], values, strict=True)]
        error = (contenders()[name](*tensors).double() - exact).abs().max() / exact.abs().max()
        rows.append(
            {
                "queries": shape[0],
                "values": shape[1],
                "width": shape[2],
                "step": step,
                "contender": name,
                "milliseconds": [round(f(values), 3) for f in (min, statistics.median, max)],
                "times_faster": [round(f(ratios), 2) for f in (min, statistics.median, max)],
                "relative_error": float(f"{float(error):.1e}"),
            }
        )
    return rows


def _time(attend: Callable[..., Tensor], tensors: list[Tensor], step: str) -> float:
    for tensor in tensors:
        tensor.mul_(1)  # in a network, the layers before have just written it: it is in the caches
    if step == "forward":
        with torch.no_grad():
            start = time.perf_counter()
            attend(*tensors)
            return time.perf_counter() - start
    leaves = [t.detach().requires_grad_(n != 1) for n, t in enumerate(tensors)]
    start = time.perf_counter()
    output = attend(*leaves)
    output.backward(torch.ones_like(output))
    return time.perf_counter() - start


def main() -> None:
    """Run the comparison and print and save its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved repetitions (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS / "operator.json", help="where the json goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for shape in SHAPES for row in measure(shape, options.rounds)]
    command = f"python -m benchmarks.operator --rounds {options.rounds} --threads {options.threads}"
    write_json(options.output, {"command": command, "machine": machine(), "rows": rows})
    for row in rows:
        shape = f"Q{row['queries']} V{row['values']} d{row['width']}"
        print(f"{shape:12} {row['step']!s:17} {row['contender']!s:12} {row['milliseconds']} ms "
              f"{row['times_faster']} x  error {row['relative_error']}")  # fmt: skip


if __name__ == "__main__":
    main()
