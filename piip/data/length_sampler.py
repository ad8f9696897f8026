"""Batches of conversations of similar length, so that little is computed on padding."""

import numpy as np
from numpy.typing import NDArray

from piip.data.sampler import GroupedBatchSampler
from piip.errors import ConfigError

_WINDOW = 50  # steps of all processes that are sorted together: the more, the less padding and chance


class LengthGroupedBatchSampler(GroupedBatchSampler):
    """Batches whose samples have similar lengths and belong to one group, such as with or without images.

    Samples are shuffled, sorted by length within windows, and dealt out in steps. In every step, all processes
    get samples of the same group that are neighbours in length: none waits for another. Steps come in random
    order; that with the longest sample is the first one, so that too little memory shows at once.

    Everything else, repetition and resuming too, is as in `GroupedBatchSampler`.

    Args:
        lengths: ``(len(dataset),)`` length of every sample in any unit.
        groups: ``(len(dataset),)`` group of every sample.
        batch_size: Samples in a batch of one process.
        seed: Seed of the order.
        shuffle: Training order, or that of the data set.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ConfigError: A size or rank is out of range, there is no sample, or lengths and groups differ in number.
    """

    def __init__(
        self,
        lengths: NDArray[np.integer],
        groups: NDArray[np.integer],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            np.asarray(groups, np.int64),
            batch_size,
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
        )
        if len(lengths) != len(groups):
            raise ConfigError(f"There are {len(lengths)} lengths for {len(groups)} samples; give one each.")
        self.lengths = np.asarray(lengths)

    def __len__(self) -> int:
        """Number of batches of this process in a whole epoch."""
        if not self.shuffle:
            return super().__len__()
        step = self.batch_size * self.world_size
        return sum(-(-int(size) // step) for size in np.unique(self.groups, return_counts=True)[1])

    def _shuffled(self) -> list[NDArray[np.int64]]:
        random = np.random.default_rng((self.seed, self.epoch))
        steps: list[NDArray[np.int64]] = []
        for group in np.unique(self.groups):
            steps += self._steps(random.permutation(np.flatnonzero(self.groups == group)))
        order = random.permutation(len(steps))
        longest = int(np.argmax([self.lengths[steps[position]].max() for position in order]))
        order[[0, longest]] = order[[longest, 0]]
        return [batch for position in order for batch in np.split(steps[position], self.world_size)]

    def _steps(self, members: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the samples of a group in steps, filled up to whole ones and sorted within windows."""
        size = self.batch_size * self.world_size
        count = -(-len(members) // size)
        filled = np.resize(members, count * size)
        windows = np.split(filled, range(_WINDOW * size, len(filled), _WINDOW * size))
        by_length = [window[np.argsort(-self.lengths[window], kind="stable")] for window in windows]
        return np.split(np.concatenate(by_length), count)
