"""The description of a DINO detector."""

from dataclasses import dataclass
from typing import ClassVar

from piip.errors import ConfigError
from piip.tasks.detection.config import DetectorConfig


@dataclass(frozen=True)
class DINOConfig(DetectorConfig):
    """A DINO on three maps, to which it adds a fourth.

    The defaults are the settings of every released checkpoint (HEADS.md sections 0 and 4).

    Attributes:
        num_levels: Maps that the transformer reads: those of the backbone, and coarser ones made from the last.
        embed_dim: Width of the transformer.
        num_groups: Groups of the normalisation after the projections of the maps.
        num_heads: Attention heads.
        num_points: Sampling points per head and level.
        encoder_depth: Layers of the encoder.
        decoder_depth: Layers of the decoder.
        ffn_dim: Hidden width of the feed-forward networks.
        num_queries: Boxes that are looked for.
        num_denoising: Noisy copies of the objects that train beside them, about; 0 = none.
        label_noise: Share of the copies with a random class, twice over: 0.5 changes a quarter of them.
        box_noise: Largest shift of a copy's corners, relative to half its box.
        match_class: Weight of the class in matching queries with objects.
        match_box: Weight of the distance of boxes there.
        match_giou: Weight of the generalised overlap there.
        loss_class: Weight of the focal loss.
        loss_box: Weight of the L1 loss of normalised boxes.
        loss_giou: Weight of the loss of the generalised overlap.

    Raises:
        ConfigError: A value is impossible.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = ("num_denoising", "label_noise", "box_noise")

    strides: tuple[int, ...] = (8, 16, 32)
    detections_per_image: int = 300
    num_levels: int = 4
    embed_dim: int = 256
    num_groups: int = 32
    num_heads: int = 8
    num_points: int = 4
    encoder_depth: int = 6
    decoder_depth: int = 6
    ffn_dim: int = 2048
    num_queries: int = 900
    num_denoising: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0
    match_class: float = 2.0
    match_box: float = 5.0
    match_giou: float = 2.0
    loss_class: float = 1.0
    loss_box: float = 5.0
    loss_giou: float = 2.0

    def check(self) -> None:
        """Refuse what no detector can have."""
        super().check()
        self.check_range("label_noise", 0, 1, closed=True)
        if self.masks:
            raise ConfigError("masks is true, but DINO finds boxes only; use the kind rcnn for masks.")
        if self.num_levels < len(self.strides):
            raise ConfigError(
                f"num_levels is {self.num_levels}, but the backbone has {len(self.strides)} maps; give at least as "
                "many levels."
            )
        for name, divisor in (("num_heads", self.num_heads), ("num_groups", self.num_groups), ("4", 4)):
            if self.embed_dim % divisor:
                raise ConfigError(
                    f"embed_dim is {self.embed_dim}, which {name} does not divide; give a multiple."
                )
