"""Everything that is measured, in one command: ``python -m benchmarks --quick``, ``--full``, ``--device cuda``."""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import gpu, network, operator, scaling
from benchmarks.machine import RESULTS, machine, matmul_peak
from benchmarks.show import show
from piip.files import write_json

SECTIONS = ("operator", "parts", "network", "scaling")
QUICK_MODEL = "piip_nano"


def main() -> None:
    """Run the sections, print their tables and save each as a json beside the others."""
    options = _options()
    console = Console()
    if options.device == "cuda":
        gpu.run(options.output, quick=options.quick)
        return
    about = {"command": options.command, "machine": machine() | _peaks()}
    model = QUICK_MODEL if options.quick else options.model
    rounds = options.rounds or (2 if options.quick else 5)
    for section in options.sections:
        if section == "operator":
            rows = operator.measure_all(15 if not options.quick else 3)
        elif section == "parts":
            rows = scaling.measure_parts(model, rounds)
        elif section == "network":
            batches = (1,) if options.quick else (1, 4)
            rows = network.measure(model, rounds, batches, with_memory=True)
        else:
            rows = scaling.measure_sizes(model, scaling.SIDES[: 3 if options.quick else None])
        result = about | {"section": section, "model": model, "rounds": rounds, "rows": rows}
        write_json(options.output / f"{section}{'_quick' if options.quick else ''}.json", result)
        show(console, section, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help=f"{QUICK_MODEL} and few rounds: two minutes")
    extent.add_argument(
        "--full", action="store_true", help="PIIP-TSB at its published size (default): an hour"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")
    parser.add_argument(
        "--model", default=network.MODEL, help=f"a name of `piip list` (default {network.MODEL})"
    )
    parser.add_argument("--rounds", type=int, help="interleaved repetitions (default 5)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="default: all")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the jsons")
    options = parser.parse_args()
    given = [
        f"--{name} {value}" for name, value in (("model", options.model), ("rounds", options.rounds)) if value
    ]
    extent_given = "--quick" if options.quick else "--full"
    options.command = " ".join(["python -m benchmarks", extent_given, *given])
    return options


def _peaks() -> dict[str, float]:
    return {f"{name}_peak_gflops": round(matmul_peak(dtype) / 1e9)
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}  # fmt: skip


if __name__ == "__main__":
    main()
