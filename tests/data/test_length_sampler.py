"""Batches of conversations of similar length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piip.data.length_sampler import LengthGroupedBatchSampler
from piip.errors import ConfigError

SAMPLES = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 1)), min_size=1, max_size=60)


def epoch_of(lengths, groups, batch_size=4, epoch=0, start=0, **options):
    sampler = LengthGroupedBatchSampler(np.array(lengths), np.array(groups), batch_size, **options)
    sampler.set_epoch(epoch, start)
    batches = list(sampler)
    assert len(batches) == len(sampler) - start
    assert {number for batch in batches for number, _ in batch} <= {epoch}
    return [[index for _, index in batch] for batch in batches]


@settings(max_examples=60)
@given(SAMPLES, st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_steps_are_of_one_group_and_nothing_is_left_out(samples, batch_size, world_size, epoch):
    lengths, groups = (np.array(column) for column in zip(*samples, strict=True))
    ranks = [
        epoch_of(lengths, groups, batch_size, epoch, seed=5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    steps = [np.concatenate(step) for step in zip(*ranks, strict=True)]
    assert all(len(step) == batch_size * world_size for step in steps)
    assert all(len({groups[index] for index in step}) == 1 for step in steps)
    seen = np.bincount(np.concatenate(steps), minlength=len(lengths))
    assert seen.min() >= 1
    repeated = sum(-int((groups == group).sum()) % (batch_size * world_size) for group in np.unique(groups))
    assert seen.sum() == len(lengths) + repeated
    assert lengths[steps[0]].max() == lengths.max()


def padding(lengths, batches):
    return (
        sum(lengths[batch].max() * len(batch) for batch in batches) / lengths[np.concatenate(batches)].sum()
        - 1
    )


def test_little_is_padded_and_processes_are_even():
    lengths = np.random.default_rng(0).lognormal(5, 1, 4000).astype(int) + 1
    groups = np.arange(4000) % 5 == 0
    ranks = [epoch_of(lengths, groups, 8, rank=rank, world_size=2) for rank in range(2)]
    shuffled = np.split(np.random.default_rng(1).permutation(4000), 500)
    assert padding(lengths, ranks[0]) < 0.1
    assert padding(lengths, shuffled) > 1
    longest = np.array([[lengths[batch].max() for batch in batches] for batches in ranks])
    assert (longest.min(0) / longest.max(0)).mean() > 0.9


def test_the_order_depends_on_seed_and_epoch_only():
    lengths, groups = np.arange(60) % 17, np.arange(60) % 2
    assert epoch_of(lengths, groups, epoch=3) == epoch_of(lengths, groups, epoch=3)
    assert epoch_of(lengths, groups, epoch=3) != epoch_of(lengths, groups, epoch=4)
    assert epoch_of(lengths, groups, epoch=3) != epoch_of(lengths, groups, epoch=3, seed=1)
    assert epoch_of(lengths, groups, epoch=3, start=5) == epoch_of(lengths, groups, epoch=3)[5:]


def test_without_shuffle_the_order_is_that_of_the_data():
    batches = epoch_of([5, 1, 9], [1, 0, 1], 2, shuffle=False)
    assert batches == [[0, 1], [2]]


def test_lengths_and_groups_belong_together():
    with pytest.raises(ConfigError, match="2 lengths for 3 samples"):
        LengthGroupedBatchSampler(np.ones(2), np.zeros(3, int), 1)
