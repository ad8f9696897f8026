"""Accuracy over the size of the text, and images with what the contenders read."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

from benchmarks.reader.runs import final_folder
from benchmarks.reader.settings import CONTENDERS, SIZES, Settings

_COLOURS = dict(zip(CONTENDERS, ("#1f6f8b", "#d98e04", "#3fa796"), strict=True))
_SHOWN = 6
_RIGHT, _WRONG = "#1b7f3b", "#b3261e"


def draw_accuracy(results: dict[str, Any], path: Path) -> None:
    """Draw every seed as a dot and the mean as a line, over the size of the font.

    Args:
        results: What `benchmarks.reader.report.collect` returns.
        path: The picture.
    """
    with mpl.rc_context({"svg.hashsalt": "piip", "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
        ems = list(results["sizes"].values())
        for name, found in results["contenders"].items():
            scores = [[100 * value for value in found["accuracy"][size]] for size in results["sizes"]]
            axes.plot(ems, [mean(values) for values in scores], color=_COLOURS[name], label=name)
            for em, values in zip(ems, scores, strict=True):
                axes.plot([em] * len(values), values, "o", color=_COLOURS[name], alpha=0.6, markersize=4)
        constant = [100 * results["constant"][size] for size in results["sizes"]]
        axes.plot(ems, constant, color="#8a99a3", linestyle=":", label="best constant answer")
        axes.set(xlabel="size of the font, pixels", ylabel="soft accuracy, %", xticks=ems, ylim=(0, 100))
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def draw_examples(out: Path, settings: Settings, names: Sequence[str], path: Path) -> None:
    """Draw the first questions of every size with what is written and what the first seed's runs answer.

    Args:
        out: Folder of the experiment.
        settings: Of the experiment.
        names: The contenders.
        path: The picture.
    """
    figure, grid = plt.subplots(
        len(SIZES), _SHOWN, figsize=(2 * _SHOWN, (2 + 0.27 * len(names)) * len(SIZES)), layout="constrained"
    )
    for row, size in zip(grid, SIZES, strict=True):
        questions = json.loads((out / "data" / f"asked_{size}.json").read_text(encoding="utf-8"))["data"]
        folders = {name: final_folder(out, name, settings.seeds[0], settings) for name in names}
        answers = {
            name: json.loads((folder / f"eval_asked_{size}_answers.json").read_text(encoding="utf-8"))
            for name, folder in folders.items()
        }
        for index, axes in enumerate(row[: len(questions)]):
            said = {name: answers[name][index]["answer"] for name in names}
            _example(axes, out / "data" / questions[index]["image"], questions[index]["answers"][0], said)
        row[0].set_ylabel(f"{size}, {SIZES[size]} px")
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)


def _example(axes: Axes, image: Path, truth: str, said: dict[str, str]) -> None:
    axes.imshow(Image.open(image), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for line, (name, answer) in enumerate(said.items()):
        axes.text(
            0.0,
            -0.11 - 0.12 * line,
            f"{name}: {answer}",
            transform=axes.transAxes,
            fontsize=8,
            color=_RIGHT if answer == truth else _WRONG,
        )
