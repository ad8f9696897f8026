"""Multimodal understanding: PIIP as the vision tower of a language model."""

from piip.tasks.multimodal.projector import PyramidProjector

__all__ = ["PyramidProjector"]
