"""Drawing real handwritten digits of many sizes on real photographs, with exact masks."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from piip.errors import DataError, require

Array = NDArray[np.float32]

SMALLEST, LARGEST = 12, 200  # height of a digit in pixels

# Photographs that scikit-image ships in its wheel; the two sets share none.
_PHOTOS = {
    "train": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "hubble_deep_field.jpg",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    "val": ("chelsea.png", "gravel.png", "ihc.png", "moon.png"),
}
_SAMPLES = {"train": "flower.jpg", "val": "china.jpg"}  # of scikit-learn
_VAL_SHARE = 5  # one digit in five is kept for validation

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_COUNT = (6, 18)
_ATTEMPTS = 12
_MAX_OVERLAP = 0.08


@dataclass(frozen=True)
class Scene:
    """One picture.

    Attributes:
        image: ``(h, w, 3)`` uint8 RGB.
        labels: Digit of each object.
        masks: ``(h, w)`` bool, the visible pixels of each object.
    """

    image: NDArray[np.uint8]
    labels: list[int]
    masks: list[NDArray[np.bool_]]


@dataclass(frozen=True)
class Material:
    """What the scenes of one split are made of.

    Attributes:
        photos: RGB photographs.
        glyphs: For each of the ten digits, ``(N, 8, 8)`` handwritten samples with values 0 to 1.
    """

    photos: Sequence[Image.Image]
    glyphs: Sequence[Array]


def load_material(split: str) -> Material:
    """Load photographs and digits of ``train`` or ``val``; the two have nothing in common.

    Raises:
        MissingExtraError: scikit-learn or scikit-image is not installed.
        DataError: The installed scikit-image has none of the photographs.
    """
    datasets = require("sklearn.datasets", "digits", "The set of handwritten digits")
    folder = Path(str(require("skimage", "digits", "The set of handwritten digits").__file__)).parent / "data"
    photos = [
        Image.open(folder / name).convert("RGB") for name in _PHOTOS[split] if (folder / name).is_file()
    ]
    photos.append(Image.fromarray(datasets.load_sample_image(_SAMPLES[split])))
    if len(photos) < 2:
        raise DataError(f"No photograph lies in {folder}; reinstall scikit-image.")
    digits = datasets.load_digits()
    # The samples are in order of their writers, so that a cut also keeps most writers apart.
    border = len(digits.target) * (_VAL_SHARE - 1) // _VAL_SHARE
    part = slice(None, border) if split == "train" else slice(border, None)
    images, targets = (digits.images[part] / 16).astype(np.float32), digits.target[part]
    return Material(photos, [images[targets == label] for label in range(10)])


def draw_scene(material: Material, size: int, random: np.random.Generator) -> Scene:
    """Draw one picture.

    Args:
        material: Photographs and digits.
        size: Square root of the area in pixels; the aspect ratio varies from 3:4 to 4:3.
        random: Source of every choice.
    """
    ratio = float(np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))) ** 0.5
    height, width = round(size * ratio), round(size / ratio)
    canvas = _background(material.photos, (height, width), random)
    labels: list[int] = []
    masks: list[NDArray[np.bool_]] = []
    free = np.ones((height, width), bool)
    # Drawn evenly on a logarithmic scale, most are small; the large ones find a place first.
    largest = min(LARGEST, 0.45 * min(height, width))
    sizes = SMALLEST * (largest / SMALLEST) ** random.random(random.integers(*_COUNT, endpoint=True))
    for glyph_height in sorted(map(float, sizes), reverse=True):
        label = int(random.integers(10))
        glyph, rim = _draw_digit(material.glyphs[label], glyph_height, random)
        place = _find_place(rim >= 0.5, free, random)
        if place is None:
            continue
        cover = free[place]  # a later digit lies behind the earlier ones
        canvas[place] = _paint(canvas[place], glyph * cover, rim * cover, random)
        visible = np.zeros((height, width), bool)
        visible[place] = (rim >= 0.5) & cover
        free &= ~visible
        labels.append(label)
        masks.append(visible)
    return Scene(_finish(canvas, random), labels, masks)


def _background(
    photos: Sequence[Image.Image], size: tuple[int, int], random: np.random.Generator
) -> NDArray[np.uint8]:
    """Return a random crop of a random photograph, flipped and exposed anew, ``(h, w, 3)``."""
    photo = photos[int(random.integers(len(photos)))]
    height, width = size
    most = min(photo.width / width, photo.height / height)
    share = most * random.uniform(0.5, 1.0)
    left = random.uniform(0, photo.width - share * width)
    top = random.uniform(0, photo.height - share * height)
    box = (left, top, left + share * width, top + share * height)
    patch = photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if random.random() < 0.5:
        patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    levels = np.linspace(0, 1, 256) ** np.exp(random.uniform(-0.45, 0.45)) * random.uniform(0.8, 1.1)
    table = (np.outer(random.uniform(0.9, 1.1, 3), levels) * 255).clip(0, 255).astype(np.uint8)
    return np.array(patch.point(table.reshape(-1).tolist()))


def _draw_digit(samples: Array, height: float, random: np.random.Generator) -> tuple[Array, Array]:
    """Return the ink of one of the samples and the ink with its rim; most digits have one."""
    ink = _glyph(samples[random.integers(len(samples))], height, random)
    if random.random() < 0.4:
        return ink, ink
    return ink, _grow(ink, max(1.0, height * random.uniform(0.02, 0.06)))


def _glyph(sample: Array, height: float, random: np.random.Generator) -> Array:
    """Return the ink of a digit, 0 to 1 with soft edges, enlarged to ``height`` and slightly turned."""
    columns, rows = np.flatnonzero(sample.max(0) > 0.1), np.flatnonzero(sample.max(1) > 0.1)
    tight = np.pad(sample[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    scale = height / (tight.shape[0] - 1)  # about half of the blank rows vanishes at the threshold
    wide = max(3, round(tight.shape[1] * scale * random.uniform(0.85, 1.1)))
    ink = Image.fromarray(tight).resize((wide, round(tight.shape[0] * scale)), Image.Resampling.BICUBIC)
    ink = ink.rotate(random.uniform(-14, 14), Image.Resampling.BICUBIC, expand=True)
    margin = 2 + round(0.07 * height)
    values = np.pad(np.asarray(ink, np.float32), margin)
    return ((values - np.float32(0.47)) * np.float32(max(1.5, scale / 1.5)) + np.float32(0.5)).clip(0, 1)


def _grow(ink: Array, radius: float) -> Array:
    """Return the ink grown by ``radius`` pixels, its edge still soft."""
    blurred = Image.fromarray((ink * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    values = np.asarray(blurred, np.float32) / 255
    return np.maximum(ink, ((values - np.float32(0.16)) * np.float32(4) + np.float32(0.5)).clip(0, 1))


def _find_place(
    mask: NDArray[np.bool_], free: NDArray[np.bool_], random: np.random.Generator
) -> tuple[slice, slice] | None:
    """Return a window of ``free`` that the mask covers with little overlap, or None."""
    height, width = mask.shape
    if height > free.shape[0] or width > free.shape[1]:
        return None
    for _ in range(_ATTEMPTS):
        top = int(random.integers(free.shape[0] - height + 1))
        left = int(random.integers(free.shape[1] - width + 1))
        place = (slice(top, top + height), slice(left, left + width))
        if (mask & ~free[place]).sum() <= _MAX_OVERLAP * mask.sum() and free[place].mean() > 0.8:
            return place
    return None


def _paint(
    window: NDArray[np.uint8], glyph: Array, rim: Array, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Return a window ``(h, w, 3)`` of the picture with a digit blended in, in colours that stand out."""
    blend = window.astype(np.float32) / 255
    behind = float((blend[rim >= 0.5] @ _LUMINANCE).mean())
    contrast = float(random.uniform(0.3, 0.75))
    brighter = behind < contrast or (behind + contrast < 1 and random.random() < 0.5)
    tone = min(1.0, behind + contrast) if brighter else behind - contrast
    tones = np.linspace(0, 1, 21)
    edge = tones[np.minimum(abs(tones - tone), abs(tones - behind)).argmax()]  # far from both: a visible rim
    first, last = random.uniform(0.9, 1.1, 2)
    shade = np.linspace(first, last, len(blend), dtype=np.float32)[:, None, None]
    opacity = np.float32(random.uniform(0.85, 1.0))
    for ink, colour in ((rim, _colour(edge, random)), (glyph, _colour(tone, random) * shade)):
        alpha = (ink * opacity)[..., None]
        blend += alpha * (colour - blend)
    return (blend * 255).clip(0, 255).astype(np.uint8)


def _colour(tone: float, random: np.random.Generator) -> Array:
    """Return a colour of random hue and saturation whose brightness is ``tone``."""
    hue = np.array(colorsys.hsv_to_rgb(random.random(), 1.0, 1.0))
    chroma = hue - hue @ _LUMINANCE
    # The furthest that the colour may move from grey before a channel leaves 0 to 1.
    reach = np.where(chroma > 0, 1 - tone, tone) / np.maximum(abs(chroma), 1e-6)
    return (tone + min(1.0, reach.min()) * random.uniform(0.2, 1) * chroma).astype(np.float32)


def _finish(canvas: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Return the picture with the slight blur and noise that a camera gives everything alike."""
    blurred = Image.fromarray(canvas).filter(ImageFilter.GaussianBlur(float(random.uniform(0, 0.6))))
    noise = random.standard_normal(canvas.shape[:2], dtype=np.float32) * np.float32(random.uniform(0, 4))
    return (np.asarray(blurred, np.int16) + noise.astype(np.int16)[..., None]).clip(0, 255).astype(np.uint8)
