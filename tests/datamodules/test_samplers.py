from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.datamodules.samplers import ShuffledSampler, UnpaddedDistributedSampler, balanced_batch_size
from lightning_efficient.errors import ConfigurationError

sizes = st.integers(1, 300)
worlds = st.integers(1, 8)
batches = st.integers(1, 40)


@given(size=sizes, world=worlds)
def test_processes_together_count_every_sample_exactly_once(size, world):
    if size < world:
        with pytest.raises(ConfigurationError, match=f"{size} samples cannot be shared by {world} processes"):
            UnpaddedDistributedSampler(size, world)
        return
    samplers = [UnpaddedDistributedSampler(size, world, rank) for rank in range(world)]
    dealt = [list(sampler) for sampler in samplers]
    assert sorted(index for mine in dealt for index in mine) == list(range(size))
    assert [len(sampler) for sampler in samplers] == [len(mine) for mine in dealt]


@given(size=st.integers(8, 300), world=worlds, batch_size=batches)
def test_balanced_batches_are_equally_many_on_all_processes(size, world, batch_size):
    chosen = balanced_batch_size(batch_size, size, world)
    counts = {math.ceil(len(UnpaddedDistributedSampler(size, world, rank)) / chosen) for rank in range(world)}
    assert len(counts) == 1
    if world == 1:
        assert chosen == batch_size


@given(size=sizes, world=worlds, batch_size=batches, seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 5))
def test_shuffled_processes_draw_complete_batches_without_overlap(size, world, batch_size, seed, epoch):
    drawn = []
    for rank in range(world):
        sampler = ShuffledSampler(size, batch_size, world, rank, seed)
        sampler.set_epoch(epoch)
        drawn.append([key % size for key in sampler])
        assert len(sampler) == len(drawn[-1])
    together = [index for mine in drawn for index in mine]
    if size >= world * batch_size:
        assert len(set(together)) == len(together)
        assert all(len(mine) == size // (world * batch_size) * batch_size for mine in drawn)
    else:
        assert set(together) == set(range(size))
        assert {len(mine) for mine in drawn} == {math.ceil(size / world)}


def test_order_follows_from_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = ShuffledSampler(50, 10, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(1)
    first = order(3, 2)
    torch.manual_seed(2)
    assert order(3, 2) == first
    assert order(4, 2) != first
    assert [key % 50 for key in order(3, 3)] != [key % 50 for key in first]


def test_keys_of_different_epochs_never_meet():
    sampler = ShuffledSampler(50, 10)
    assert not set(sampler) & set(sampler)


def test_a_plain_loop_reshuffles_after_each_complete_pass():
    sampler = ShuffledSampler(20, 5, seed=7)
    passes = [list(sampler) for _ in range(3)]
    for epoch, keys in enumerate(passes):
        sampler.set_epoch(epoch)
        assert list(sampler) == keys


def test_epoch_set_after_the_iterator_was_made_still_counts():
    sampler, expected = ShuffledSampler(20, 5), ShuffledSampler(20, 5)
    iterator = iter(sampler)
    for either in (sampler, expected):
        either.set_epoch(4)
    assert list(iterator) == expected.keys()


@pytest.mark.parametrize("batches_drawn", [0, 1, 3, 4])
def test_loader_state_carries_seed_epoch_and_position(batches_drawn):
    def loader(seed):
        return StatefulDataLoader(range(2**62), batch_size=5, sampler=ShuffledSampler(20, 5, seed=seed))

    original = loader(seed=11)
    original.sampler.set_epoch(6)
    whole_epoch = [batch.tolist() for batch in original]
    original.sampler.set_epoch(7)
    next_epoch = [batch.tolist() for batch in original]
    original.sampler.set_epoch(6)
    iterator = iter(original)
    assert [next(iterator).tolist() for _ in range(batches_drawn)] == whole_epoch[:batches_drawn]

    resumed = loader(seed=0)
    resumed.load_state_dict(original.state_dict())

    remaining = whole_epoch[batches_drawn:] or next_epoch
    assert [batch.tolist() for batch in resumed] == remaining
