"""A network with the interface of timm's backbones: ``features_only=True`` and what timm's optimisers ask for."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from timm.models import FeatureInfo
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.network import PIIP

Indices = int | Sequence[int] | None

# What timm's own models exempt, under the names that the same parameters have in our branches.
_UNDECAYED = (".pos_embed", ".cls_token", ".reg_token", ".position_bias.table")


class FeatureExtractor(nn.Module):
    """A network whose maps are the features of a timm backbone, finest first.

    Every map needs all blocks, so that nothing can be pruned: there is no ``prune_intermediate_layers``.

    Args:
        network: The network, whose weights it shares.
        out_indices: Maps that ``forward`` returns: their numbers from 0 or (negative) from the end, the last so
            many, or all.

    Attributes:
        feature_info: Width, stride and name of all maps; its accessors choose those of ``out_indices``.

    Raises:
        ConfigError: There is no such map.
    """

    def __init__(self, network: PIIP, out_indices: Indices = None) -> None:
        super().__init__()
        self.network = network
        # Without merging, a network returns its coarsest map first.
        self._order = sorted(range(len(network.strides)), key=network.strides.__getitem__)
        self.out_indices = self._take(out_indices)
        infos = [network.feature_info[index] for index in self._order]
        for info in infos:
            stride = info["reduction"]
            info["reduction"] = int(stride) if stride == int(stride) else stride  # timm's are integers
        self.feature_info = FeatureInfo(infos, tuple(self.out_indices))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the chosen maps of images (B, 3, H, W), each (B, C, ceil(H / stride), ceil(W / stride)).

        Raises:
            DataError: The images have the wrong shape or are too small for a branch.
        """
        maps = self.network(x)
        return [maps[self._order[index]] for index in self.out_indices]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return maps of images (B, 3, H, W), as timm's pyramidal models do.

        Args:
            x: The images.
            indices: Maps to return, finest first, in the form of ``out_indices``; those do not count here.
            norm: No effect: there is no final norm.
            stop_early: No effect: every map needs all blocks.
            output_fmt: ``NCHW``.
            intermediates_only: Leave out the final features.

        Returns:
            The final features (the coarsest map) and the list of maps, or the list alone.

        Raises:
            ConfigError: There is no such map or format.
            DataError: The images have the wrong shape or are too small for a branch.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt is {output_fmt!r}, but the maps of a pyramid are 'NCHW' only.")
        taken = self._take(indices)
        maps = self.network(x)
        intermediates = [maps[self._order[index]] for index in taken]
        return intermediates if intermediates_only else (maps[self._order[-1]], intermediates)

    def no_weight_decay(self) -> set[str]:
        """Return the names of position embeddings, prefix tokens and relative position biases."""
        return {
            name for name, _ in self.network.named_parameters(prefix="network") if name.endswith(_UNDECAYED)
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of parameter names for layer-wise learning rates, from the stem to the last block.

        All branches reach the last layer together: a block of a shallower branch has the layer of the deepest
        branch's block at the same share of the depth, rounded down. Interactions, merging and levels match
        nothing, which timm puts after the last layer. This is the released rule (`piip.train.optimizer`), but
        for ConvNeXt branches, which have layers here, as they have in timm.

        Args:
            coarse: One layer for each range of blocks between interactions instead of one for each block.
        """
        branches = self.network.config.branches[: len(self.network.branches)]  # one where weights are shared
        deepest = max(branch.depth for branch in branches)
        layers: dict[int, list[str]] = defaultdict(list)
        for index, branch in enumerate(branches):
            for block in range(branch.depth):
                after = sum(first <= block for first, _ in branch.interaction_indexes)
                layer = after if coarse else (block + 1) * deepest // branch.depth
                layers[layer].append(rf"{index}\.blocks\.{block}")
        named = {
            f"layer{layer}": rf"^network\.branches\.(?:{'|'.join(layers[layer])})\."
            for layer in sorted(layers)
        }
        return {"stem": r"^network\.branches\.\d+\.(?!blocks\.)"} | named

    def set_grad_checkpointing(self, enable: bool | Literal["light"] = True) -> None:
        """Compute activations again in the backward pass (see `PIIP.set_grad_checkpointing`)."""
        self.network.set_grad_checkpointing(enable)

    def _take(self, indices: Indices) -> list[int]:
        count = len(self._order)
        wanted = (
            range(-indices, 0) if isinstance(indices, int) else range(count) if indices is None else indices
        )
        if not wanted or not all(-count <= index < count for index in wanted):
            raise ConfigError(
                f"There are no maps {indices} in a network that has {count}; give numbers from {-count} to "
                f"{count - 1}, or one number from 1 to {count} for the last so many."
            )
        return sorted({index % count for index in wanted})
