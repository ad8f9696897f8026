"""Curves of a run as PNG files."""

from pathlib import Path
from typing import Any, NamedTuple

from piip.errors import require
from piip.files import atomic_write
from piip.train.folder import RunFolder

INK = "#1c2430"
COLOURS = ("#1f6f8b", "#d1495b", "#edae49", "#5b8c5a", "#7d5ba6", "#8a8f98")
DASHES = ("-", "--", ":", "-.")
"""Once all colours are used, the next lines have other dashes: a cascade has a dozen losses."""
SMOOTHING = 0.9


def plot_curves(folder: RunFolder) -> list[Path]:
    """Draw losses, learning rate and metrics of a run.

    Returns:
        The written files.

    Raises:
        MissingExtraError: matplotlib is not installed.
        PiipError: A file cannot be written.
    """
    rows = folder.read_metrics()
    losses = sorted({key for row in rows for key in row if key.startswith("train/loss")})
    written = [_plot(folder.curves / "loss.png", rows, losses, "loss", smooth=True)]
    written.append(_plot(folder.curves / "learning_rate.png", rows, ["train/lr"], "learning rate"))
    for chart in metric_charts(rows):
        written.append(_plot(folder.curves / chart.file, rows, chart.columns, chart.title, percent=True))
    return written


class MetricChart(NamedTuple):
    """Metrics of evaluations that belong into one chart.

    Attributes:
        file: Name of the drawn file.
        title: What is shown.
        columns: Names in metrics.csv.
    """

    file: str
    title: str
    columns: list[str]


_CHARTS = (
    *(
        MetricChart(
            f"{kind}_ap.png",
            f"{kind} AP",
            [f"val/{kind}/{metric}" for metric in ("AP", "AP50", "AP_small", "AP_medium", "AP_large")],
        )
        for kind in ("mask", "box")
    ),
    MetricChart("accuracy.png", "accuracy", ["val/top1", "val/top5"]),
    MetricChart("answers.png", "answers", [f"val/{name}" for name in ("accuracy", "exact_match", "f1")]),
    MetricChart("miou.png", "mIoU and accuracies", ["val/mIoU", "val/mAcc", "val/aAcc"]),
)


def metric_charts(rows: list[dict[str, float]]) -> list[MetricChart]:
    """Return the charts for which a run has numbers."""
    known = {column for row in rows for column in row}
    return [chart for chart in _CHARTS if chart.columns[0] in known]


def figure(width: float, height: float) -> tuple[Any, Any]:
    """Return a matplotlib figure and its axes, in the project's plain style."""
    matplotlib = require("matplotlib.figure", "detect", "Drawing curves")
    drawn = matplotlib.Figure(figsize=(width, height), layout="constrained")
    axes = drawn.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    return drawn, axes


def series(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of a column."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]


def smoothed(values: list[float]) -> list[float]:
    """Return an exponential moving average without the bias of its first values."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append(average / weight)
    return result


def _plot(
    path: Path,
    rows: list[dict[str, float]],
    names: list[str],
    title: str,
    *,
    smooth: bool = False,
    percent: bool = False,
) -> Path:
    drawn, axes = figure(6.4, 3.6)
    for index, name in enumerate(names):
        steps, values = series(rows, name)
        if not values:
            continue
        turn, place = divmod(index, len(COLOURS))
        colour, dashes = COLOURS[place], DASHES[turn % len(DASHES)]
        values = [100 * value for value in values] if percent else values
        if smooth:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        shown = smoothed(values) if smooth else values
        label = name.rpartition("/")[2].replace("_", " ")
        axes.plot(steps, shown, color=colour, linestyle=dashes, linewidth=1.8, label=label)
    axes.set_xlabel("optimiser step", color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=2)
    with atomic_write(path) as temporary:
        drawn.savefig(temporary, dpi=150)
    return path
