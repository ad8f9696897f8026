"""Branch merging and the feature pyramid (paper section 3.3; SPEC 7 and 8)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.config import MergingKind
from piip.errors import ConfigError
from piip.ops import at_least_float32, split_cells, split_into_map
from piip.tokens import Tokens

NUM_GROUPS = 32


class Merging(nn.Module):
    """Projects every branch to the width of branch 1 and sums the maps at the output branch's grid.

    Args:
        dims: Width of every branch's tokens.
        kind: ``linear``, ``conv`` or ``hierarchical``.
        output_branch: Index of the branch whose grid the result has.
    """

    def __init__(self, dims: Sequence[int], kind: MergingKind, output_branch: int) -> None:
        super().__init__()
        self.output_branch = output_branch
        self.projections = nn.ModuleList(
            _projection(kind, index, dim, dims[0]) for index, dim in enumerate(dims)
        )
        # Scalars, one parameter each: as in the original they take part in weight decay.
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in dims)

    def forward(self, tokens: Sequence[Tokens]) -> Tensor:
        """Return the merged map (B, D_1, H, W), resized and summed in at least float32 (SPEC 7.1)."""
        grid = tokens[self.output_branch].grid
        maps = [
            projection(branch.to_map()) for branch, projection in zip(tokens, self.projections, strict=True)
        ]
        weighted = [  # before resizing, where maps are smaller
            _resize(at_least_float32(feature) * weight, grid)
            for feature, weight in zip(maps, self.weights, strict=True)
        ]
        return sum(weighted[1:], start=weighted[0]).to(maps[0].dtype)


class PyramidLevel(nn.Sequential):
    """One level of the simple feature pyramid, made from a map at the output branch's resolution.

    Args:
        level: 1 = four times the resolution, 2 = twice, 3 = the same, 4 = half.
        dim: Width of the map.
    """

    def __init__(self, level: int, dim: int) -> None:
        modules: list[nn.Module] = []
        if level == 1:
            modules = [Upsample(dim), _group_norm(dim), nn.GELU(), Upsample(dim)]
        elif level == 2:
            modules = [Upsample(dim)]
        elif level == 4:
            modules = [nn.MaxPool2d(2)]
        super().__init__(*modules)
        self.scale = {1: 4.0, 2: 2.0, 3: 1.0, 4: 0.5}[level]

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, D, scale * H, scale * W) from (B, D, H, W)."""
        if self.scale <= 1:
            return super().forward(x)
        # What lies between two upsamplings looks at every cell alike, wherever it is: the cells are put into place
        # once, at the end.
        grid, cells = (x.shape[2], x.shape[3]), x.permute(0, 2, 3, 1)
        *others, last = self
        for module in others:
            if isinstance(module, Upsample):
                cells = module.split_cells(cells.flatten(1, -2))
            else:
                cells = module(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert isinstance(last, Upsample)
        return split_into_map(cells.flatten(1, -2), last.weight, last.bias, grid)

    def absorb(self, lateral: nn.Conv2d) -> bool:
        """Let the last upsampling compute a 1x1 convolution of this level's map as well, if there is one."""
        last = self[-1] if len(self) else None
        if not isinstance(last, Upsample):
            return False
        kernel = lateral.weight.flatten(1)
        weight = torch.einsum("od,idyx->ioyx", kernel, last.weight)
        bias = kernel @ last.bias if last.bias is not None else kernel.new_zeros(len(kernel))
        last.weight = nn.Parameter(weight, requires_grad=False)
        last.bias = nn.Parameter(bias if lateral.bias is None else bias + lateral.bias, requires_grad=False)
        last.out_channels = len(kernel)
        return True


class Upsample(nn.ConvTranspose2d):
    """Transposed 2x2 convolution with stride 2, which doubles the resolution.

    It is computed as a matrix product and a shuffle (`piip.ops.upsampling`).
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 2, stride=2)
        nn.init.normal_(self.weight, std=(2 / (4 * dim)) ** 0.5)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def split_cells(self, cells: Tensor) -> Tensor:
        """Return the parts of cells, (B, N, D) to (B, N, 4, D): upper left and right, lower left and right."""
        return split_cells(cells, self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return a map (B, D, 2 H, 2 W) from (B, D, H, W)."""
        cells = x.permute(0, 2, 3, 1).flatten(1, 2)
        return split_into_map(cells, self.weight, self.bias, (x.shape[2], x.shape[3]))


def resize_map(feature: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map (B, D, H, W) bilinearly to ``size``; in at least float32, returned in its own dtype."""
    return _resize(at_least_float32(feature), size).to(feature.dtype)


def _resize(feature: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(feature.shape[-2:]) == tuple(size):
        return feature
    return F.interpolate(feature, size=tuple(size), mode="bilinear", align_corners=False)


def _projection(kind: MergingKind, index: int, dim: int, out_dim: int) -> nn.Sequential:
    norm = _group_norm(out_dim)
    if kind == "conv":
        first = [_conv(dim, out_dim), _group_norm(out_dim), nn.ReLU()]
        return nn.Sequential(*first, _conv(out_dim, out_dim), norm, nn.ReLU())
    if kind == "hierarchical":
        convs = [_conv(dim, out_dim)] if index else []
        return nn.Sequential(*convs, norm, nn.ReLU())
    if index == 0:
        return nn.Sequential(norm)
    linear = nn.Conv2d(dim, out_dim, 1)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
    return nn.Sequential(_group_norm(dim), linear, norm)


def _group_norm(dim: int) -> nn.GroupNorm:
    if dim % NUM_GROUPS:
        nearest = max(round(dim / NUM_GROUPS), 1) * NUM_GROUPS
        raise ConfigError(
            f"Merging normalises in {NUM_GROUPS} groups, which do not divide the width {dim}; the nearest width "
            f"that works is {nearest}."
        )
    return nn.GroupNorm(NUM_GROUPS, dim)


def _conv(dim: int, out_dim: int) -> nn.Conv2d:
    conv = nn.Conv2d(dim, out_dim, 3, padding=1, bias=False)
    nn.init.normal_(conv.weight, std=(2 / (9 * out_dim)) ** 0.5)
    return conv
