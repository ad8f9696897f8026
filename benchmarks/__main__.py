"""Measures a network and writes benchmarks/results/<host kind>.json: ``python -m benchmarks --help``."""

import argparse
from pathlib import Path

from benchmarks.machine import RESULTS, machine
from benchmarks.network import CONTENDERS, STEPS, compare, peak_memory
from piip.files import write_json


def main() -> None:
    """Run the comparison and print and save its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", default="piip_tsb_1120_896_448", help="a name of `piip list`")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repetitions (default 5)")
    parser.add_argument("--output", type=Path, default=RESULTS / "network.json", help="where the json goes")
    options = parser.parse_args()

    # Memory comes first: on Linux a child's peak starts at what its parent has used by then.
    memory = {(s, c): peak_memory(options.model, s, c) for s in STEPS for c in CONTENDERS}
    rows = [timing.row() for timing in compare(options.model, options.rounds)]
    for row in rows:
        row["peak_memory_gib"] = round(memory[str(row["step"]), str(row["contender"])], 2)
    result = {"command": f"python -m benchmarks --model {options.model} --rounds {options.rounds}"}
    write_json(options.output, result | {"machine": machine(), "steps": STEPS, "rows": rows})
    print(f"{options.model}, batch 1, float32, {len(CONTENDERS)} contenders, {options.rounds} rounds")
    for row in rows:
        seconds, ratio = row["seconds"], row["times_faster_than_reference"]
        print(f"{row['step']:8} {row['contender']:10} {seconds} s  {ratio} x  {row['peak_memory_gib']} GiB")


if __name__ == "__main__":
    main()
