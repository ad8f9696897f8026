"""Pictures of the saved results for docs/speed.md: ``python -m benchmarks.plots``."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.machine import RESULTS

IMAGES = Path(__file__).parent.parent / "docs" / "images"
COLOURS = ("#8a99a3", "#1f6f8b", "#3fa796", "#d98e04")
mpl.rcParams.update(
    {"svg.hashsalt": "piip", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)


def main() -> None:
    """Draw what has been measured."""
    drawn = {"network.json": draw_network, "scaling.json": draw_scaling, "parts.json": draw_parts}
    for name, draw in drawn.items():
        path = RESULTS / name
        if path.exists():
            draw(json.loads(path.read_text()))


def draw_network(result: dict[str, Any]) -> None:
    """Draw seconds per image and peak memory of every contender, with the spread of the rounds."""
    rows = [row for row in result["rows"] if row["batch"] == 1]
    figure, axes = plt.subplots(2, 1, figsize=(9, 6.4), layout="constrained")
    for axis, key, label in zip(
        axes, ("seconds", "peak_memory_gib"), ("seconds", "peak memory, GiB"), strict=True
    ):
        _bars(axis, [row for row in rows if row.get(key)], key)
        axis.set_xlabel(label)
    _save(figure, "speed_network.svg")


def draw_scaling(result: dict[str, Any]) -> None:
    """Draw time and memory over the number of pixels."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    megapixels = [row["side"] ** 2 / 1e6 for row in result["rows"]]
    for axis, key, label in zip(
        axes, ("seconds", "peak_memory_gib"), ("seconds", "peak memory, GiB"), strict=True
    ):
        axis.plot(megapixels, [row[key] for row in result["rows"]], "o-", color=COLOURS[1], markersize=4)
        axis.set(xlabel="megapixels", ylabel=label, xlim=0, ylim=0)
    for x, row in zip(megapixels, result["rows"], strict=True):
        axes[0].annotate(
            f"{row['side']}", (x, row["seconds"]), (-4, 4), textcoords="offset points", ha="right"
        )
    _save(figure, "speed_scaling.svg")


def draw_parts(result: dict[str, Any]) -> None:
    """Draw how fast every part of the network multiplies."""
    rows = result["rows"]
    figure, axis = plt.subplots(figsize=(6, 1.8), layout="constrained")
    axis.barh(
        [row["part"] for row in rows], [row["gmacs_per_second"] for row in rows], color=COLOURS[1], height=0.6
    )
    axis.invert_yaxis()
    axis.set_xlabel("giga multiply-accumulates per second")
    _save(figure, "speed_parts.svg")


def _bars(axis: Axes, rows: list[dict[str, Any]], key: str) -> None:
    for place, row in enumerate(rows):
        value = row[key]["median"] if isinstance(row[key], dict) else row[key]
        colour = COLOURS[0] if row["contender"].startswith("plain") else COLOURS[1]
        axis.barh(place, value, color=colour, height=0.66)
        if isinstance(row[key], dict):
            axis.plot([row[key]["min"], row[key]["max"]], [place, place], color="black", linewidth=0.8)
        end = row[key]["max"] if isinstance(row[key], dict) else value
        axis.annotate(f"{value:.3g}", (end, place), (6, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(rows)), [f"{row['step']}: {row['contender']}" for row in rows])
    axis.invert_yaxis()
    axis.margins(x=0.14)


def _save(figure: Any, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / name, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
