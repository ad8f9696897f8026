"""Deformable attention alone, at the shapes of PIIP-TSB 1120/896/448: ``python -m benchmarks.operator``.

Every contender computes softmax, locations, sampling and the weighted sum; they take turns in one process. With
``--device cuda`` calls are replayed from a CUDA graph, so that no time goes into launching them from Python.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import RESULTS, machine
from benchmarks.reference import reference_deformable_attention
from piip.files import write_json
from piip.ops import deformable_attention, use_implementation

# Side of the query grid, side of the value grid, channels per head; 16 heads, 4 points. TSB calls each 12 times.
SHAPES = ((56, 70, 12), (70, 56, 6), (28, 56, 24), (56, 28, 12))
HEADS, POINTS, CALLS = 16, 4, 12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REPETITIONS = 20
"""Calls between two events on a GPU: one alone is too short to time."""

Attend = Callable[..., Tensor]


def inputs(
    shape: tuple[int, int, int], batch: int = 1, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """Return value, offsets and logits of a shape."""
    torch.manual_seed(0)
    queries, values, width = shape
    sizes = [(batch, values**2, HEADS, width), (batch, queries**2, HEADS, 1, POINTS, 2)]
    sizes.append((batch, queries**2, HEADS, 1, POINTS))
    value, offsets, logits = (torch.randn(size).to(device, dtype) for size in sizes)
    return [value, offsets * 2, logits]


def contenders(queries: int, values: int) -> dict[str, Attend]:
    """Return the original's formulation and piip's two."""
    grids, query_grid = [(values, values)], (queries, queries)

    def chosen(name: str) -> Attend:
        def attend(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            with use_implementation(name):  # type: ignore[arg-type]
                return deformable_attention(value, grids, query_grid, offsets, logits)

        return attend

    def original(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return reference_deformable_attention(value, grids, query_grid, offsets, logits)

    return {"reference": original, "grid_sample": chosen("grid_sample"), "fused": chosen("fused")}


def measure(shape: tuple[int, int, int], rounds: int, tensors: list[Tensor]) -> list[dict[str, Any]]:
    """Return a row for every contender and step of one shape."""
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for name, attend in contenders(*shape[:2]).items():
            for step in ("forward", "forward+backward"):
                seconds = _time(attend, tensors, step)
                if turn:  # the first round compiles
                    times.setdefault((step, name), []).append(1000 * seconds)
    exact = contenders(*shape[:2])["grid_sample"](*(tensor.double() for tensor in tensors))
    rows: list[dict[str, Any]] = []
    for (step, name), values in times.items():
        ratios = [r / t for r, t in zip(times[step, "reference"], values, strict=True)]
        attended = contenders(*shape[:2])[name](*tensors).double()
        rows.append(
            {
                "queries": shape[0],
                "values": shape[1],
                "width": shape[2],
                "batch": len(tensors[0]),
                "step": step,
                "contender": name,
                "milliseconds": [round(f(values), 4) for f in (min, statistics.median, max)],
                "times_faster": [round(f(ratios), 2) for f in (min, statistics.median, max)],
                "relative_error": float(f"{float((attended - exact).abs().max() / exact.abs().max()):.1e}"),
            }
        )
    return rows


def _time(attend: Attend, tensors: list[Tensor], step: str) -> float:
    for tensor in tensors:
        tensor.mul_(1)  # in a network, the layers before have just written it: it is in the caches
    run = _forward if step == "forward" else _forward_and_backward
    if tensors[0].is_cuda:
        return _time_on_gpu(lambda: run(attend, tensors))
    start = time.perf_counter()
    run(attend, tensors)
    return time.perf_counter() - start


def _time_on_gpu(run: Callable[[], None]) -> float:
    """Return the seconds of a run between two events, replayed from a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(REPETITIONS):
            run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / REPETITIONS


def _forward(attend: Attend, tensors: list[Tensor]) -> None:
    with torch.no_grad():
        attend(*tensors)


def _forward_and_backward(attend: Attend, tensors: list[Tensor]) -> None:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = attend(*leaves)
    torch.autograd.grad(output, leaves, torch.ones_like(output))


def main() -> None:
    """Run the comparison and print and save its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved repetitions (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of all inputs (default float32)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS / "operator.json", help="where the json goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for batch in options.batch:
        for shape in SHAPES:
            tensors = inputs(shape, batch, DTYPES[options.dtype], options.device)
            rows += measure(shape, options.rounds, tensors)
    command = (
        f"python -m benchmarks.operator --rounds {options.rounds} --threads {options.threads} "
        f"--device {options.device} --dtype {options.dtype} --batch {' '.join(map(str, options.batch))}"
    )
    write_json(options.output, {"command": command, "machine": machine(), "rows": rows})
    for row in rows:
        shape_text = f"Q{row['queries']} V{row['values']} d{row['width']} b{row['batch']}"
        print(f"{shape_text:15} {row['step']:17} {row['contender']:12} {row['milliseconds']} ms "
              f"{row['times_faster']} x  error {row['relative_error']}")  # fmt: skip
    _print_totals(rows)


def _print_totals(rows: list[dict[str, Any]]) -> None:
    """Print what all deformable attention of PIIP-TSB takes per image."""
    totals: dict[tuple[int, str, str], float] = {}
    for row in rows:
        key = (row["batch"], row["step"], row["contender"])
        totals[key] = totals.get(key, 0.0) + CALLS * row["milliseconds"][1] / row["batch"]
    for (batch, step, contender), milliseconds in totals.items():
        print(f"TSB, {CALLS * len(SHAPES)} calls, batch {batch}, {step:17} {contender:12} "
              f"{milliseconds:.3f} ms an image")  # fmt: skip


if __name__ == "__main__":
    main()
