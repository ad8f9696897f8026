"""The page: what a run learned, what it costs, what it sees, and how to repeat it."""

import base64
import io
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from piip._version import __version__
from piip.config import PIIPConfig
from piip.errors import PiipError
from piip.files import write_text
from piip.hub import read_description
from piip.report.sections import Section, cost_section, metrics_section, percent, pyramid_section
from piip.report.svg import Series, line_chart
from piip.train.clock import clock
from piip.train.curves import metric_charts, series, smoothed
from piip.train.folder import RunFolder
from piip.train.samples import SCORE

MOST_LOSSES = 6  # parts of the loss in one chart: more would not find room for their names
IMAGE_SIDE = 640  # pixels of an embedded picture: sharp on the page, small in the file


@dataclass(frozen=True)
class Report:
    """What the page is made of.

    Attributes:
        folder: The run.
        title: Heading.
        introduction: A sentence under the heading.
        commands: Shell commands that repeat the run.
    """

    folder: RunFolder
    title: str
    introduction: str
    commands: tuple[str, ...]


def write_report(
    run: str | Path, path: str | Path | None = None, title: str = "", introduction: str = ""
) -> Path:
    """Write a run's report as one HTML file that needs nothing else.

    Args:
        run: The run folder.
        path: The file; ``report.html`` in the run folder by default.
        title: Heading; by default the run's name.
        introduction: A sentence under the heading; by default the model and the data.

    Returns:
        The file.

    Raises:
        PiipError: The folder holds no finished run, or the file cannot be written.
    """
    folder = RunFolder(Path(run))
    recipe = folder.recipe()
    name = recipe.model.name or " + ".join(recipe.model.branches) or recipe.model.start or "model"
    asking = ' --prompt "What is in the picture?"' if recipe.task == "multimodal" else ""
    commands = (
        f"piip train {folder.config} --out {folder.path}-again",
        f"piip eval {folder.path}",
        f"piip predict IMAGE.jpg --model {folder.path}{asking}",
    )
    report = Report(
        folder,
        title or (recipe.name or folder.path.name).replace("_", " "),
        introduction or f"{name}, trained on {recipe.data.folder} for {_counted(recipe.trainer.epochs)}.",
        commands,
    )
    target = Path(path) if path is not None else folder.path / "report.html"
    write_text(target, render(report))
    return target


def render(report: Report) -> str:
    """Return the page.

    Raises:
        PiipError: The run is not finished.
    """
    results = report.folder.read_results()
    description = read_description(report.folder.model)
    config = PIIPConfig.from_dict(description["network"])
    sections = [
        _samples_section(report.folder, report.folder.recipe().task),
        pyramid_section(config),
        _learning_section(report.folder),
        metrics_section(results),
        cost_section(report.folder),
        _repeat_section(report),
    ]
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    body = "\n".join(
        f"<section><h2>{escape(section.title)}</h2>{section.html}</section>"
        for section in sections
        if section
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{_header(report, results)}\n{body}\n{_footer(report.folder)}\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report, results: dict[str, Any]) -> str:
    numbers = []
    for kind in ("mask", "box"):
        if isinstance(scores := results.get(kind), dict):
            numbers.append((percent(scores["AP"]), f"{kind} AP"))
            numbers.append((percent(scores["AP50"]), f"{kind} AP at IoU 0.5"))
    if isinstance(scores := results.get("segmentation"), dict):
        numbers.append((percent(scores["mIoU"]), "mean IoU"))
        numbers.append((percent(scores["aAcc"]), "pixels found"))
    if isinstance(scores := results.get("classification"), dict):
        numbers.append((percent(scores["top1"]), "top-1 accuracy"))
        numbers.append((percent(scores["top5"]), "top-5 accuracy"))
    if isinstance(scores := results.get("answers"), dict):
        named = "tokens of answers found" if "loss" in scores else "questions answered rightly"
        numbers.append((percent(scores["accuracy"]), named))
    if "seconds" in results:
        numbers.append((clock(results["seconds"]), "training time"))
    items = "".join(f"<li><b>{value}</b><span>{escape(label)}</span></li>" for value, label in numbers)
    return (
        f'<header><div class="kicker">piip run report</div><h1>{escape(report.title)}</h1>'
        f'<p class="lead">{escape(report.introduction)}</p></header><ul class="numbers">{items}</ul>'
    )


