"""Operators of the network: those that torch does not have, and those that it can be made to compute faster."""

from piip.ops.deformable import at_least_float32, deformable_attention, in_float32, use_implementation
from piip.ops.folding import gated_linear, scale_outputs
from piip.ops.onednn import LinearGELU, as_autocast, has_arithmetic, linear, use_linear
from piip.ops.upsampling import split_cells, split_into_map

__all__ = [
    "LinearGELU",
    "as_autocast",
    "at_least_float32",
    "deformable_attention",
    "gated_linear",
    "has_arithmetic",
    "in_float32",
    "linear",
    "scale_outputs",
    "split_cells",
    "split_into_map",
    "use_implementation",
    "use_linear",
]
