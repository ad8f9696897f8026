"""How images are prepared and changed at random, as descriptions; reading them needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from piip.described import Described
from piip.errors import ConfigError

Method = Literal["fast", "exact", "antialias"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ImageConfig(Described):
    """How an image file becomes the network's input.

    Attributes:
        mean: Mean of red, green and blue in grey levels (0 to 255), subtracted first.
        std: Divisor of red, green and blue in grey levels.
        scale: Largest long and short side in pixels; the aspect ratio is kept.
        resize: ``fast`` for models of one's own, ``exact`` for converted ones, ``antialias`` for sets
            whose images are much larger than ``scale``. Classifiers always resize bicubically.
        crop_ratio: Share of the short side that classifiers see: the image is resized so that the square of side
            ``scale`` in its middle is that share. Only for classifiers.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    scale: tuple[int, int] = (1333, 800)
    resize: Method = "fast"
    crop_ratio: float = 1.0

    def check(self) -> None:
        """Refuse numbers that no image can have."""
        self.check_range("crop_ratio", 0, 1, above=True, closed=True)
        self.check_range("std", 0, above=True)
        self.check_range("scale", 1)

    def scaled(self, factor: float) -> "ImageConfig":
        """Return the same preparation at a scale times a factor, rounded to whole pixels."""
        long, short = (max(1, int(side * factor + 0.5)) for side in self.scale)
        return self.replace(scale=(long, short))


@dataclass(frozen=True)
class AugmentedTest(Described, called="test"):
    """How often, and how, an image is looked at in prediction and evaluation (test-time augmentation).

    What is seen in all views is merged: boxes by non-maximum suppression, masks and classes by averaging
    probabilities. The default is the image itself, once.

    Attributes:
        scales: Factors of the image scale (`ImageConfig.scale`), such as ``(0.75, 1.0, 1.25)``.
        flip: Whether the image is also looked at mirrored left to right, at every scale.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def check(self) -> None:
        """Refuse to look nowhere, or at images without size."""
        if not self.scales:
            raise ConfigError("test.scales is empty; give at least one factor, such as 1.0.")
        self.check_range("scales", 0, above=True)


@dataclass(frozen=True)
class AugmentConfig(Described):
    """Random changes of the training images.

    Attributes:
        policy: ``resize`` brings the image to one of ``scales``; ``detr`` is "DETR-ms": a random resize,
            half of the time after a random crop; ``crop``, for segmenters, resizes by a random factor and cuts a
            square of side ``crop`` out, filled up where the image is smaller.
        flip: Probability of a horizontal flip.
        scales: (long, short) limits of which one is drawn; empty for the test scale. Only for ``resize``.
        factor: What the sides of "DETR-ms" (480 to 800, at most 1333) are multiplied by. Only for ``detr``.
        crop: Side of a last random crop in pixels; smaller images stay as they are.
        ratios: Smallest and largest random factor of the test scale. Only for ``crop``.
        largest_share: A crop is cut again, up to ten times, while one class covers more. Only for ``crop``.
        photometric: Change brightness, contrast, saturation and hue at random. Only for ``crop``.
        auto_augment: timm's name of a policy, such as ``rand-m9-mstd0.5-inc1``. This and the following are for
            classifiers, which always get a random resized crop.
        color_jitter: Strength of random colour changes, where there is no ``auto_augment``.
        random_erasing: Probability of blanking a rectangle out.
        mixup: Strength (alpha) of mixing pairs of images; 0 = none.
        cutmix: Strength (alpha) of pasting a rectangle of one image into another; 0 = none.
        label_smoothing: Share of the target that is spread over all classes.
    """

    policy: Literal["resize", "detr", "crop"] = "resize"
    flip: float = 0.5
    scales: tuple[tuple[int, int], ...] = ()
    factor: float = 1.0
    crop: int | None = None
    ratios: tuple[float, float] = (0.5, 2.0)
    largest_share: float = 0.75
    photometric: bool = False
    auto_augment: str = ""
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def check(self) -> None:
        """Refuse numbers that no image can have."""
        self.check_range("flip", 0, 1, closed=True)
        self.check_range("factor", 0, above=True)
        self.check_range("crop", 1)
        self.check_range("ratios", 0, above=True)
        for name in ("color_jitter", "mixup", "cutmix"):
            self.check_range(name, 0)
        self.check_range("random_erasing", 0, 1, closed=True)
        self.check_range("label_smoothing", 0, 1)
        self.check_range("largest_share", 0, 1, above=True, closed=True)
        if self.ratios[0] > self.ratios[1]:
            raise ConfigError(f"ratios is {self.ratios}; give the smaller factor first.")
        if any(min(scale) < 1 for scale in self.scales):
            raise ConfigError(
                f"scales holds sides below one pixel: {self.scales}; give long and short sides."
            )

    @classmethod
    def grid(cls, side: int, flip: float = 0.5) -> "AugmentConfig":
        """Resize into ``(side, side * 800 // 1333)`` and flip: the released "grid" recipes."""
        return cls(flip=flip, scales=((side, side * 800 // 1333),))

    @classmethod
    def multi_scale(cls, short_sides: Sequence[int], long_side: int, flip: float = 0.5) -> "AugmentConfig":
        """Resize to a random short side with a limited long side, and flip."""
        return cls(flip=flip, scales=tuple((long_side, side) for side in short_sides))

    @classmethod
    def detr_multiscale(
        cls, factor: float = 1.0, crop: int | None = 1024, flip: float = 0.5
    ) -> "AugmentConfig":
        """Return the released "DETR-ms" recipe (HEADS 9)."""
        return cls("detr", flip=flip, factor=factor, crop=crop)