def _counted(epochs: int) -> str:
    return f"{epochs} epoch" + "s" * (epochs != 1)


_SEEN = {
    "detection": f"what it finds (objects with a score of at least {SCORE}), and what is there",
    "segmentation": "the class that it finds for every pixel, and what is there",
    "classification": "the five likeliest classes, the right one in green",
    "multimodal": "what it answers, green where it is right",
}
"""What samples show, by task."""


def _samples_section(folder: RunFolder, task: str) -> Section | None:
    drawn = [path for path in sorted(folder.samples.glob("*.png")) if not path.stem.endswith("_truth")]
    if not drawn:
        return None
    figures = "".join(_sample(path) for path in drawn)
    text = f"Validation images that the model has never seen: {_SEEN[task]}."
    return Section("What it sees", f'<p>{text}</p><div class="pairs">{figures}</div>')


def _sample(path: Path) -> str:
    """Return a figure of a drawn prediction, beside what is there where that is drawn as well."""
    truth = path.with_name(f"{path.stem}_truth.png")
    if not truth.exists():
        return f'<figure class="pair one"><div>{_picture(path, "prediction")}</div></figure>'
    found = f"<div>{_picture(path, 'prediction')}<span>found</span></div>"
    annotated = f"<div>{_picture(truth, 'ground truth')}<span>annotated</span></div>"
    return f'<figure class="pair">{found}{annotated}</figure>'


def _learning_section(folder: RunFolder) -> Section | None:
    rows = folder.read_metrics()
    if not rows:
        return None
    losses = _loss_lines(rows)
    shown = losses[: 1 + MOST_LOSSES]
    which = f", the largest {MOST_LOSSES} of {len(losses) - 1} parts" if len(shown) < len(losses) else ""
    charts = [(f"Loss over optimiser steps, smoothed{which}.", line_chart(shown, "step"))]
    for chart in metric_charts(rows):
        lines = [
            Series(
                column.rpartition("/")[2].removeprefix("AP_"),
                [(row["epoch"], 100 * row[column]) for row in rows if column in row],
            )
            for column in chart.columns
        ]
        title = f"{chart.title[0].upper()}{chart.title[1:]}"
        charts.append((f"{title} on the validation images, in percent.", line_chart(lines, "epoch")))
    figures = "".join(
        f"<figure>{chart}<figcaption>{escape(text)}</figcaption></figure>" for text, chart in charts if chart
    )
    return Section("How it learned", f'<div class="columns">{figures}</div>')


def _loss_lines(rows: list[dict[str, float]]) -> list[Series]:
    """Return the total loss, then its parts, those first that are largest in the end."""
    lines = []
    for name in {key for row in rows for key in row if key.startswith("train/loss")}:
        steps, values = series(rows, name)
        label = name.removeprefix("train/loss").strip("_").replace("_", " ") or "total"
        smooth = list(zip(steps, smoothed(values), strict=True))
        lines.append(Series(label, smooth, list(zip(steps, values, strict=True))))
    if len(lines) == 2:  # of one part, which is the total
        lines = [line for line in lines if line.name == "total"]
    return sorted(lines, key=lambda line: (line.name != "total", -line.points[-1][1], line.name))


def _repeat_section(report: Report) -> Section:
    commands = "\n".join(report.commands)
    return Section(
        "Repeat it",
        "<p>The run folder holds the resolved recipe, and a run depends on nothing else but the seed in it.</p>"
        f"<pre>{escape(commands)}</pre>",
    )


def _footer(folder: RunFolder) -> str:
    try:
        found = json.loads((folder.path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PiipError(f"{folder.path}/environment.json cannot be read ({error}).") from error
    hardware = ", ".join(found["gpus"]) or f"{found['cpu_cores']} CPU cores"
    return (
        f"<footer>piip {escape(__version__)}, commit {escape(found.get('commit') or 'unknown')}, Python "
        f"{escape(found['python'])}, torch {escape(found['packages']['torch'])}, on {escape(hardware)}.</footer>"
    )


def _picture(path: Path, text: str) -> str:
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(text)} of {escape(path.stem)}" src="data:image/jpeg;base64,{data}">'
