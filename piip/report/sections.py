"""Sections of the page that show numbers: the network, the metrics, the cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from piip.config import PIIPConfig
from piip.cost import prepared_size, saved_cost
from piip.hub import is_llava
from piip.network import build_on_meta
from piip.report.svg import confusion_figure, pyramid_figure
from piip.train.folder import RunFolder

SIZES = (
    ("small", "below 32 × 32 pixels"),
    ("medium", "32 × 32 to 96 × 96"),
    ("large", "above 96 × 96"),
)
LARGEST_MATRIX = 40
"""Classes up to which a confusion matrix can be read."""
BAR_WIDTH = 7.0  # em of a full bar


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        title: Heading.
        html: What follows it.
    """

    title: str
    html: str


def pyramid_section(config: PIIPConfig) -> Section:
    """Return the explanation of the network."""
    network = build_on_meta(config)
    params = [
        sum(p.numel() for p in network.branch(index).parameters()) / 1e6
        for index in range(config.num_branches)
    ]
    widths = [network.branch(index).dims[-1] for index in range(config.num_branches)]
    text = (
        "An image pyramid costs much because every size passes through the same network. Here the network grows as "
        "the image shrinks: a small network reads the largest image and keeps its detail, a large one reads the "
        "smallest and understands it. After every few blocks neighbouring branches exchange features."
    )
    caption = (
        f"From left to right: the image at {config.num_branches} sizes (sides in pixels), the branches with their "
        f"blocks, {config.num_interactions} rounds of interaction (dashed), merging, and the maps that the "
        "head reads."
    )
    return Section(
        "The inverted pyramid",
        f"<p>{text}</p><figure>{pyramid_figure(config, params, widths)}<figcaption>{caption}</figcaption></figure>",
    )


def metrics_section(results: Mapping[str, Any]) -> Section | None:
    """Return the metrics of the best epoch: overall, by class and, of detectors, by object size."""
    if isinstance(results.get("segmentation"), Mapping):
        return _segmentation_section(results["segmentation"], results.get("epoch", "?"))
    if isinstance(results.get("classification"), Mapping):
        return _classification_section(results["classification"], results.get("epoch", "?"))
    if isinstance(results.get("answers"), Mapping):
        return _answers_section(results["answers"], results.get("epoch", "?"))
    scores = {kind: results[kind] for kind in ("mask", "box") if isinstance(results.get(kind), Mapping)}
    if not scores:
        return None
    kinds = list(scores)
    overall = [
        [name, *(percent(scores[kind][key]) for kind in kinds)]
        for name, key in (
            ("AP", "AP"),
            ("AP at IoU 0.5", "AP50"),
            ("AP at IoU 0.75", "AP75"),
            ("average recall", "AR"),
        )
    ]
    sizes = [
        [f"{name} ({range_})", *(percent(scores[kind][f"AP_{name}"]) for kind in kinds)]
        for name, range_ in SIZES
    ]
    first = scores[kinds[0]]["classes"]
    classes = [
        [name, *(percent(scores[kind]["classes"][name]["AP"]) for kind in kinds), bar(first[name]["AP"])]
        for name in sorted(first, key=lambda name: -(first[name]["AP"] or 0))
    ]
    html = (
        f"<p>COCO average precision of the best epoch ({results.get('epoch', '?')}), in percent.</p>"
        '<div class="columns">'
        f"<div><h3>Overall</h3>{table(['', *kinds], overall)}</div>"
        f"<div><h3>By object size</h3>{table(['objects', *kinds], sizes)}</div></div>"
        f"<h3>By class</h3>{table(['class', *kinds, ''], classes)}"
    )
    return Section("How well it does", html)


