"""Progress of a run: a bar on a terminal, plain lines anywhere else."""

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from piip.train.clock import clock
from piip.train.logs import rates
from piip.train.module import TrainingModule

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_REFRESHES = 0.2


class ProgressReport(Callback):
    """Shows epoch, step, loss, learning rate, memory and the time left; metrics after every evaluation.

    Args:
        console: Where to; standard error by default, so that output can be piped.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._loss: Tensor | None = None
        self._started = 0.0
        self._first_batch = 0
        self._last_line = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin counting time."""
        self._started = self._last_line = time.monotonic()
        self._first_batch = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self.console.is_terminal and trainer.is_global_zero:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=self.console
            )
            self._bar.start()
            total = _batches(trainer) * (trainer.max_epochs or 1)
            self._task = self._bar.add_task("training", total=total, text="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar, or print a line every now and then."""
        if not trainer.is_global_zero:
            return
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._loss = loss if self._loss is None else self._loss.lerp(loss, 0.1)
        done, now = trainer.fit_loop.epoch_loop.total_batch_idx + 1, time.monotonic()
        pause = SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_REFRESHES
        last = self._bar is not None and batch_idx + 1 == _batches(trainer)
        if now - self._last_line < pause and not last:
            return  # the number of the loss is not asked for: a GPU goes on undisturbed
        self._last_line = now
        text = f"loss {float(self._loss):.3f}  lr {rates(trainer):.2e}  memory {peak_memory() / 2**30:.1f} GB"
        if self._bar is not None:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._bar.update(self._task, completed=done, description=epoch, text=text)
        else:
            self._print(f"{_place(trainer, batch_idx)}  {text}  eta {self._eta(trainer, done)}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the metrics."""
        if not trainer.is_global_zero or not isinstance(pl_module, TrainingModule):
            return
        loss = f"  loss {float(self._loss):.3f}" if self._loss is not None else ""
        spent = time.monotonic() - self._started
        self._print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}{loss}  {pl_module.headline()}  {clock(spent)}"
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it is."""
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _eta(self, trainer: L.Trainer, done: int) -> str:
        fresh = done - self._first_batch
        left = _batches(trainer) * (trainer.max_epochs or 1) - done
        return clock((time.monotonic() - self._started) / max(fresh, 1) * left)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False)


def peak_memory() -> int:
    """Return the largest amount of memory used so far in bytes: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _batches(trainer: L.Trainer) -> int:
    return int(trainer.num_training_batches)


def _place(trainer: L.Trainer, batch_idx: int) -> str:
    return (
        f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  batch {batch_idx + 1}/{_batches(trainer)}"
    )
