"""BEiT's relative position tables at another window size (SPEC 12)."""

import math

import torch
from torch import Tensor

from piip.errors import require


def resample_bias_table(table: Tensor, side: int) -> Tensor:
    """Resample a relative position bias table to windows of another side.

    The known offsets are taken to lie at distances that grow geometrically from the centre, so that near
    offsets stay nearly as they are, and a cubic spline is read at the whole-numbered offsets.

    Args:
        table: (2G - 1)^2 rows, with or without three more for the class token (dropped), one column per head.
        side: Wanted window side w.

    Returns:
        The table with (2w - 1)^2 rows, in the dtype of ``table``.
    """
    known = math.isqrt(len(table))
    if known * known != len(table):
        table = table[:-3]
        known = math.isqrt(len(table))
    wanted = 2 * side - 1
    if known == wanted:
        return table.clone()
    interpolate = require("scipy.interpolate", "beit", "Resampling BEiT's relative positions")
    distances = torch.tensor(_geometric_distances(known // 2, wanted // 2), dtype=torch.float64)
    coordinates = torch.cat([-distances.flip(0), torch.zeros(1, dtype=torch.float64), distances]).numpy()
    targets = torch.arange(-(wanted // 2), wanted // 2 + 1, dtype=torch.float64).numpy()
    heads = []
    for head in table.float().T:
        values = head.view(known, known).T.numpy()
        spline = interpolate.RectBivariateSpline(coordinates, coordinates, values)
        heads.append(torch.from_numpy(spline(targets, targets).T.copy()).flatten())
    return torch.stack(heads, dim=1).to(table.dtype)


def _geometric_distances(count: int, reach: int) -> list[float]:
    """Return 1, 1 + q, 1 + q + q^2, ... (``count`` of them) with the q at which they end at ``reach``."""
    low, high = 1.01, 1.5
    ratio = high
    while high - low > 1e-6:  # the last midpoint is the original's ratio, not an end of the bracket
        ratio = (low + high) / 2
        if (1 - ratio**count) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    distances = [1.0]
    for power in range(1, count):
        distances.append(distances[-1] + ratio**power)
    return distances
