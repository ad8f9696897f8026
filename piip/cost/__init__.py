"""What networks cost: as they are executed, and as the papers count it."""

from piip.cost.conventions import Convention, convention_of
from piip.cost.executed import executed_cost
from piip.cost.published import published_cost
from piip.cost.saved import prepared_size, run_detector, saved_cost
from piip.cost.table import CostTable, PartCost

__all__ = [
    "Convention",
    "CostTable",
    "PartCost",
    "convention_of",
    "executed_cost",
    "prepared_size",
    "published_cost",
    "run_detector",
    "saved_cost",
]
