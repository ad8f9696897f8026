"""Deformable attention alone, at the shapes of PIIP-TSB 1120/896/448: ``python -m benchmarks.operator``.

Every contender computes softmax, locations, sampling and the weighted sum; they take turns in one process. With
``--device cuda`` calls are replayed from a CUDA graph, so that no time goes into launching them from Python.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.baseline import reference_deformable_attention
from benchmarks.machine import RESULTS, machine
from benchmarks.show import show
from benchmarks.timing import Row, compared, spread
from piip.files import write_json
from piip.memory import keep_freed_memory
from piip.ops import deformable_attention, use_implementation

# Side of the query grid, side of the value grid, channels per head; 16 heads, 4 points. TSB calls each 12 times.
SHAPES = ((56, 70, 12), (70, 56, 6), (28, 56, 24), (56, 28, 12))
HEADS, POINTS, CALLS = 16, 4, 12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WARM_UP = 3
"""Rounds that are not counted: the first compiles, and the memory of freed tensors finds its order."""
REPEATED = 7
"""Calls after the first one of a turn, whose median is a result of its own: the caches hold what they need."""
CONTENDERS = ("reference", "grid_sample", "fused")
STEPS = ("forward", "forward+backward")
REPETITIONS = 20
"""Calls in a CUDA graph: one alone is too short to time."""

Attend = Callable[..., Tensor]


def measure_all(
    rounds: int, batch: int = 1, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Row]:
    """Return a row for every shape, step and contender."""
    return [row for shape in SHAPES for row in _measure(shape, rounds, batch, dtype, device)]


def measure_cpu(rounds: int) -> list[Row]:
    """Return the rows of one thread of a CPU, in float32 and bfloat16; freed memory is kept for all contenders."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory("all")
    try:
        return [row for dtype in (torch.float32, torch.bfloat16) for row in measure_all(rounds, dtype=dtype)]
    finally:
        keep_freed_memory("some")
        torch.set_num_threads(threads)


def measure_gpu(rounds: int = 5) -> Iterator[Row]:
    """Yield the rows of a GPU, and what all deformable attention of PIIP-TSB takes."""
    for dtype in (torch.bfloat16, torch.float32):
        for batch in (1, 8):
            rows = measure_all(rounds, batch, dtype, "cuda")
            yield from rows
            yield from totals(rows)


def totals(rows: list[Row]) -> Iterator[Row]:
    """Yield a row for every step and contender: milliseconds of all calls of PIIP-TSB per image."""
    for step in STEPS:
        for contender in CONTENDERS:
            chosen = [row for row in rows if row["step"] == step and row["contender"] == contender]
            milliseconds = CALLS * sum(row["milliseconds"]["median"] for row in chosen)  # type: ignore[index]
            yield {
                "shape": f"TSB, {CALLS * len(chosen)} calls",
                **{key: chosen[0][key] for key in ("batch", "dtype")},
                "step": step,
                "contender": contender,
                "milliseconds_per_image": round(milliseconds / int(chosen[0]["batch"]), 3),  # type: ignore[call-overload]
            }


def inputs(shape: tuple[int, int, int], batch: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return value, offsets and logits of a shape."""
    torch.manual_seed(0)
    queries, values, width = shape
    sizes = [(batch, values**2, HEADS, width), (batch, queries**2, HEADS, 1, POINTS, 2)]
    sizes.append((batch, queries**2, HEADS, 1, POINTS))
    value, offsets, logits = (torch.randn(size).to(device, dtype) for size in sizes)
    return [value, offsets * 2, logits]


def _contender(name: str, queries: int, values: int) -> Attend:
    """Return the original's formulation, or one of piip's."""
    grids, query_grid = [(values, values)], (queries, queries)

    def attend(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        if name == "reference":
            return reference_deformable_attention(value, grids, query_grid, offsets, logits)
        with use_implementation(name):  # type: ignore[arg-type]
            return deformable_attention(value, grids, query_grid, offsets, logits)

    return attend


def _measure(
    shape: tuple[int, int, int], rounds: int, batch: int, dtype: torch.dtype, device: str
) -> Iterator[Row]:
    tensors = inputs(shape, batch, dtype, device)
    attends = {name: _contender(name, *shape[:2]) for name in CONTENDERS}
    with torch.no_grad():
        exact = attends["grid_sample"](*(tensor.double() for tensor in tensors))
        errors = [attend(*tensors).double() - exact for attend in attends.values()]
    largest = [float(error.abs().max() / exact.abs().max()) for error in errors]
    for step in STEPS:
        times: dict[str, list[float]] = {name: [] for name in attends}
        again: dict[str, list[float]] = {name: [] for name in attends}
        for turn in range(rounds + WARM_UP):
            for name, attend in attends.items():
                seconds = _time(attend, tensors, step)
                calls = 0 if tensors[0].is_cuda else REPEATED  # a replayed graph repeats by itself
                repeated = [_time(attend, tensors, step, fresh=False) for _ in range(calls)] or [seconds]
                if turn >= WARM_UP:
                    times[name].append(seconds)
                    again[name].append(statistics.median(repeated))
        about = {"shape": f"Q{shape[0]} V{shape[1]} d{shape[2]}", "batch": batch, "dtype": str(dtype)[6:]}
        for row, warm, error in zip(compared(times), compared(again), largest, strict=True):
            yield {
                **about,
                "step": step,
                "contender": row["contender"],
                "milliseconds": spread((1000 * value for value in times[str(row["contender"])]), digits=4),
                "times_faster": row["times_faster"],
                "milliseconds_repeated": spread(
                    (1000 * value for value in again[str(row["contender"])]), digits=4
                ),
                "times_faster_repeated": warm["times_faster"],
                "relative_error": float(f"{error:.1e}"),
            }


def _time(attend: Attend, tensors: list[Tensor], step: str, fresh: bool = True) -> float:
    """Return the seconds of a call, on inputs just written (others have used the caches before) or as they are."""
    run = _forward if step == "forward" else _forward_and_backward
    if tensors[0].is_cuda:
        return _time_on_gpu(lambda: run(attend, tensors))
    for tensor in tensors if fresh else ():
        tensor.mul_(1)  # in a network, the layers before have just written it: it is in the caches
    start = time.perf_counter()
    run(attend, tensors)
    return time.perf_counter() - start


def _time_on_gpu(run: Callable[[], None]) -> float:
    """Return the seconds of a run between two events, replayed from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
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
    parser.add_argument("--batch", type=int, default=1, help="images (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS / "operator.json", help="where the json goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure_all(options.rounds, options.batch, DTYPES[options.dtype], options.device)
    rows += totals(rows)
    given = [f"--{name} {value}" for name, value in vars(options).items() if name != "output"]
    command = f"python -m benchmarks.operator {' '.join(given)}"
    write_json(options.output, {"command": command, "machine": machine(), "rows": rows})
    show(Console(), "operator", rows)


if __name__ == "__main__":
    main()
