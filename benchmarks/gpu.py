"""What a GPU does with PIIP, in one command of at most eight minutes: ``python -m benchmarks --device cuda``.

Everything goes into one json, after every step, so that nothing is lost if time runs out.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import piip
from benchmarks import operator
from benchmarks.machine import machine, matmul_peak
from benchmarks.network import build_network, images
from benchmarks.show import show
from benchmarks.timing import Row, spread
from piip.cost import executed_cost
from piip.files import write_json
from piip.network import PIIP
from piip.ops import use_implementation

MODELS = ("piip_tsb_1120_896_448", "piip_sbl_1568_1120_672")
SECONDS = 460
DTYPE = torch.bfloat16
Work = Callable[[], object]


def run(folder: Path, quick: bool = False) -> None:
    """Measure the operator and the networks, print tables and save ``gpu.json``.

    Raises:
        SystemExit: There is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise SystemExit("No CUDA device was found; run this where there is one, or leave --device out.")
    deadline = time.monotonic() + SECONDS
    peak = round(matmul_peak(DTYPE, "cuda", side=8192) / 1e12, 1)
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "bfloat16_peak_tflops": peak}
    about = machine() | gpu
    result: dict[str, object] = {"command": "python -m benchmarks --device cuda", "machine": about}
    sections: dict[str, Callable[[], Iterator[Row]]] = {"operator": lambda: iter(operator.measure_gpu())}
    for model in MODELS[: 1 if quick else None]:
        sections[model] = lambda model=model: _network(model, peak)  # type: ignore[misc]
    for name, measure in sections.items():
        rows: list[Row] = []
        result[name] = rows
        try:
            for row in measure():
                rows.append(row)
                write_json(folder / "gpu.json", result)
                if time.monotonic() > deadline:
                    rows.append({"stopped": f"after {SECONDS} s"})
                    break
        except Exception as error:  # one failure must not lose what the rented machine has measured
            rows.append({"failed": f"{type(error).__name__}: {error}"[:500]})
        write_json(folder / "gpu.json", result)
        show(Console(), name, rows)
        torch.cuda.empty_cache()


def _network(name: str, peak_tflops: float) -> Iterator[Row]:
    network = build_network(name).cuda()
    size = network.config.image_size
    macs = sum(part.macs for part in executed_cost(network, size, size).parts)

    def row(contender: str, step: str, batch: int, work: Work, passes: int) -> Row:
        torch.cuda.reset_peak_memory_stats()
        milliseconds = [value / batch for value in _milliseconds(work)]
        rate = passes * 2 * macs / (sorted(milliseconds)[len(milliseconds) // 2] / 1000)
        return {
            "step": step,
            "contender": contender,
            "batch": batch,
            "milliseconds_per_image": spread(milliseconds),
            "share_of_peak": round(rate / 1e12 / peak_tflops, 3),
            "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        }

    optimized = piip.optimize(network, DTYPE)
    for batch in (1, 8):
        image = images(network, batch).cuda()
        yield row("optimize, eager", "forward", batch, _inference(optimized, image), 1)
        with use_implementation("grid_sample"):
            yield row("optimize, grid_sample", "forward", batch, _inference(optimized, image), 1)
        yield row("optimize, CUDA graph", "forward", batch, _graph(_inference(optimized, image)), 1)
        compiled = torch.compile(optimized)
        yield row("optimize, compiled, CUDA graph", "forward", batch, _graph(_inference(compiled, image)), 1)  # type: ignore[arg-type]
    del optimized
    image = images(network, 8).cuda()
    for way, model in (("eager", network), ("compiled", torch.compile(network))):
        yield row(f"autocast, {way}", "train", 8, _training(network, model, image), 3)
    network.set_grad_checkpointing()
    yield row("autocast, checkpointing", "train", 8, _training(network, network, image), 3)


def _inference(network: PIIP, image: Tensor) -> Work:
    return torch.no_grad()(lambda: network(image))


def _training(network: PIIP, model: Callable[[Tensor], tuple[Tensor, ...]], image: Tensor) -> Work:
    def step() -> None:
        with torch.autocast("cuda", DTYPE):
            maps = model(image)
        torch.stack([feature.sum(dtype=torch.float32) for feature in maps]).sum().backward()
        network.zero_grad()

    return step


def _graph(work: Work) -> Work:
    """Return the work as a CUDA graph: one launch for all its kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _milliseconds(work: Work, repetitions: int = 20) -> list[float]:
    for _ in range(3):
        work()
    times = []
    for _ in range(repetitions):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times
