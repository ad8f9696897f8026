"""Vision transformers whose shapes timm does not name."""

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.vision_transformer import VisionTransformer

from piip.branches.vit import ViTBranch
from piip.errors import ConfigError


class OwnViTBranch(ViTBranch):
    """A vision transformer of one of piip's own architectures.

    Attributes:
        architectures: Constructor arguments of timm's VisionTransformer by name.
    """

    architectures: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def accepts(cls, arch: str) -> bool:
        """Return whether ``arch`` is one of `architectures`."""
        return arch in cls.architectures

    @classmethod
    def count_blocks(cls, arch: str, options: Mapping[str, Any]) -> int:
        """Return the number of blocks of an architecture with constructor ``options``."""
        return int((dict(cls.architectures[arch]) | dict(options))["depth"])

    def build_trunk(self, options: dict[str, Any]) -> Any:
        """Return a VisionTransformer of the architecture's shape."""
        return build_vision_transformer(
            self.config.arch, dict(self.architectures[self.config.arch]) | options
        )


def build_vision_transformer(arch: str, options: dict[str, Any]) -> VisionTransformer:
    """Build timm's VisionTransformer from constructor arguments.

    Raises:
        ConfigError: An argument is unknown or impossible.
    """
    try:
        return VisionTransformer(num_classes=0, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{arch} cannot be built with these options: {error}.") from error
