"""The Parameter-Inverted Image Pyramid Network, for any number of branches.

Data flows one way: image -> pyramid -> branches and interactions -> merging -> pyramid levels.
"""

import contextlib
from collections.abc import Iterable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.branches import Branch, build_branch
from piip.config import PIIPConfig, common_size_divisor
from piip.errors import ConfigError, DataError
from piip.interaction import InteractionBlock
from piip.merging import Merging, PyramidLevel
from piip.meta import on_meta
from piip.ops.onednn import use_linear
from piip.pyramid import crop_to_image, image_pyramid, pad_to_multiple
from piip.recomputing import CheapRecomputation
from piip.tokens import Tokens


class PIIP(nn.Module):
    """A parameter-inverted image pyramid network (NeurIPS 2024, arXiv 2406.04330; arXiv 2501.07783).

    Args:
        config: The description of the model. Weights are random; `piip.create_model` loads pretrained ones.

    Attributes:
        branches: Branch 1 (the largest network) first; a single one that all share with ``shared_weights``.
        interactions: One `InteractionBlock` after every range of blocks.
        mergings: None for ``merging.kind`` "none", one for a single merged map, one per level if hierarchical.
        levels: The pyramid's levels.
        out_channels: Width of every output map.
        strides: Input pixels per cell of every output map.
        image_dtype: What resized images are cast to before they are embedded; None = nothing.

    Raises:
        ConfigError: The configuration names something unknown or impossible.
    """

    def __init__(self, config: PIIPConfig) -> None:
        super().__init__()
        self.config = config
        built = config.branches[:1] if config.shared_weights else config.branches
        self.branches = nn.ModuleList(build_branch(branch) for branch in built)
        self.frozen: frozenset[int] = frozenset()
        links = config.links()
        self.interactions = nn.ModuleList()
        if config.interaction is not None and links:
            self.interactions.extend(
                InteractionBlock(self._dims_after(k), links, config.interaction)
                for k in range(config.num_interactions)
            )
        self._taken = (*config.merging.out_interactions, config.num_interactions - 1)
        self.mergings = nn.ModuleList()
        if config.merging.kind != "none":
            self.mergings.extend(
                Merging(self._dims_after(k), config.merging.kind, config.output_branch) for k in self._taken
            )
        self.levels = nn.ModuleList(self._build_levels())
        self.out_channels, self.strides = self._describe_outputs()
        self.size_divisor = config.size_divisor or self._common_size_divisor()
        self.image_dtype: torch.dtype | None = None
        self.grad_checkpointing = False
        self._cheap: CheapRecomputation | None = None
        use_linear(self)

    def branch(self, index: int) -> Branch:
        """Return the network of branch ``index`` (from 0)."""
        return self.branches[0 if self.config.shared_weights else index]  # type: ignore[return-value]

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Width and stride of every output map, in timm's form."""
        return [
            {"num_chs": channels, "reduction": stride, "module": f"output{index}"}
            for index, (channels, stride) in enumerate(zip(self.out_channels, self.strides, strict=True))
        ]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the output maps of an image.

        Args:
            image: Normalised RGB, (B, 3, H, W), of any size.

        Returns:
            One map per pyramid level, finest first, (B, C, ceil(H / stride), ceil(W / stride)); a single map if
            the pyramid has no levels; one map per branch (branch 1 first) if branches are not merged. With
            ``size_divisor=1`` (converted models) incomplete tokens are dropped instead.

        Raises:
            DataError: The image has the wrong shape or is too small for a branch.
        """
        padded = self.pad(image)
        with self._cheap.active() if self._cheap is not None else contextlib.nullcontext():
            maps = self.merge(self.forward_features(padded))
        if padded is image:
            return maps
        size, whole = image.shape[-2:], padded.shape[-2:]
        return tuple(crop_to_image(feature, whole, size) for feature in maps)

    def pad(self, image: Tensor) -> Tensor:
        """Return the image (B, 3, H, W) padded at the bottom and right to a multiple of ``size_divisor``."""
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise DataError(
                f"The network reads float images of shape (B, 3, H, W), got {image.dtype} of shape "
                f"{tuple(image.shape)}; normalise the image and add a batch dimension."
            )
        return pad_to_multiple(image, self.size_divisor)

    def forward_features(self, image: Tensor) -> list[list[Tokens]]:
        """Return every branch's tokens at each of the places that the merging reads.

        Args:
            image: (B, 3, H, W); incomplete tokens at the far edges are dropped.

        Returns:
            For each of ``merging.out_interactions`` and for the end: the tokens of all branches.
        """
        images = image_pyramid(image, self.config.scales())
        if self.image_dtype is not None:
            images = [resized.to(self.image_dtype) for resized in images]
        for index, branch in enumerate(self.config.branches):
            self._check_size(images[index], index, branch.arch)
        tokens = [self.branch(index)(resized) for index, resized in enumerate(images)]
        taken = []
        for k in range(self.config.num_interactions):
            tokens = self._run_range(k, tokens)
            if self.interactions:
                tokens = self._call(self.interactions[k], tokens)
            if k in self._taken:
                taken.append(tokens)
        return taken

    def merge(self, taken: list[list[Tokens]]) -> tuple[Tensor, ...]:
        """Return the output maps from what `forward_features` returns."""
        if self.mergings:
            merged = [
                self._call(merging, tokens) for merging, tokens in zip(self.mergings, taken, strict=True)
            ]
        elif self.config.num_branches == 1:
            merged = [tokens[0].to_map() for tokens in taken]
        else:
            merged = [branch.to_map() for branch in taken[-1]]
        if not self.levels:
            return tuple(merged)
        sources = merged if len(merged) == len(self.levels) else merged * len(self.levels)
        return tuple(self._call(level, source) for level, source in zip(self.levels, sources, strict=True))

    def freeze(self, branches: Iterable[int]) -> Self:
        """Stop training branches (numbers from 1): no gradients and no stochastic depth.

        Raises:
            ConfigError: There is no such branch.
        """
        chosen = frozenset(branches)
        for number in chosen:
            if not 1 <= number <= self.config.num_branches:
                raise ConfigError(
                    f"There is no branch {number} to freeze; branches go from 1 to {self.config.num_branches}."
                )
        self.frozen = chosen
        for number in chosen:
            self.branch(number - 1).freeze()
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen branches stay in evaluation mode."""
        super().train(mode)
        for number in self.frozen:
            self.branch(number - 1).eval()
        return self

    def set_grad_checkpointing(self, enable: bool | Literal["light"] = True) -> None:
        """Compute in the backward pass again what is not kept of the forward pass.

        Args:
            enable: True for blocks, interactions, merging and levels, which keep their inputs alone; "light" for
                norms, activations and windows; False for nothing.
        """
        if self._cheap is not None:
            self._cheap.remove()
        self._cheap = CheapRecomputation(self) if enable == "light" else None
        self.grad_checkpointing = enable is True
        for branch in self.branches:
            branch.grad_checkpointing = enable is True  # type: ignore[assignment]

    def _call(self, module: nn.Module, inputs: Any) -> Any:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, inputs, use_reentrant=False)
        return module(inputs)

    def _run_range(self, k: int, tokens: list[Tokens]) -> list[Tokens]:
        after = []
        for index, (branch, branch_tokens) in enumerate(zip(self.config.branches, tokens, strict=True)):
            first, last = branch.interaction_indexes[k]
            after.append(self.branch(index).run(branch_tokens, first, last + 1))
        return after

    def _dims_after(self, k: int) -> list[int]:
        return [
            self.branch(index).dims[branch.interaction_indexes[k][1]]
            for index, branch in enumerate(self.config.branches)
        ]

    def _output_strides(self) -> list[int]:
        output = self.config.output_branch
        ranges = self.config.branches[output].interaction_indexes
        return [self.branch(output).strides[ranges[k][1]] for k in self._taken]

    def _build_levels(self) -> list[nn.Module]:
        levels = self.config.merging.pyramid_levels
        if not levels:
            return []
        widths = [self._dims_after(k)[0] for k in self._taken]
        if len(set(self._output_strides())) > 1:  # the output branch is a pyramid itself
            return [PyramidLevel(3, width) for width in widths]
        if len(widths) == 1:
            widths = widths * len(levels)
        return [PyramidLevel(level, width) for level, width in zip(levels, widths, strict=True)]

    def _describe_outputs(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        last = self.config.num_interactions - 1
        if self.config.merging.kind == "none" and not self.levels:
            scales = self.config.scales()
            ends = [branch.interaction_indexes[last][1] for branch in self.config.branches]
            strides = [self.branch(i).strides[end] / scales[i] for i, end in enumerate(ends)]
            return tuple(self._dims_after(last)), tuple(strides)
        widths = [self._dims_after(k)[0] for k in self._taken]
        strides = [float(stride) for stride in self._output_strides()]
        if self.levels and len(widths) == 1:
            widths, strides = widths * len(self.levels), strides * len(self.levels)
        scales = tuple(level.scale for level in self.levels) or (1.0,) * len(widths)  # type: ignore[misc]
        return tuple(widths), tuple(stride / scale for stride, scale in zip(strides, scales, strict=True))

    def _common_size_divisor(self) -> int:
        strides = [max(self.branch(index).strides) for index in range(self.config.num_branches)]
        if any(isinstance(level, PyramidLevel) and level.scale < 1 for level in self.levels):
            strides[self.config.output_branch] *= 2
        return common_size_divisor(self.config.scales(), strides) or strides[self.config.output_branch]

    def _check_size(self, image: Tensor, index: int, arch: str) -> None:
        stride = max(self.branch(index).strides)
        if min(image.shape[-2:]) < stride:
            raise DataError(
                f"Branch {index + 1} ({arch}) gets an image of {image.shape[-2]} x {image.shape[-1]} pixels but "
                f"needs at least {stride} x {stride}; give a larger image or set size_divisor to pad it."
            )

    def extra_repr(self) -> str:
        """Return the sizes of the branches for printing."""
        sizes = "/".join(str(branch.image_size) for branch in reversed(self.config.branches))
        return f"sizes={sizes}, interactions={len(self.interactions)}, merging={self.config.merging.kind}"


def build_on_meta(config: PIIPConfig) -> PIIP:
    """Build a network without memory for its weights, to look at its shape and cost."""
    with on_meta():
        return PIIP(config)
