"""Draw detections: translucent masks with contours, boxes and labels, readable at any image size."""

import colorsys
from typing import NamedTuple

from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageFont

from piip.tasks.detection.boxes import area
from piip.tasks.detection.masks import decode_masks
from piip.tasks.detection.result import Instances

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

MIN_SIDE = 1000  # smaller images are enlarged until their longer side has this many pixels
CROWD = 30  # with more objects than this the labels are smaller
MASK_OPACITY = 0.40
MAX_COVERED = 0.1  # of a label may lie on others
HUE_STEP = 0.618034  # the golden ratio keeps the hues of any number of classes apart


class _Style(NamedTuple):
    """Sizes in pixels that suit a canvas."""

    line: int
    padding: int
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont


class _Mark(NamedTuple):
    """One object on the canvas."""

    box: Rectangle
    colour: Colour
    text: str


def class_colour(label: int) -> Colour:
    """Return a vivid colour of its own for every class number."""
    hue = (0.45 + label * HUE_STEP) % 1
    saturation, value = ((0.75, 1.0), (0.95, 0.6), (0.45, 1.0))[(label // 8) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    image: Image.Image, instances: Instances, class_names: tuple[str, ...], scores: bool = True
) -> Image.Image:
    """Draw objects onto a copy of the image, the best on top.

    Args:
        image: The original image.
        instances: The objects, in its pixels.
        class_names: Name of each label.
        scores: Write scores behind the names.
    """
    factor = max(1.0, MIN_SIDE / max(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    style = _style(size, len(instances))
    order = area(instances.boxes).argsort(descending=True).tolist()
    if instances.masks is not None:
        for i in order:
            mask = Image.fromarray(decode_masks([instances.masks[i]], instances.original_size)[0])
            _paint_mask(canvas, mask, class_colour(int(instances.labels[i])), style)
    marks = _marks(instances, class_names, factor, scores)
    pen = ImageDraw.Draw(canvas)
    for i in order:
        thin = style.line if instances.masks is None else max(style.line // 2, 1)
        _draw_box(pen, marks[i], thin, style.line)
    taken: list[Rectangle] = []
    for mark in marks:
        place = _place(pen, mark, style, size, taken)
        if place is not None:
            taken.append(place)
            _draw_chip(pen, mark, place, style)
    return canvas


def _style(size: tuple[int, int], count: int) -> _Style:
    unit = (size[0] * size[1]) ** 0.5
    text = max(11, round(unit / (48 if count <= CROWD else 72)))
    return _Style(max(2, round(unit / 280)), max(2, text // 4), ImageFont.load_default(text))


def _marks(instances: Instances, class_names: tuple[str, ...], factor: float, scores: bool) -> list[_Mark]:
    boxes = (instances.boxes * factor).tolist()
    entries = zip(boxes, instances.labels.tolist(), instances.scores.tolist(), strict=True)
    return [
        _Mark(
            (box[0], box[1], box[2], box[3]),
            class_colour(label),
            class_names[label] + (f" {score:.2f}" if scores else ""),
        )
        for box, label, score in entries
    ]


def _paint_mask(canvas: Image.Image, mask: Image.Image, colour: Colour, style: _Style) -> None:
    """Tint the pixels of a mask and draw its contour, both smooth at any enlargement."""
    bounds = mask.getbbox()
    if bounds is None:
        return
    factor = canvas.width / mask.width, canvas.height / mask.height
    # Two pixels around the object leave room for its contour.
    left, top = max(bounds[0] - 2, 0), max(bounds[1] - 2, 0)
    right, bottom = min(bounds[2] + 2, mask.width), min(bounds[3] + 2, mask.height)
    corner = round(left * factor[0]), round(top * factor[1])
    size = round(right * factor[0]) - corner[0], round(bottom * factor[1]) - corner[1]
    shape = mask.crop((left, top, right, bottom)).convert("L").resize(size, Image.Resampling.BICUBIC)
    reach = 2 * max(style.line - 1, 1) + 1
    contour = ImageChops.subtract(shape, shape.filter(ImageFilter.MinFilter(reach)))
    tint = shape.point(lambda value: round(value * MASK_OPACITY))
    canvas.paste(Image.new("RGB", size, colour), corner, ImageChops.lighter(tint, contour))


def _draw_box(pen: ImageDraw.ImageDraw, mark: _Mark, line: int, radius: int) -> None:
    pen.rounded_rectangle(mark.box, radius=radius, outline=mark.colour, width=line)


def _place(
    pen: ImageDraw.ImageDraw, mark: _Mark, style: _Style, size: tuple[int, int], taken: list[Rectangle]
) -> Rectangle | None:
    """Find room for a label: above the box, inside its top, below it, inside its bottom.

    Returns:
        Where it goes, or None if better detections have taken all its places; its colour still tells the class.
    """
    width = pen.textlength(mark.text, font=style.font) + 2 * style.padding
    height = _text_height(style) + 2 * style.padding
    left = min(max(mark.box[0], 0), max(size[0] - width, 0))
    for top in (mark.box[1] - height, mark.box[1], mark.box[3], mark.box[3] - height):
        top = min(max(top, 0), max(size[1] - height, 0))
        place = (left, top, left + width, top + height)
        if sum(_overlap(place, other) for other in taken) <= MAX_COVERED * width * height:
            return place
    return None


def _overlap(a: Rectangle, b: Rectangle) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _draw_chip(pen: ImageDraw.ImageDraw, mark: _Mark, place: Rectangle, style: _Style) -> None:
    pen.rounded_rectangle(place, radius=style.padding, fill=mark.colour)
    red, green, blue = mark.colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    middle = (place[1] + place[3]) / 2
    ink = ImageColor.getrgb("#111" if bright else "#fff")
    pen.text((place[0] + style.padding, middle), mark.text, fill=ink, font=style.font, anchor="lm")


def _text_height(style: _Style) -> float:
    box = style.font.getbbox("Ag")
    return box[3] - box[1]
