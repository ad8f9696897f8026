"""An image as a network sees it at test time: once, or several times at other scales and mirrored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from piip.data.geometry import ImageMeta
from piip.data.settings import AugmentedTest, ImageConfig
from piip.data.transforms import prepare_image


@dataclass(frozen=True)
class View:
    """One way to see an image.

    Attributes:
        image: (3, h, w) float32, prepared for the network.
        flipped: Whether it is mirrored left to right.
        meta: How it relates to the image, or to the mirrored image if it is flipped.
    """

    image: Tensor
    flipped: bool
    meta: ImageMeta


class Views:
    """All views of one image; each is prepared when its turn comes, so that one at a time is in memory.

    An image is mirrored before it is resized, not after. Resizing is not quite symmetric; this way the views of a
    mirrored image are exactly those of the image, so that what is found in it is mirrored, too.

    Args:
        pixels: (3, H, W) uint8 RGB.
        config: How images are prepared.
        test: Which views there are.
        device: Where the views go.
        prepare: Turns pixels and their configuration into the network's input (3, h, w).
    """

    def __init__(
        self,
        pixels: Tensor,
        config: ImageConfig,
        test: AugmentedTest,
        device: str | torch.device = "cpu",
        prepare: Callable[[Tensor, ImageConfig], Tensor] = prepare_image,
    ) -> None:
        self.pixels = pixels
        self.config = config
        self.test = test
        self.device = device
        self.prepare = prepare

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def __len__(self) -> int:
        """Return the number of views; a single one is the image itself, not mirrored."""
        return len(self.test.scales) * (1 + self.test.flip)

    def __iter__(self) -> Iterator[View]:
        """Yield the views scale by scale, the mirrored one after the other."""
        for factor in self.test.scales:
            config = self.config.scaled(factor)
            for flipped in (False, True)[: 1 + self.test.flip]:
                pixels = self.pixels.flip(-1) if flipped else self.pixels
                image = self.prepare(pixels, config)
                meta = ImageMeta.of(0, "", self.original_size, (image.shape[-2], image.shape[-1]))
                yield View(image.to(self.device), flipped, meta)
