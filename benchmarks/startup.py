"""How long piip takes to start: imports, help texts, and one prediction: ``python -m benchmarks.startup``.

Every repetition is a process of its own; the contenders take turns.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import RESULTS, machine
from piip import create_model
from piip.data.settings import ImageConfig
from piip.files import write_json
from piip.predict import DetectionPredictor
from piip.train.detection import DetectionTask
from piip.train.recipe import TrainRecipe

PIIP = [sys.executable, "-m", "piip"]
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import piip": [sys.executable, "-c", "import piip"],
    "import torch, piip": [sys.executable, "-c", "import torch, piip"],
    "from piip import create_model": [sys.executable, "-c", "from piip import create_model"],
    "import torch, torchvision, timm": [sys.executable, "-c", "import torch, torchvision, timm"],
    "piip --help": [*PIIP, "--help"],
    "piip train --help": [*PIIP, "train", "--help"],
    "piip predict --help": [*PIIP, "predict", "--help"],
    "piip list": [*PIIP, "list"],
    "piip info piip_nano": [*PIIP, "info", "piip_nano"],
}
# What `piip predict` does, with the time after every step.
PREDICTION = """
import json, sys, time
marks = {"python": time.time() - float(sys.argv[1])}
def mark(name, start=[time.perf_counter()]):
    now = time.perf_counter()
    marks[name], start[0] = now - start[0], now
import torch; mark("import torch")
import torchvision, timm; mark("import torchvision and timm")
from piip import load; mark("import piip")
predictor = load(sys.argv[2], "cpu"); mark("load the model")
found = predictor.predict(sys.argv[3], 0.5); mark("network, first image")
found.plot(sys.argv[4]); mark("draw and write")
predictor.predict(sys.argv[3], 0.5); mark("network, second image")
print(json.dumps(marks))
"""


def save_model(folder: Path) -> None:
    """Save a small detector with random weights."""
    torch.manual_seed(0)
    small = {"fpn_channels": 64, "representation_size": 256, "mask_channels": 64}
    detector = DetectionTask.new_model(
        create_model("piip_nano"), TrainRecipe(detector=small), ("a", "b", "c")
    )
    DetectionPredictor(detector, ImageConfig(scale=(512, 512))).save(folder)


def seconds(command: list[str]) -> tuple[float, float]:
    """Return wall time and processor time of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prediction(model: Path, image: Path, out: Path) -> dict[str, float]:
    """Return the seconds of every step of one prediction in a process of its own."""
    command = [sys.executable, "-c", PREDICTION, str(time.time()), str(model), str(image), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    marks: dict[str, float] = json.loads(done.stdout)
    return marks


def measure(rounds: int) -> tuple[dict[str, list[tuple[float, float]]], dict[str, list[float]]]:
    """Return the seconds of every command and of every step of a prediction; the first round is not counted."""
    commands: dict[str, list[tuple[float, float]]] = {}
    steps: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        save_model(folder / "model")
        pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "image.png")
        places = (folder / "model", folder / "image.png", folder / "drawn.png")
        line = [*PIIP, "predict", str(places[1]), "--model", str(places[0]), "--out", str(folder / "out")]
        for turn in range(rounds + 1):
            for title, command in (COMMANDS | {"piip predict, one image": line}).items():
                taken = seconds(command)
                if turn:
                    commands.setdefault(title, []).append(taken)
            marks = prediction(*places)
            for name, step in marks.items() if turn else ():
                steps.setdefault(name, []).append(step)
    return commands, steps


def row(
    title: str, times: list[tuple[float, float]], torch_alone: list[tuple[float, float]]
) -> dict[str, Any]:
    """Return wall and processor seconds of a command, and the median ratio of each to ``import torch``."""
    walls, processors = zip(*times, strict=True)
    pairs = list(zip(times, torch_alone, strict=True))
    return {
        "what": title,
        "wall": summary(walls),
        "processor": summary(processors),
        "wall_times_import_torch": statistics.median(mine[0] / base[0] for mine, base in pairs),
        "processor_times_import_torch": statistics.median(mine[1] / base[1] for mine, base in pairs),
    }


def summary(times: Sequence[float]) -> dict[str, float]:
    return {"min": min(times), "median": statistics.median(times), "max": max(times)}


def main() -> None:
    """Run the comparison and print and save its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repetitions (default 5)")
    parser.add_argument("--output", type=Path, default=RESULTS / "startup.json", help="where the json goes")
    options = parser.parse_args()
    commands, steps = measure(options.rounds)
    rows = [row(title, times, commands["import torch"]) for title, times in commands.items()]
    parts = [{"what": title, **summary(times)} for title, times in steps.items()]
    result = {"command": f"python -m benchmarks.startup --rounds {options.rounds}", "machine": machine()}
    result["unit"] = "seconds"
    write_json(options.output, _rounded(result | {"commands": rows, "steps_of_a_prediction": parts}))
    for line in rows:
        ratios = f"{line['wall_times_import_torch']:5.2f}, {line['processor_times_import_torch']:5.2f}"
        times = f"{line['wall']['median']:6.2f} s, processor {line['processor']['median']:6.2f} s"
        print(f"{line['what']:34} {times};  import torch x {ratios}")
    for part in parts:
        print(f"    {part['what']!s:30} {part['median']:6.2f} s")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
