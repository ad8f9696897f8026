"""A network as an encoder of segmentation_models_pytorch (``pip install 'piip[smp]'``)."""

from torch import Tensor, nn

from piip.errors import ConfigError, require
from piip.network import PIIP

STRIDES: tuple[int, ...] = (4, 8, 16, 32)
DEEPEST = 1 + len(STRIDES)


class PiipEncoder(nn.Module):
    """A network that returns the image, an empty map in half its size, and its own maps.

    Decoders that skip to half the resolution find no channels there, as in smp's Mix Transformers.

    Args:
        network: The network, whose weights it shares; its maps have strides 4, 8, 16 and 32.
        depth: Maps that are returned besides the image, 2 to 5, finest first.
        output_stride: 8, 16 or 32: where maps would be coarser, the one with this stride stands in for them.

    Attributes:
        out_channels: Width of everything that is returned.
        output_stride: Input pixels per cell of the coarsest map.

    Raises:
        ConfigError: The network has other strides, or there is no such depth or output stride.
    """

    def __init__(self, network: PIIP, depth: int = DEEPEST, output_stride: int = 32) -> None:
        super().__init__()
        if network.strides != STRIDES:
            raise ConfigError(
                f"The network's maps have strides {network.strides}, but encoders need {STRIDES}; choose all four "
                "pyramid_levels and patches of 16 pixels."
            )
        if not 2 <= depth <= DEEPEST:
            raise ConfigError(f"encoder_depth is {depth}; give 2 to {DEEPEST}.")
        self.network = network
        self.out_channels = [3, 0, *network.out_channels[: depth - 1]]
        self.output_stride = STRIDES[depth - 2]
        self.make_dilated(output_stride)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the image (B, 3, H, W), an empty (B, 0, H / 2, W / 2) and maps (B, C, H / stride, W / stride).

        Raises:
            DataError: The image has the wrong shape or is too small for a branch.
        """
        maps = dict(zip(STRIDES, self.network(x), strict=True))
        empty = x.new_empty(len(x), 0, x.shape[2] // 2, x.shape[3] // 2)
        strides = STRIDES[: len(self.out_channels) - 2]
        return [x, empty, *(maps[min(stride, self.output_stride)] for stride in strides)]

    def make_dilated(self, output_stride: int) -> None:
        """Return no map coarser than ``output_stride``.

        Raises:
            ConfigError: It is none of 8, 16 and 32.
        """
        if output_stride not in STRIDES[1:]:
            raise ConfigError(f"encoder_output_stride is {output_stride}; give one of {STRIDES[1:]}.")
        self.output_stride = min(self.output_stride, output_stride)

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Refuse images of other than three channels.

        Raises:
            ConfigError: ``in_channels`` is not 3.
        """
        if in_channels != 3:
            raise ConfigError(f"in_channels is {in_channels}, but the network reads RGB images; give 3.")


def register(name: str, network: PIIP) -> None:
    """Let smp's models find a network by name.

    Every model gets its own copy of the network and its weights; ``encoder_weights`` must be None.

    Args:
        name: The ``encoder_name``. A second network of this name replaces the first.
        network: The network; its maps have strides 4, 8, 16 and 32.

    Raises:
        ConfigError: The name is one of smp's own, or the network has other strides.
        MissingExtraError: smp is not installed.
    """
    known = require("segmentation_models_pytorch", "smp", "This bridge").encoders.encoders
    if known.get(name, {}).get("encoder", PiipEncoder) is not PiipEncoder or name.startswith(
        ("tu-", "timm-")
    ):
        raise ConfigError(f"{name!r} is the name of an encoder of smp; choose another one.")
    PiipEncoder(network)
    known[name] = {"encoder": PiipEncoder, "params": {"network": network}, "pretrained_settings": {}}
