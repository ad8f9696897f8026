"""Drawings as inline SVG: line charts, and the pyramid of a network."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from piip.config import PIIPConfig

INK, SOFT, LINE, PAPER = "#1c2430", "#5d6673", "#e2e5e9", "#fdfdfb"
COLOURS = ("#1f6f8b", "#d1495b", "#c98a1b", "#4d7f4c", "#7d5ba6", "#8a8f98")


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: Label at its end.
        points: (x, y) in data units.
        faint: The same line before smoothing, drawn behind it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    faint: Sequence[tuple[float, float]] = ()


def line_chart(series: Sequence[Series], x_label: str, *, height: int = 250, width: int = 460) -> str:
    """Return a chart with labels at the ends of its lines, so that it needs no legend.

    Args:
        series: Lines; empty ones are left out.
        x_label: What the horizontal axis counts.
        height: Height of the drawing in its own units.
        width: Width of the drawing in its own units.
    """
    shown = [line for line in series if line.points]
    if not shown:
        return ""
    left, right, top, bottom = 40, 92, 12, 34
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points]
    ticks = nice_ticks(min(0.0, *ys), max(ys))
    low, high, start, end = ticks[0], ticks[-1], min(xs), max(max(xs), min(xs) + 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - start) / (end - start) * (width - left - right)
        return across, height - bottom - (y - low) / (high - low) * (height - top - bottom)

    def path(points: Sequence[tuple[float, float]], style: str) -> str:
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in points if low <= p[1] <= high))
        return f'<polyline fill="none" points="{steps}" {style}/>'

    parts = []
    for tick in ticks:
        y = place(start, tick)[1]
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{LINE}"/>')
        parts.append(_text(left - 8, y + 3.5, f"{tick:g}", anchor="end"))
    for x in sorted({min(xs), max(xs)}):
        parts.append(_text(place(x, low)[0], height - bottom + 16, f"{x:,.0f}", anchor="middle"))
    parts.append(_text((left + width - right) / 2, height - 4, x_label, anchor="middle"))
    labels = _spaced([place(*line.points[-1])[1] for line in shown], 13, top, height - bottom)
    for line, colour, y in zip(shown, COLOURS * len(shown), labels, strict=False):
        if line.faint:
            parts.append(path(line.faint, f'stroke="{colour}" stroke-width="0.8" opacity="0.3"'))
        parts.append(path(line.points, f'stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"'))
        if len(line.points) == 1:  # a line of one point would not be seen
            x, height_of = place(*line.points[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{height_of:.1f}" r="3" fill="{colour}"/>')
        parts.append(_text(width - right + 7, y + 3.5, line.name, colour=colour))
    return _svg(width, height, parts, f"Chart of {', '.join(line.name for line in shown)}")


def pyramid_figure(
    config: PIIPConfig, params: Sequence[float], widths: Sequence[int], cells: str = "#d8e4e8"
) -> str:
    """Return a drawing of a network: the smallest image goes to the largest branch.

    Args:
        config: The network.
        params: Millions of parameters of every branch, branch 1 first.
        widths: Channels of every branch.
        cells: Colour of the images' grids.
    """
    order = sorted(range(config.num_branches), key=lambda i: -config.branches[i].image_size)
    row, width = 116, 760
    parts: list[str] = []
    for place in range(len(order) - 1):
        parts += _links(64 + place * row, row, len(config.branches[0].interaction_indexes))
    largest, heaviest = config.image_size, max(params)
    for place, index in enumerate(order):
        branch, middle = config.branches[index], 64 + place * row
        side = 96 * branch.image_size / largest
        colour = COLOURS[place % len(COLOURS)]
        parts += _image(92, middle, side, max(round(9 * branch.image_size / largest), 2), cells)
        parts.append(_arrow(150, middle, 204, middle))
        tall = 26 + 62 * math.sqrt(params[index] / heaviest)
        parts += _branch(212, middle, tall, len(branch.interaction_indexes), colour)
        parts.append(_text(30, middle + 4, f"{branch.image_size}", anchor="end", size=13, colour=INK))
        label = f"{widths[index]} channels, {branch.depth} blocks, {params[index]:.1f} M parameters"
        parts.append(_text(212, middle - tall / 2 - 7, label, size=12, colour=colour, over=True))
        parts.append(_arrow(536, middle, 584, 64 + (len(order) - 1) * row / 2, bend=True))
    centre = 64 + (len(order) - 1) * row / 2
    parts.append(f'<circle cx="596" cy="{centre}" r="11" fill="none" stroke="{INK}"/>')
    parts.append(_text(596, centre + 4.5, "+", anchor="middle", size=15, colour=INK))
    parts += _levels(640, centre, max(len(config.merging.pyramid_levels), 1))
    return _svg(width, row * len(order) + 24, parts, "The network: images, branches, interactions, merging")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that span low to high.

    Args:
        low: Smallest value.
        high: Largest value.
        count: About how many steps.
    """
    span = max(high - low, 1e-9) / count
    magnitude = 10 ** math.floor(math.log10(span))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 10) for number in range(first, max(last, first + 1) + 1)]


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: float = 11,
    colour: str = SOFT,
    over: bool = False,
) -> str:
    """Return a text; ``over`` other lines it has an edge in the colour of the page."""
    halo = f' stroke="{PAPER}" stroke-width="5" paint-order="stroke"' if over else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}"{halo}>'
        f"{escape(text)}</text>"
    )


