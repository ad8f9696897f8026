"""Operators that libraries do not have."""

from piip.ops.deformable import at_least_float32, deformable_attention

__all__ = ["at_least_float32", "deformable_attention"]
