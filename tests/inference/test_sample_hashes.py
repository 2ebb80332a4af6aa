"""Samples are recognised by their bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.sample_hashes import hash_samples, overlap


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (1, 4, 4)])
def test_every_dtype_and_shape_has_one_hash_per_sample(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    hashes = hash_samples(torch.tensor([0, 1, 0, 1]).reshape(4, *[1] * len(shape)).expand(4, *shape).to(dtype))
    assert (hashes.shape, hashes.dtype) == ((4,), torch.int64)
    assert (hashes == hashes[[2, 3, 0, 1]]).all()
    assert hashes[0] != hashes[1]


def test_one_bit_makes_another_sample() -> None:
    image = torch.rand(3, 8, 8)
    other = image.clone()
    other[2, 7, 7] = torch.nextafter(other[2, 7, 7], torch.tensor(2.0))
    first, second = hash_samples(torch.stack([image, other])).tolist()
    assert first != second


def test_neither_memory_order_nor_batch_plays_a_part() -> None:
    images = torch.rand(5, 3, 8, 8)
    expected = hash_samples(images)
    assert torch.equal(hash_samples(images.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(torch.cat([hash_samples(each) for each in images.split(2)]), expected)
    assert torch.equal(hash_samples(images.requires_grad_()), expected)


def test_hashes_stay_the_same_between_runs() -> None:
    assert hash_samples(torch.tensor([[1, 2, 3]], dtype=torch.uint8)).tolist() == [3881955430054305505]


def test_samples_without_values_are_all_the_same() -> None:
    assert hash_samples(torch.zeros(0, 3)).shape == (0,)
    assert len(set(hash_samples(torch.zeros(3, 0)).tolist())) == 1


def test_a_single_number_is_no_set_of_samples() -> None:
    with pytest.raises(ConfigurationError, match="inputs is a single number"):
        hash_samples(torch.tensor(1.0))


@given(first=st.lists(st.integers(0, 5)), second=st.lists(st.integers(0, 5)))
def test_overlap_counts_the_first_samples_that_are_among_the_second(first: list[int], second: list[int]) -> None:
    hashes = [torch.tensor(each, dtype=torch.int64) for each in (first, second)]
    assert overlap(*hashes) == sum(each in second for each in first)
