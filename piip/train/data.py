"""Data loaders of a training run, the same batches after every restart."""

import atexit
import functools
import multiprocessing
import signal
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from piip.data.sampler import GroupedBatchSampler
from piip.errors import ConfigError
from piip.train.recipe import TrainRecipe


def outlive_first_sigterm(worker: int) -> None:
    """Let a loader process go on after the first SIGTERM.

    Schedulers send it to the whole group of processes; the run finishes its step first (see `Checkpoints`) and
    needs its loaders for that.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


@functools.cache
def end_loaders_at_exit() -> None:
    """Let no loader process keep Python from ending.

    After an error, Python sends them one SIGTERM, which they outlive, and waits for them.
    """
    atexit.register(_kill_children)


def _kill_children() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report the death of each
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class ResumableLoader(DataLoader):
    """A loader that goes on where it stopped within an epoch.

    Lightning saves and restores its state. What a batch holds depends on seed, epoch and position only, so the
    state is two numbers.

    Args:
        dataset: Accepts the sampler's keys.
        sampler: Batches of the dataset.
        workers: Loader processes.
        collate_fn: Makes a batch of items.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: GroupedBatchSampler,
        workers: int,
        collate_fn: Callable[[Any], Any],
        pin_memory: bool = False,
    ) -> None:
        self._start = (-1, 0)  # epoch and batches done in it
        self._done = 0
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            persistent_workers=False,
            worker_init_fn=outlive_first_sigterm,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator runs when its first batch is asked for: only then has Lightning set the epoch.
        sampler: Any = self.batch_sampler
        epoch, done = self._start
        self._done = done if epoch == sampler.epoch and done < len(sampler) else 0
        sampler.set_epoch(sampler.epoch, self._done)
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of batches handed out in it."""
        return {"epoch": self.batch_sampler.epoch, "done": self._done}  # type: ignore[union-attr]

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were handed out."""
        self._start = (state["epoch"], state["done"])


class TaskData(L.LightningDataModule):
    """Training and validation loaders of a recipe; a task is a subclass that reads its kind of data.

    Args:
        recipe: The run.

    Attributes:
        train_set: Training split, augmented.
        val_set: Validation split with the same classes.

    Raises:
        ConfigError: The recipe names no data.
        DataError: The data set cannot be used.
    """

    train_set: Any
    val_set: Any

    def __init__(self, recipe: TrainRecipe) -> None:
        super().__init__()
        if not recipe.data.folder:
            raise ConfigError("The recipe names no data; add --data.folder FOLDER.")
        self.recipe = recipe
        end_loaders_at_exit()
        self.read()

    @abstractmethod
    def read(self) -> None:
        """Set ``train_set`` and ``val_set``, and refuse what could not be trained on or measured."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in label order, empty where a task knows none."""
        return tuple(self.train_set.classes)

    @staticmethod
    @abstractmethod
    def collate(items: Any) -> Any:
        """Make a batch of items."""

    def groups(self, dataset: Any) -> NDArray[np.int64]:
        """Return a number for every item; batches hold items of one number."""
        return np.zeros(len(dataset), np.int64)

    def train_sampler(self, **options: Any) -> GroupedBatchSampler:
        """Return the batches of the training split, ``batch_size`` and so on given."""
        return GroupedBatchSampler(self.groups(self.train_set), **options)

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of the training split."""
        data = self.recipe.data
        sampler = self.train_sampler(
            batch_size=data.batch_size,
            seed=self.recipe.trainer.seed,
            rank=self._rank,
            world_size=self._world_size,
        )
        return ResumableLoader(self.train_set, sampler, data.workers, self.collate, self._on_gpu)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the validation split: every image once, shared among the processes.

        Raises:
            ConfigError: A process would get no batch, and leave the others waiting for it.
        """
        data = self.recipe.data
        sampler = GroupedBatchSampler(
            self.groups(self.val_set),
            data.eval_batch_size,
            shuffle=False,
            rank=self._rank,
            world_size=self._world_size,
        )
        if -(-len(self.val_set) // data.eval_batch_size) < self._world_size:
            raise ConfigError(
                f"The {data.val} split of {len(self.val_set)} images has fewer batches than there are processes "
                f"({self._world_size}); lower data.eval_batch_size or use fewer devices."
            )
        return DataLoader(
            self.val_set,
            batch_sampler=sampler,
            num_workers=data.workers,
            collate_fn=self.collate,
            pin_memory=False,
            worker_init_fn=outlive_first_sigterm,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors of a batch; what describes the files stays."""
        return tuple(
            part.to(device, non_blocking=True) if isinstance(part, torch.Tensor) else part for part in batch
        )

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _on_gpu(self) -> bool:
        return bool(self.trainer and self.trainer.strategy.root_device.type == "cuda")