def _segmentation_section(scores: Mapping[str, Any], epoch: object) -> Section:
    overall = [
        ["mean IoU", percent(scores["mIoU"])],
        ["mean accuracy of the classes", percent(scores["mAcc"])],
        ["pixels found", percent(scores["aAcc"])],
    ]
    by_class = scores["classes"]
    classes = [
        [name, percent(by_class[name]["IoU"]), percent(by_class[name]["Acc"]), bar(by_class[name]["IoU"])]
        for name in sorted(by_class, key=lambda name: -(by_class[name]["IoU"] or 0))
    ]
    html = (
        f"<p>Intersection over union and accuracy of the best epoch ({epoch}), in percent.</p>"
        f"{table(['', ''], overall)}<h3>By class</h3>{table(['class', 'IoU', 'accuracy', ''], classes)}"
    )
    return Section("How well it does", html)


def _answers_section(scores: Mapping[str, Any], epoch: object) -> Section:
    names = {
        "accuracy": "accuracy (of TextVQA's kind: soft, by how many people agree)",
        "exact_match": "answers that somebody gave",
        "precision": "precision of yes",
        "recall": "recall of yes",
        "f1": "F1 of yes",
        "yes_ratio": "share of yes among the answers",
        "unclear": "answers that are neither yes nor no",
    }
    if "precision" in scores:
        names["accuracy"] = "questions answered rightly"
    if "loss" in scores:
        names["accuracy"] = "tokens of true answers that the model found the likeliest"
    rows = [[label, percent(scores[name])] for name, label in names.items() if name in scores]
    counted = f"{scores['tokens']:,} tokens" if "loss" in scores else f"{scores['questions']:,} questions"
    loss = f" Loss of a token: {scores['loss']:.3f}." if "loss" in scores else ""
    html = f"<p>The best epoch ({epoch}) on {counted}, in percent.{loss}</p>{table(['', ''], rows)}"
    return Section("How well it does", html)


def _classification_section(scores: Mapping[str, Any], epoch: object) -> Section:
    by_class = scores["classes"]
    classes = [
        [name, percent(by_class[name]["Acc"]), bar(by_class[name]["Acc"])]
        for name in sorted(by_class, key=lambda name: -(by_class[name]["Acc"] or 0))
    ]
    html = (
        f"<p>Accuracy of the best epoch ({epoch}) in percent: {percent(scores['top1'])}, among the five most "
        f"probable classes {percent(scores['top5'])}.</p>"
        f"<h3>By class</h3>{table(['class', 'accuracy', ''], classes)}"
    )
    if len(by_class) <= LARGEST_MATRIX:
        matrix = confusion_figure(list(by_class), scores["confusion"])
        caption = "Images of each class (rows) and what they were taken for (columns), in percent of the row."
        html += f"<h3>What is taken for what</h3><figure>{matrix}<figcaption>{caption}</figcaption></figure>"
    return Section("How well it does", html)


def cost_section(folder: RunFolder) -> Section | None:
    """Return what one image costs, part by part, counted from what the network executes."""
    height, width = prepared_size(folder.model)
    cost = saved_cost(folder.model, (height, width))
    heading, *rows = cost.to_rows()
    alone = " The network alone, without its language model." * is_llava(folder.model)
    html = (
        f"<p>One image of {width} × {height} pixels.{alone} {escape(cost.counted)}</p>"
        f"{table(heading, rows, total=True, wide=True)}"
    )
    return Section("What it costs", html)


def table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False, wide: bool = False
) -> str:
    """Return an HTML table; cells that begin with ``<`` are taken as HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heading)
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{cell if cell.startswith('<span') else escape(cell)}</td>" for cell in row)
        last = ' class="total"' if total and number == len(rows) - 1 else ""
        body += f"<tr{last}>{cells}</tr>"
    return (
        f"<table{' class=wide' if wide else ''}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def bar(share: float | None) -> str:
    """Return a bar for a number between 0 and 1."""
    return f'<span class="bar" style="width:{BAR_WIDTH * (share or 0):.2f}em"></span>'


def percent(value: float | None) -> str:
    """Return a number between 0 and 1 in percent."""
    return "-" if value is None else f"{100 * value:.1f}"
