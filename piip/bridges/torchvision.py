"""A network as the backbone of torchvision's detectors and segmenters."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from piip.errors import ConfigError, DataError
from piip.network import PIIP


class NamedMaps(nn.Module):
    """A network that returns some of its maps by name, as torchvision's segmenters ask.

    Args:
        network: The network, whose weights it shares.
        names: Name of every map to return by its number from 0, such as ``{3: "out", 2: "aux"}``.

    Attributes:
        channels: Width of every map by name.

    Raises:
        ConfigError: There is no such map.
    """

    def __init__(self, network: PIIP, names: Mapping[int, str]) -> None:
        super().__init__()
        count = len(network.out_channels)
        wrong = [index for index in names if not 0 <= index < count]
        if wrong or not names:
            raise ConfigError(
                f"There are no maps {wrong} in a network that has {count}; choose some of 0 to {count - 1}."
            )
        self.network = network
        self.names = dict(names)
        self.channels = {name: network.out_channels[index] for index, name in names.items()}

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the chosen maps of images (B, 3, H, W), each (B, C, ceil(H / stride), ceil(W / stride)).

        Raises:
            DataError: The images have the wrong shape or are too small for a branch.
        """
        maps = self.network(x)
        return OrderedDict((name, maps[index]) for index, name in self.names.items())


class BackboneWithFPN(nn.Module):
    """A network with a feature pyramid network on its maps, for Faster and Mask R-CNN, RetinaNet and FCOS.

    Args:
        network: The network, whose weights it shares.
        out_channels: Width of every map that is returned.
        levels: Maps that are used, by their numbers from 0, finest first; all by default.
        extra_blocks: What makes coarser maps of them; by default, one by taking every second cell.
        norm_layer: Builds norms for the feature pyramid network, which has none by default.

    Attributes:
        out_channels: Width of every map that is returned, for the detector.

    Raises:
        ConfigError: There is no such map, or its cells have no sides of 2, 4, 8, ... pixels, each twice those of
            the map before, which detectors take for granted.
    """

    def __init__(
        self,
        network: PIIP,
        out_channels: int = 256,
        levels: Sequence[int] | None = None,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        chosen = range(len(network.out_channels)) if levels is None else levels
        self.body = NamedMaps(network, {index: str(name) for name, index in enumerate(chosen)})
        self.fpn = FeaturePyramidNetwork(
            list(self.body.channels.values()), out_channels, extra_blocks or LastLevelMaxPool(), norm_layer
        )
        self.out_channels = out_channels
        self.coarsest = _coarsest([network.strides[index] for index in chosen])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps "0", "1", ... and those of ``extra_blocks`` of images (B, 3, H, W), finest first.

        Raises:
            DataError: The images have the wrong shape, are too small for a branch, or their sides are no multiples
                of the coarsest cell's: detectors would take its size wrongly.
        """
        height, width = x.shape[-2:]
        if height % self.coarsest or width % self.coarsest:
            raise DataError(
                f"The detector pads images to {height} x {width} pixels, no multiples of {self.coarsest}, the side "
                f"of the coarsest cells; give it size_divisible={self.coarsest}."
            )
        return self.fpn(self.body(x))


def _coarsest(strides: Sequence[float]) -> int:
    """Return the largest of strides that must be powers of two, each twice the one before."""
    first = round(strides[0])
    if first & (first - 1) or list(strides) != [first * 2**index for index in range(len(strides))]:
        raise ConfigError(
            f"The maps have strides {list(strides)}, but torchvision's detectors need powers of two that double "
            "from map to map; choose other levels, or a network with patches of 16 pixels."
        )
    return round(strides[-1])
