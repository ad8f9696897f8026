"""Sentences drawn onto photographs, with every choice taken from one random state."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageFont

TRAIN_PHOTOS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "brick.png",
    "gravel.png",
    "motorcycle_left.png",
    "moon.png",
)
TEST_PHOTOS = ("rocket.jpg", "retina.jpg", "ihc.png", "hubble_deep_field.jpg", "grass.png")
"""Photographs of scikit-image on which nothing is written; those of the questions are never trained on."""
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralItalic",
)
TEST_FONTS = ("DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "DejaVuSansMono-Oblique", "STIXGeneralBol")
"""Fonts that come with matplotlib; those of the questions are never trained on."""

_PHOTO_CONTRAST = 0.4
_PHOTO_BRIGHTNESS = 0.6
_LEAST_CONTRAST = 100.0  # between the text's brightness and the photograph's, of 255
_MARGIN = 4


@dataclass(frozen=True)
class Style:
    """What sentences may look like.

    Attributes:
        side: Side of the images in pixels.
        photos: File names of scikit-image.
        fonts: Names of matplotlib's fonts.
    """

    side: int
    photos: tuple[str, ...]
    fonts: tuple[str, ...]


def draw(
    sentence: str, em: int, style: Style, random_state: random.Random, spread: float = 1.0
) -> Image.Image:
    """Return a square RGB image of a photograph with a sentence on it.

    Args:
        sentence: What is written, on as many lines as it needs.
        em: Size of the font in pixels.
        style: What it may look like.
        random_state: Decides photograph, crop, font, colour and place.
        spread: How far from the centre the sentence may be, 1 = anywhere in the image.
    """
    image = _background(style, random_state)
    font = _font(random_state.choice(style.fonts), em)
    text = "\n".join(_lines(sentence.split(), font, style.side - 2 * _MARGIN))
    canvas = ImageDraw.Draw(image)
    left, top, right, bottom = canvas.multiline_textbbox((0, 0), text, font=font, spacing=em // 4)
    x, y = (
        _MARGIN + (0.5 + spread * random_state.uniform(-0.5, 0.5)) * max(style.side - 2 * _MARGIN - length, 0)
        for length in (right - left, bottom - top)
    )
    box = (int(x), int(y), int(x + right - left), int(y + bottom - top))
    behind = np.asarray(image.crop(box).convert("L"), np.float32).mean()
    colour = _colour(float(behind), random_state)
    canvas.multiline_text((round(x - left), round(y - top)), text, fill=colour, font=font, spacing=em // 4)
    return image


def _background(style: Style, random_state: random.Random) -> Image.Image:
    """Return a crop of a photograph, flipped or not, darker and flatter, so that small letters stay letters."""
    photo = _photo(random_state.choice(style.photos))
    shortest = min(photo.size)
    side = round(shortest * random_state.uniform(0.35, 0.9))
    x, y = (random_state.randint(0, length - side) for length in photo.size)
    crop = photo.resize((style.side, style.side), Image.Resampling.BILINEAR, (x, y, x + side, y + side))
    if random_state.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(crop, np.float32)
    mean = pixels.mean(axis=(0, 1))
    dimmed = (mean + (pixels - mean) * _PHOTO_CONTRAST) * _PHOTO_BRIGHTNESS
    return Image.fromarray(dimmed.clip(0, 255).astype(np.uint8))


def _colour(behind: float, random_state: random.Random) -> tuple[int, int, int]:
    """Return a colour whose brightness differs enough from what is behind it."""
    while True:
        red, green, blue = (random_state.randint(0, 255) for _ in range(3))
        if 0.299 * red + 0.587 * green + 0.114 * blue - behind >= _LEAST_CONTRAST:
            return red, green, blue


def _lines(words: Sequence[str], font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@cache
def _photo(name: str) -> Image.Image:
    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")


@cache
def _font(name: str, em: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", em)
