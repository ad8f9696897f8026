"""Checkpoints of the original, and what else the world publishes, as models of piip."""

from piip.convert.official import from_official

__all__ = ["from_official"]
