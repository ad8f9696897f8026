"""From the maps of the branches to the tokens of a language model (SPEC 9)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.merging import NUM_GROUPS, resize_map

LAYER_NORM_EPS = 1e-5


class PyramidProjector(nn.Module):
    """A two-layer projector per branch; the results are summed at one grid.

    Args:
        dims: Width of every branch's map, branch 1 first.
        out_dim: Width of the language model.
        norm: ``group`` normalises over the map in groups of channels (released models), ``layer`` each token.
        out_grid: (H, W) of the result; default: the grid of the last branch.

    Raises:
        ConfigError: ``norm`` is unknown or ``out_dim`` does not fit its groups.
    """

    def __init__(
        self,
        dims: Sequence[int],
        out_dim: int,
        norm: Literal["group", "layer"] = "group",
        out_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("group", "layer"):
            raise ConfigError(f"norm is {norm!r}; choose 'group' or 'layer'.")
        if norm == "group" and out_dim % NUM_GROUPS:
            raise ConfigError(f"out_dim is {out_dim}; give a multiple of {NUM_GROUPS}, the number of groups.")
        self.norm = norm
        self.out_grid = out_grid
        self.fc1 = nn.ModuleList(nn.Linear(dim, out_dim) for dim in dims)
        self.norms = nn.ModuleList(nn.GroupNorm(NUM_GROUPS, out_dim) for _ in dims if norm == "group")
        self.fc2 = nn.ModuleList(nn.Linear(out_dim, out_dim) for _ in dims)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return visual tokens (B, H * W, out_dim) from one map (B, D_i, H_i, W_i) per branch."""
        tokens = self.branch_tokens(maps)
        return sum(tokens[1:], start=tokens[0])

    def grid(self, maps: Sequence[Tensor]) -> tuple[int, int]:
        """Return height and width of the result in tokens."""
        return self.out_grid or (maps[-1].shape[-2], maps[-1].shape[-1])

    def branch_tokens(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return what every branch adds to the visual tokens, (B, H * W, out_dim) each."""
        grid = self.grid(maps)
        return [self._project(index, resize_map(feature, grid)) for index, feature in enumerate(maps)]

    def _project(self, index: int, feature: Tensor) -> Tensor:
        hidden = self.fc1[index](feature.flatten(2).transpose(1, 2))
        if self.norm == "group":
            hidden = self.norms[index](hidden.transpose(1, 2)).transpose(1, 2)
        else:
            hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=LAYER_NORM_EPS)
        return self.fc2[index](F.gelu(hidden))


def projector_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the original's projector tensors (``branch{i}.{layer}.*``) under our names.

    Raises:
        ConfigError: A name is not one of a projector.
    """
    group = any(".6." in key for key in official)
    layers = {"1": "fc1", "3": "norms", "6": "fc2"} if group else {"1": "fc1", "5": "fc2"}
    state = {}
    for key, value in official.items():
        branch, _, rest = key.partition(".")
        layer, _, kind = rest.partition(".")
        if not branch.startswith("branch") or layer not in layers:
            raise ConfigError(
                f"{key} is no tensor of a projector; expected branch<i>.{{{', '.join(layers)}}}.*."
            )
        state[f"{layers[layer]}.{int(branch[6:]) - 1}.{kind}"] = value
    return state
