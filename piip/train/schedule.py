"""Learning rates over time: linear warm-up, then constant, steps, a cosine or a polynomial.

The formulas are those of the released runs (SPEC 16; mmcv 1.7's LR hooks).
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from piip.train.settings import ScheduleConfig


def learning_rate(
    config: ScheduleConfig, base_lr: float, step: int, steps_per_epoch: int, epochs: int
) -> float:
    """Return the learning rate of one optimiser step.

    Args:
        config: The schedule.
        base_lr: Rate of the parameter group before any change.
        step: Number of optimiser steps already taken.
        steps_per_epoch: Optimiser steps of an epoch.
        epochs: Length of the run.
    """
    regular = _regular(config, base_lr, step, steps_per_epoch, epochs)
    if step < config.warmup_steps:
        return regular * (1 - (1 - step / config.warmup_steps) * (1 - config.warmup_ratio))
    return regular


def _regular(config: ScheduleConfig, base_lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    epoch = step // steps_per_epoch
    if config.kind == "constant":
        return base_lr
    if config.kind == "step":
        passed = sum(epoch >= milestone for milestone in config.milestones)
        return max(base_lr * config.gamma**passed, config.min_lr)
    done = epoch / epochs if config.by_epoch else step / (steps_per_epoch * epochs)
    left = 1 - min(done, 1.0)
    fraction = left**config.power if config.kind == "poly" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
    return config.min_lr + (base_lr - config.min_lr) * fraction


class Schedule(LRScheduler):
    """A `ScheduleConfig` for an optimiser; to be stepped after every optimiser step.

    Args:
        optimizer: Its groups' rates are the base rates.
        config: The schedule.
        steps_per_epoch: Optimiser steps of an epoch.
        epochs: Length of the run.
    """

    def __init__(
        self, optimizer: Optimizer, config: ScheduleConfig, steps_per_epoch: int, epochs: int
    ) -> None:
        self.config = config
        self.steps_per_epoch = max(steps_per_epoch, 1)
        self.epochs = epochs
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of every parameter group at the current step."""
        return [
            learning_rate(self.config, float(base), self.last_epoch, self.steps_per_epoch, self.epochs)
            for base in self.base_lrs
        ]

    def state_dict(self) -> dict[str, object]:
        """Return the position only: the schedule itself belongs to the recipe."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}
