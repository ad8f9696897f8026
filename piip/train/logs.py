"""Loggers: a CSV file that survives resuming, and TensorBoard where it is installed."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from piip.files import write_text
from piip.train.module import TrainingModule


class CsvLogger(Logger):
    """Writes one row per logged step to a CSV file, atomically.

    Rows of steps after the point that a run is resumed from are dropped, so that the file of a resumed run is
    that of an uninterrupted one.

    Args:
        path: The file.
        rows: Rows that are already there.
    """

    def __init__(self, path: Path, rows: list[dict[str, float]] | None = None) -> None:
        super().__init__()
        self.path = path
        self.rows = rows or []

    @property
    def name(self) -> str:
        """Name for Lightning."""
        return "csv"

    @property
    def version(self) -> str:
        """Version for Lightning."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder has the recipe."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, or fill the last one where the step is the same."""
        row = {"step": float(step or 0)} | {key: float(value) for key, value in metrics.items()}
        if self.rows and self.rows[-1]["step"] == row["step"]:
            self.rows[-1] |= row
        else:
            self.rows.append(row)

    def rewind(self, step: int) -> None:
        """Forget the rows after a step."""
        self.rows = [row for row in self.rows if row["step"] <= step]

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if not self.rows:
            return
        columns = dict.fromkeys(key for row in self.rows for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.8g}" for key, value in row.items()} for row in self.rows)
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file at the end."""
        self.save()


class StepLog(Callback):
    """Logs losses and the learning rate every few optimiser steps, and the metrics of every evaluation.

    Lightning's own logging would miss the step after which Ctrl-C stops a run.

    Args:
        every: Optimiser steps between two rows.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._logged = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last row."""
        return {"logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last row: batches of a step that is already logged are not logged again."""
        self._logged = state_dict["logged"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step if it is due."""
        step = trainer.global_step
        if step == self._logged or step % self.every or not isinstance(pl_module, TrainingModule):
            return
        self._logged = step
        numbers = {name: float(value) for name, value in pl_module.train_numbers.items()}
        self._log(trainer, numbers | {"train/lr": rates(trainer)})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the metrics."""
        if trainer.state.fn == TrainerFn.FITTING and isinstance(pl_module, TrainingModule):
            self._log(trainer, pl_module.val_numbers)
            for logger in trainer.loggers:
                logger.save()

    def _log(self, trainer: L.Trainer, numbers: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch + 1} | numbers, step=trainer.global_step)


def rates(trainer: L.Trainer) -> float:
    """Return the learning rate of the parts at full rate."""
    return max(group["lr"] for group in trainer.optimizers[0].param_groups)


def tensorboard_logger(folder: Path) -> Logger | None:
    """Return a TensorBoard logger, or None where TensorBoard is not installed."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        return None
