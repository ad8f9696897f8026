"""Draw segmentations: translucent classes with contours, and a legend beside the image."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from piip.data.labels import BACKGROUND
from piip.tasks.detection.draw import Colour, class_colour

MIN_SIDE = 800  # smaller images are enlarged until their longer side has this many pixels
OPACITY = 0.5
LEGEND_ENTRIES = 24
_PAPER, _INK = (255, 255, 255), (28, 36, 48)


def draw(image: Image.Image, labels: Tensor, class_names: tuple[str, ...]) -> Image.Image:
    """Draw the class of every pixel over a copy of the image.

    Args:
        image: The original image.
        labels: (H, W) uint8; numbers without a class, and the background, leave the image as it is.
        class_names: Name of each label.
    """
    factor = max(1.0, MIN_SIDE / max(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    numbers = Image.fromarray(labels.numpy().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    values = np.asarray(numbers)
    colours = np.array([class_colour(label) for label in range(256)], np.uint8)
    shaded = np.array([name != BACKGROUND for name in class_names] + [False] * (256 - len(class_names)))
    classed = Image.fromarray((shaded[values] * round(255 * OPACITY)).astype(np.uint8))
    canvas.paste(Image.fromarray(colours[values]), (0, 0), classed)
    # Where the smallest and the largest number nearby differ, classes meet.
    edges = np.asarray(numbers.filter(ImageFilter.MaxFilter(3))) != np.asarray(
        numbers.filter(ImageFilter.MinFilter(3))
    )
    canvas.paste(_PAPER, (0, 0), Image.fromarray((edges * 160).astype(np.uint8)))
    counts = np.bincount(values.ravel(), minlength=256)[: len(class_names)]
    shown = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    return _with_legend(canvas, [(class_colour(k), class_names[k]) for k in shown[:LEGEND_ENTRIES]])


def palette() -> list[int]:
    """Return the colours of all labels as a palette of 256; no class is black."""
    return [value for label in range(255) for value in class_colour(label)] + [0, 0, 0]


def _with_legend(canvas: Image.Image, entries: list[tuple[Colour, str]]) -> Image.Image:
    text = max(13, round(max(canvas.size) / 56))
    font = ImageFont.load_default(text)
    line, pad = round(text * 1.6), text
    pen = ImageDraw.Draw(canvas)
    width = round(max((pen.textlength(name, font=font) for _, name in entries), default=0))
    page = Image.new(
        "RGB",
        (canvas.width + width + round(3.2 * pad), max(canvas.height, line * len(entries) + pad)),
        _PAPER,
    )
    page.paste(canvas)
    pen = ImageDraw.Draw(page)
    for row, (colour, name) in enumerate(entries):
        left, middle = canvas.width + pad, pad / 2 + line * (row + 0.5)
        pen.rounded_rectangle(
            (left, middle - text / 2, left + text, middle + text / 2), text // 5, fill=colour
        )
        pen.text((left + 1.5 * text, middle), name, fill=_INK, font=font, anchor="lm")
    return page
