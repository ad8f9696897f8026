"""Checkpoints that are complete or absent, and a Ctrl-C that loses nothing."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from piip.errors import CheckpointError
from piip.files import atomic_write, write_json
from piip.train.folder import RunFolder
from piip.train.logs import CsvLogger
from piip.train.module import TrainingModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and reads them without unpickling code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            PiipError: The disk is full or not writable; an earlier checkpoint stays as it was.
        """
        with atomic_write(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch's zip writer hides the OSError
                raise OSError(str(error).splitlines()[0]) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
        """Read a checkpoint.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        try:
            checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"There is no checkpoint {path} to resume from.") from error
        except Exception as error:  # torch's readers raise whatever a damaged byte leads to
            raise CheckpointError(
                f"The checkpoint {path} is damaged ({type(error).__name__}); resume from another one."
            ) from error
        if not isinstance(checkpoint, dict) or not checkpoint.keys() >= _WRITTEN_BY_LIGHTNING:
            raise CheckpointError(
                f"{path} is no checkpoint of a run; resume from its last.ckpt or best.ckpt."
            )
        return checkpoint


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` after every epoch and ``best.ckpt`` with ``results.json`` of the best evaluation.

    ``last.ckpt`` is also kept before every evaluation: one that fails costs no epoch, and is what a resumed run
    begins with.

    Ctrl-C (SIGINT) and SIGTERM are answered after the running optimiser step, when ``last.ckpt`` can be exact; a
    second Ctrl-C stops at once.

    Args:
        folder: Where to.
        every: Steps between checkpoints within an epoch; only at its end when None.
    """

    def __init__(self, folder: RunFolder, every: int | None = None) -> None:
        self.folder = folder
        self.every = every
        self.best: float | None = None
        self.stop_asked = False
        self._previous: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the best metric so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best metric so far."""
        self.best = state_dict["best"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for Ctrl-C."""
        try:
            self._previous = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        except ValueError:  # not in the main thread: signals are somebody else's business
            self._previous = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the state now and then, and stop here if asked to."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if self.every and trainer.global_step % self.every == 0:
            self._keep_last(trainer)
        if trainer.strategy.reduce_boolean_decision(self.stop_asked, all=False):
            self._keep_last(trainer)
            raise KeyboardInterrupt(
                f"stopped by Ctrl-C after step {trainer.global_step}; continue with --out {self.folder.path} "
                "--resume"
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the state before it is evaluated."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        # Lightning evaluates when it resumes only what was stopped within a batch of the evaluation.
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.reset()
        progress.increment_ready()
        progress.increment_started()
        self._keep_last(trainer)
        progress.reset()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights if they are the best."""
        if trainer.state.fn != TrainerFn.FITTING or not isinstance(pl_module, TrainingModule):
            return
        if self.best is not None and pl_module.metric <= self.best:
            return
        self.best = pl_module.metric
        trainer.save_checkpoint(self.folder.best)
        if trainer.is_global_zero:
            where = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
            write_json(self.folder.results, where | pl_module.scores)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the state after every epoch."""
        self._keep_last(trainer)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Drop the logged rows of steps that will be repeated."""
        for logger in trainer.loggers:
            if isinstance(logger, CsvLogger):
                logger.rewind(checkpoint["global_step"])

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening for Ctrl-C."""
        self._restore_handlers()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening for Ctrl-C."""
        self._restore_handlers()

    def _keep_last(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:  # a resumed run goes on from these rows
            logger.save()
        trainer.save_checkpoint(self.folder.last)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.stop_asked:
            raise KeyboardInterrupt("stopped at once by the second Ctrl-C")
        self.stop_asked = True


_WRITTEN_BY_LIGHTNING = {"pytorch-lightning_version", "state_dict", "global_step"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class MovingAverage(WeightAveraging):
    """The exponential moving average of the weights, which is what gets evaluated and saved.

    The decay rises with the number of updates, as ``min(decay, (1 + n) / (10 + n))``: short runs would otherwise
    end near their first weights.

    Args:
        decay: Decay of a long run.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=_Average(decay))


class _Average:
    """Moves all tensors of a dtype at once; one at a time, each would wait for a GPU to tell the count."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, averages: Any, currents: Any, count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            number = float(count)
            decay = min(self.decay, (1 + number) / (10 + number))
            get_ema_multi_avg_fn(decay)(averages, currents, count)
        else:
            for average, current in zip(averages, currents, strict=True):
                average.copy_(current)


def model_weights(path: Path) -> dict[str, Tensor]:
    """Return the model's tensors of a checkpoint: the averaged ones where there is an average.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
    """
    state = AtomicCheckpointIO().load_checkpoint(path)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
