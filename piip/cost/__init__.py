"""What networks cost: as they are executed, and as the papers count it."""

from piip.cost.conventions import Convention, convention_of
from piip.cost.detectors import detector_cost, run_detector
from piip.cost.executed import executed_cost
from piip.cost.published import published_cost
from piip.cost.table import CostTable, PartCost

__all__ = [
    "Convention",
    "CostTable",
    "PartCost",
    "convention_of",
    "detector_cost",
    "executed_cost",
    "published_cost",
    "run_detector",
]
