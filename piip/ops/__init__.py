"""Operators of the network that torch does not have."""

from piip.ops.deformable import at_least_float32, deformable_attention, use_implementation

__all__ = ["at_least_float32", "deformable_attention", "use_implementation"]
