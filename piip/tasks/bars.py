"""Draw an image beside bars of what it may show."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_HEIGHT, _TEXT, _BAR = 420, 20, 260
_INK, _PAPER, _COLOUR, _RIGHT, _GROUND = "#1c2430", "#ffffff", "#1f6f8b", "#5b8c5a", "#e9edf1"


def draw_bars(image: Image.Image, shares: Sequence[tuple[str, float]], truth: str | None) -> Image.Image:
    """Return the image with a labelled bar for every share, the right class in green, below them if it is none.

    Args:
        image: The original image.
        shares: Names and shares from 0 to 1, the largest first.
        truth: Name of the right class; None = unknown.
    """
    picture = image.convert("RGB")
    picture = picture.resize(
        (max(1, round(image.width * _HEIGHT / image.height)), _HEIGHT), Image.Resampling.LANCZOS
    )
    font = ImageFont.load_default(_TEXT)
    page = Image.new("RGB", (picture.width + _BAR + 5 * _TEXT, _HEIGHT), _PAPER)
    page.paste(picture)
    pen = ImageDraw.Draw(page)
    left = picture.width + 2 * _TEXT
    if truth is not None and truth not in {name for name, _ in shares}:
        pen.text((left, _HEIGHT - _TEXT), f"in truth: {truth}", fill=_RIGHT, font=font, anchor="ls")
    line = (_HEIGHT - 2 * _TEXT * (truth is not None)) / max(len(shares), 1)
    for row, (name, share) in enumerate(shares):
        top = line * row + (line - 3 * _TEXT) / 2
        pen.text((left, top), name, fill=_INK, font=font)
        ends = (left, top + 1.5 * _TEXT, left + _BAR, top + 2.3 * _TEXT)
        pen.rounded_rectangle(ends, 4, fill=_GROUND)
        colour = _RIGHT if name == truth else _COLOUR
        pen.rounded_rectangle((ends[0], ends[1], left + max(4.0, _BAR * share), ends[3]), 4, fill=colour)
        pen.text((left + _BAR, top), f"{100 * share:.1f}%", fill=_INK, font=font, anchor="ra")
    return page
