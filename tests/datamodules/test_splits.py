from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.datamodules._splits import stratified_split
from lightning_efficient.errors import ConfigurationError

labels = st.lists(st.integers(0, 5), min_size=2, max_size=200).map(np.array)


@given(labels=labels, data=st.data(), seed=st.integers(0, 2**31))
def test_parts_are_disjoint_complete_and_in_proportion(labels, data, seed):
    held_out_size = data.draw(st.integers(1, len(labels) - 1))
    kept, held_out = stratified_split(labels, held_out_size, seed)
    assert len(held_out) == held_out_size
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for name in np.unique(labels):
        exact = (labels == name).sum() * held_out_size / len(labels)
        assert abs((labels[held_out] == name).sum() - exact) < 1


def test_choice_depends_on_its_seed_and_not_on_the_global_one():
    labels = np.arange(100) % 4
    np.random.seed(0)
    first = stratified_split(labels, 20, seed=1)[1]
    np.random.seed(1)
    assert stratified_split(labels, 20, seed=1)[1].tolist() == first.tolist()
    assert stratified_split(labels, 20, seed=2)[1].tolist() != first.tolist()


@pytest.mark.parametrize("held_out", [0, 4, 9])
def test_an_empty_part_is_refused(held_out):
    with pytest.raises(ConfigurationError, match=f"{held_out} of 4 samples cannot be held out"):
        stratified_split(np.zeros(4, dtype=np.int64), held_out, seed=0)
