"""Operators of the network: those that torch does not have, and those that it can be made to compute faster."""

from piip.ops.deformable import at_least_float32, deformable_attention, in_float32, use_implementation
from piip.ops.folding import gated_linear, scale_outputs
from piip.ops.onednn import LinearGELU, linear, use_linear

__all__ = [
    "LinearGELU",
    "at_least_float32",
    "deformable_attention",
    "gated_linear",
    "in_float32",
    "linear",
    "scale_outputs",
    "use_implementation",
    "use_linear",
]