def _spaced(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart until they do not overlap, keeping their order and inside the drawing."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    moved[order[-1]] = min(moved[order[-1]], high)
    for after, before in itertools.pairwise(reversed(order)):
        moved[before] = min(moved[before], moved[after] - gap)
    return [max(place, low) for place in moved]


def _image(x: float, y: float, side: float, count: int, colour: str) -> list[str]:
    left, top, cell = x - side / 2, y - side / 2, side / count
    lines = [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}" fill="{colour}" rx="2"/>'
    ]
    for k in range(1, count):
        at = k * cell
        lines.append(
            f'<path d="M{left + at:.1f} {top:.1f}v{side:.1f}M{left:.1f} {top + at:.1f}h{side:.1f}" '
            f'stroke="{PAPER}" stroke-width="1.2"/>'
        )
    return lines


def _branch(x: float, y: float, tall: float, blocks: int, colour: str) -> list[str]:
    shown = min(blocks, 6)
    step = 324 / shown
    return [
        f'<rect x="{x + k * step:.1f}" y="{y - tall / 2:.1f}" width="{step - 12:.1f}" height="{tall:.1f}" rx="3" '
        f'fill="{colour}" opacity="{0.72 + 0.28 * k / max(shown - 1, 1):.2f}"/>'
        for k in range(shown)
    ]


def _links(y: float, row: float, blocks: int) -> list[str]:
    shown = min(blocks, 6)
    step = 324 / shown
    xs = [212 + (k + 1) * step - 6 for k in range(shown)]
    return [
        f'<path d="M{x:.1f} {y + 10:.1f}V{y + row - 10:.1f}" stroke="{INK}" stroke-width="1.1" '
        'stroke-dasharray="2.5 2.5"/>'
        for x in xs
    ]


def _arrow(x1: float, y1: float, x2: float, y2: float, *, bend: bool = False) -> str:
    line = f"M{x1} {y1}C{(x1 + x2) / 2} {y1} {(x1 + x2) / 2} {y2} {x2} {y2}" if bend else f"M{x1} {y1}H{x2}"
    return f'<path d="{line}" fill="none" stroke="{SOFT}" stroke-width="1.1"/>'


def _levels(x: float, y: float, count: int) -> list[str]:
    sides = [64, 46, 32, 22][:count]
    total = sum(sides) + 12 * (count - 1)
    top, parts = y - total / 2, [_arrow(607, y, x - 6, y)]
    for side in sides:
        parts.append(
            f'<rect x="{x}" y="{top:.1f}" width="{side}" height="{side}" rx="2" fill="none" stroke="{INK}"/>'
        )
        top += side + 12
    return parts


def confusion_figure(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return a confusion matrix: the darker a cell, the larger its share of the row.

    Args:
        names: Class names.
        counts: Numbers of each class (rows) that were taken for each class (columns).
    """
    cell, top = 30, 12
    left = round(12 + 6.4 * max(len(name) for name in names))
    side = cell * len(names)
    parts = []
    for row, line in enumerate(counts):
        y = top + row * cell
        parts.append(_text(left - 8, y + cell / 2 + 4, names[row], anchor="end"))
        parts.append(
            f'<text transform="translate({left + row * cell + cell / 2 + 4:.0f} {top + side + 8}) rotate(60)" '
            f'font-size="11" fill="{SOFT}">{escape(names[row])}</text>'
        )
        for column, count in enumerate(line):
            share = count / max(sum(line), 1)
            colour = COLOURS[0] if row == column else COLOURS[1]
            x = left + column * cell
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="3" fill="{colour}" '
                f'fill-opacity="{0.06 + 0.6 * share:.2f}"/>'
            )
            if share >= 0.005:
                place = (x + cell / 2 - 1, y + cell / 2 + 3)
                parts.append(_text(*place, f"{100 * share:.0f}", anchor="middle", colour=INK))
    width = left + side + 90
    return _svg(width, top + side + left, parts, "Confusion matrix")
