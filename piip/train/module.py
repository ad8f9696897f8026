"""What the training of every task shares, as a Lightning module."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from piip.errors import PiipError
from piip.train.optimizer import build_optimizer
from piip.train.recipe import TrainRecipe
from piip.train.schedule import Schedule
from piip.train.sharding import clip_gradients, gather, scatter, shard


class TrainingError(PiipError):
    """Training cannot go on."""


class TrainingModule(L.LightningModule):
    """A model with its losses, its optimiser and its evaluation.

    A task is a subclass with `losses`, `evaluate_batch` and `score`. Random numbers of a step follow from seed,
    epoch, batch and process alone, so that a resumed run repeats an uninterrupted one exactly.

    Args:
        model: The model to train.
        recipe: The run.

    Attributes:
        scores: Metrics of the last evaluation, JSON-ready.
        metric: The number that decides which checkpoint is the best; higher is better.
        train_numbers: Losses of the last batch, by their names in metrics.csv.
        val_numbers: Metrics of the last evaluation, by their names in metrics.csv.
    """

    def __init__(self, model: nn.Module, recipe: TrainRecipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.scores: dict[str, Any] = {}
        self.metric = 0.0
        self.train_numbers: dict[str, Tensor] = {}
        self.val_numbers: dict[str, float] = {}
        self._evaluated: list[Any] = []
        self._is_sharded_now = False

    @abstractmethod
    def losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the parts of the loss of a training batch; their sum is minimised."""

    @abstractmethod
    def evaluate_batch(self, batch: Any) -> list[Any]:
        """Return what `score` needs to know about a validation batch, small and on the CPU."""

    @abstractmethod
    def score(self, evaluated: list[Any]) -> tuple[dict[str, Any], dict[str, float], float]:
        """Return JSON-ready scores, the numbers to log and the number that decides."""

    def headline(self) -> str:
        """Return the metrics of the last evaluation in a few words, for the progress report."""
        return f"metric {self.metric:.3f}"

    def on_train_start(self) -> None:
        """Evaluate what a resumed run begins with, if it was stopped there, however often it evaluates now."""
        if self.trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation:
            self.trainer.check_val_every_n_epoch = 1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the random numbers of this step."""
        entropy = (self.recipe.trainer.seed, self.current_epoch, batch_idx, self.global_rank)
        seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed))
        settings = self.recipe.trainer
        last = self.current_epoch + 1 == settings.epochs  # is always evaluated
        self.trainer.check_val_every_n_epoch = 1 if last else settings.eval_every

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            TrainingError: The loss is not finite.
        """
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise self.stopped(_explain(losses))
        self.train_numbers = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.train_numbers |= {"train/loss": total.detach()}
        return total

    def on_validation_start(self) -> None:
        """Let every process evaluate on its own."""
        if self._sharded:
            gather(self.model)

    def on_validation_end(self) -> None:
        """Share the model again."""
        if self._sharded:
            scatter(self.model)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Collect the predictions of a batch."""
        self._evaluated += self.evaluate_batch(batch)

    def on_validation_epoch_end(self) -> None:
        """Score the predictions of all processes."""
        evaluated, self._evaluated = _gathered(self._evaluated), []
        self.scores, self.val_numbers, self.metric = self.score(evaluated)

    def configure_model(self) -> None:
        """Let batch norms see the batches of all GPUs, and shard the model where the strategy is FSDP."""
        if self.trainer.world_size > 1 and self.trainer.strategy.root_device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # there is none for CPUs
        if self._sharded and not self._is_sharded_now:
            shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]
            self._is_sharded_now = True

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients, also where only some of them are sharded.

        Lightning's own way refuses fused optimisers in bfloat16, although nothing is scaled there.
        """
        if gradient_clip_val is None:
            return
        clip = clip_gradients if self._sharded else nn.utils.clip_grad_norm_
        clip(self.model.parameters(), gradient_clip_val)

    @property
    def _sharded(self) -> bool:
        return self.recipe.trainer.strategy == "fsdp"

    def configure_optimizers(self) -> Any:
        """Return the optimiser and the schedule, which changes after every step."""
        optimizer = build_optimizer(self.model, self.recipe.optimizer, one_by_one=self._sharded)
        settings = self.recipe.trainer
        # Lightning's estimated_stepping_batches would set up the loaders before a resumed run has told them
        # where to go on.
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        steps = -(-batches // settings.accumulate)
        schedule = Schedule(optimizer, self.recipe.schedule, steps, settings.epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def stopped(self, reason: str) -> TrainingError:
        """Return the error that says where training stopped, and why."""
        return TrainingError(
            f"Training stopped in step {self.global_step + 1} (epoch {self.current_epoch + 1}): {reason}"
        )


def _explain(losses: Mapping[str, Tensor]) -> str:
    values = {name: float(value.detach()) for name, value in losses.items()}
    bad = [f"{name} is {value:g}" for name, value in values.items() if not math.isfinite(value)]
    named = ", ".join(bad) or "the sum of the losses overflows"
    return f"{named}; lower optimizer.lr, set trainer.clip_norm or use precision 32, then start again."


def _gathered(items: list[Any]) -> list[Any]:
    """Return the items of all processes."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return items
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
