import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piip.data.sampler import GroupedBatchSampler
from piip.errors import ConfigError

GROUPS = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@settings(max_examples=60)
@given(GROUPS, st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_every_process_makes_equal_pure_batches(groups, batch_size, world_size, epoch):
    groups = np.array(groups)
    everything = []
    for rank in range(world_size):
        sampler = GroupedBatchSampler(groups, batch_size, seed=5, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for batch in batches:
            assert len(batch) == batch_size
            assert {number for number, _ in batch} == {epoch}
            assert len({groups[index] for _, index in batch}) == 1
        everything.append([index for batch in batches for _, index in batch])
    assert len({len(part) for part in everything}) == 1
    assert {index for part in everything for index in part} == set(range(len(groups)))


@settings(max_examples=40)
@given(GROUPS, st.integers(1, 5), st.integers(1, 4))
def test_without_shuffle_every_image_comes_once(groups, batch_size, world_size):
    samplers = [
        GroupedBatchSampler(np.array(groups), batch_size, shuffle=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
    seen = [index for sampler in samplers for batch in sampler for _, index in batch]
    assert sorted(seen) == list(range(len(groups)))


def test_order_depends_on_seed_and_epoch_only():
    groups = np.arange(30) % 2

    def order(seed, epoch, start=0):
        sampler = GroupedBatchSampler(groups, 4, seed=seed)
        sampler.sampler.set_epoch(epoch, start)
        return [[index for _, index in batch] for batch in sampler]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert order(0, 3, start=2) == order(0, 3)[2:]


@pytest.mark.parametrize(
    "bad", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"groups": np.array([], int)}]
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match="batch size above 0"):
        GroupedBatchSampler(**{"groups": np.zeros(3, int), "batch_size": 2, **bad})
