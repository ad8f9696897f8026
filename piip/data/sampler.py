"""Batches of images of one orientation, the same on every machine and after every restart."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from piip.errors import ConfigError

Key = tuple[int, int]  # epoch and index: workers need no other state


class GroupedBatchSampler(Sampler[list[Key]]):
    """Batches whose images belong to one group, such as landscape or portrait (HEADS 9).

    Training order (``shuffle``) depends on seed and epoch only. Groups are filled up to whole batches, and
    the batches to a multiple of the number of processes, by repeating images, so that every process makes
    the same number of equal steps. Without ``shuffle`` the order is that of the data set and nothing is
    repeated.

    Args:
        groups: ``(len(dataset),)`` group of each image, such as ``dataset.orientations``.
        batch_size: Images in a batch of one process.
        seed: Seed of the order.
        shuffle: Training order, or that of the data set.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ConfigError: A size or rank is out of range, or there is no image.
    """

    def __init__(
        self,
        groups: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or not len(groups):
            raise ConfigError(
                f"Batches need images, a batch size above 0 and a rank below the number of processes; got "
                f"{len(groups)} images, batch size {batch_size}, rank {rank} of {world_size}."
            )
        self.groups = np.asarray(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> "GroupedBatchSampler":
        """Itself: Lightning sets the epoch on the ``sampler`` of a batch sampler."""
        return self

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch; ``start`` batches of this process are skipped, to resume within it."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Number of batches of this process in a whole epoch."""
        sizes = np.unique(self.groups, return_counts=True)[1]
        total = sum(-(-int(size) // self.batch_size) for size in sizes)
        if self.shuffle:
            return -(-total // self.world_size)
        total = -(-len(self.groups) // self.batch_size)
        return len(range(self.rank, total, self.world_size))

    def __iter__(self) -> Iterator[list[Key]]:
        batches = self._shuffled() if self.shuffle else self._in_order()
        for batch in batches[self.rank :: self.world_size][self.start :]:
            yield [(self.epoch, int(index)) for index in batch]

    def _in_order(self) -> list[NDArray[np.int64]]:
        order = np.arange(len(self.groups))
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def _shuffled(self) -> list[NDArray[np.int64]]:
        random = np.random.default_rng((self.seed, self.epoch))
        batches: list[NDArray[np.int64]] = []
        for group in np.unique(self.groups):
            members = random.permutation(np.flatnonzero(self.groups == group))
            count = -(-len(members) // self.batch_size)
            batches += np.split(np.resize(members, count * self.batch_size), count)
        order = random.permutation(len(batches))
        whole = -(-len(order) // self.world_size) * self.world_size
        return [batches[position] for position in np.resize(order, whole)]
