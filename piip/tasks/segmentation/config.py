"""The description of a segmenter: everything but its backbone."""

from dataclasses import dataclass
from typing import Literal

from piip.described import Described
from piip.errors import ConfigError

Inference = Literal["slide", "whole"]


@dataclass(frozen=True)
class SegmenterConfig(Described):
    """An UperNet on four maps, with an auxiliary head on the third in training.

    The defaults are the settings of every released checkpoint (HEADS.md sections 0 and 3), but for ``channels``,
    which is 1536 there.

    Attributes:
        classes: Class names in label order.
        in_channels: Channels of the backbone's maps, fine to coarse.
        channels: Width of both heads.
        pool_scales: Cells per side of the pyramid pooling of the coarsest map.
        dropout: Share of channels dropped before the classifiers.
        auxiliary: Whether there is an auxiliary head.
        auxiliary_weight: Weight of its loss.
        ignore_index: Label of pixels without a class.
        inference: ``slide`` averages the logits of overlapping windows; ``whole`` reads the image at once.
        crop_size: Side of the windows in pixels.
        stride: Pixels from one window to the next.

    Raises:
        ConfigError: A value is impossible.
    """

    classes: tuple[str, ...]
    in_channels: tuple[int, ...]
    channels: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    dropout: float = 0.1
    auxiliary: bool = True
    auxiliary_weight: float = 0.4
    ignore_index: int = 255
    inference: Inference = "slide"
    crop_size: int = 512
    stride: int = 341

    def check(self) -> None:
        """Refuse what no segmenter can have."""
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(
                f"A segmenter tells at least two different classes apart, got {', '.join(self.classes) or 'none'}."
            )
        if len(self.in_channels) != 4:
            raise ConfigError(f"A segmenter reads four maps, got {len(self.in_channels)} in_channels.")
        for name in ("in_channels", "channels", "pool_scales", "crop_size", "stride"):
            self.check_range(name, 1)
        self.check_range("dropout", 0, 1)
        self.check_range("auxiliary_weight", 0)
        if 0 <= self.ignore_index < len(self.classes):
            raise ConfigError(
                f"ignore_index is {self.ignore_index}, which is the label of {self.classes[self.ignore_index]!r}; "
                "give a number that is no label, such as 255."
            )
        if self.stride > self.crop_size:
            raise ConfigError(
                f"stride is {self.stride} and crop_size {self.crop_size}: windows would leave gaps; give a stride "
                f"of at most {self.crop_size}."
            )
