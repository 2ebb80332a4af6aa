"""Which samples networks and router learn from follows from the keys alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules._router_samples import RouterSamples


def samples(kind: Any, size: int = 10, share: float = 0.4, folds: int = 3, seed: int = 0) -> RouterSamples:
    data = SimpleNamespace(sample_keys=True, train_size=size)
    return RouterSamples(kind, data, share=share, folds=folds, seed=seed)


@given(size=st.integers(1, 200), share=st.floats(0.01, 0.99), seed=st.integers(0, 20))
def test_a_sample_is_held_out_or_the_networks_and_never_both(size: int, share: float, seed: int) -> None:
    split, keys = samples("held_out", size, share, seed=seed), torch.arange(size)
    ours, theirs = split.router(keys), split.networks(keys)
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, ~theirs)
    assert int(ours.sum()) == max(round(share * size), 1)


def test_the_split_is_the_same_for_each_epoch_of_augmented_samples_and_each_process() -> None:
    first, again = samples("held_out"), samples("held_out")
    keys = torch.arange(10)
    for stream in range(3):
        assert torch.equal(again.router(keys + 10 * stream), first.router(keys))  # type: ignore[arg-type]
    assert not torch.equal(samples("held_out", seed=1).router(keys), first.router(keys))  # type: ignore[arg-type]


@given(size=st.integers(1, 100), folds=st.integers(2, 5))
def test_each_sample_is_left_out_by_one_copy_and_copies_share_them_evenly(size: int, folds: int) -> None:
    fold = samples("out_of_fold", size, folds=folds).fold(torch.arange(size))
    counts = torch.bincount(fold, minlength=folds)
    assert len(counts) == folds
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("kind", ["out_of_fold", "all"])
def test_else_every_sample_is_everybodys(kind: str) -> None:
    split = samples(kind)
    assert split.networks(torch.arange(10)) is split.router(torch.arange(10)) is None
    assert split.splits is (kind != "all")


@pytest.mark.parametrize(("data", "name"), [(None, "no data module"), (SimpleNamespace(), "SimpleNamespace")])
def test_data_without_keys_are_everybodys_or_refused(data: Any, name: str) -> None:
    assert not RouterSamples("all", data, share=0.4, folds=3, seed=0).splits
    for kind in ("held_out", "out_of_fold"):
        message = rf"model\.router_data {kind} needs samples with keys, and {name} gives none; use a data module"
        with pytest.raises(ConfigurationError, match=message):
            RouterSamples(kind, data, share=0.4, folds=3, seed=0)  # type: ignore[arg-type]
