from __future__ import annotations

from collections import UserDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.parts import SplitBatch, sequence_parts
from lightning_efficient.typing import Part, SequenceBatch

INPUTS = torch.arange(2 * 7 * 3.0).view(2, 7, 3)
LABELS = torch.tensor([4, 5])


@given(length=st.integers(1, 200), data=st.data())
def test_parts_are_those_of_tensor_split(length: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, length))
    expected = torch.arange(length).tensor_split(count)
    parts = sequence_parts(length, parts=count)
    assert [list(range(part.start, part.stop)) for part in parts] == [piece.tolist() for piece in expected]
    assert [(part.index, part.count, part.length) for part in parts] == [(i, count, length) for i in range(count)]


@given(length=st.integers(1, 200), part_length=st.integers(1, 250))
def test_parts_of_one_length_leave_no_tail(length: int, part_length: int) -> None:
    parts = sequence_parts(length, part_length=part_length)
    assert [step for part in parts for step in range(part.start, part.stop)] == list(range(length))
    assert all(part.stop - part.start == part_length for part in parts[:-1])


def test_the_released_split_of_thirteen_steps_into_four_has_a_fifth_part() -> None:
    assert sequence_parts(13, part_length=13 // 4)[-1] == Part(4, 5, 12, 13, 13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of parts"),
        ({"parts": 2, "part_length": 3}, "exactly one of parts"),
        ({"parts": 0}, "parts is 0; it must be a whole number above 0"),
        ({"part_length": -1}, "part_length is -1"),
        ({"parts": 2.5}, "parts is 2.5"),
        ({"parts": 8}, "sequences of 7 time steps cannot be cut into 8 parts; use at most 7 parts"),
    ],
)
def test_what_cannot_be_cut_is_said(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        sequence_parts(7, **options)


def pieces(split: SplitBatch, *path: object) -> list[Tensor]:
    found = []
    for piece in split:
        for key in path:
            piece = piece[key]
        found.append(piece)
    return found


Named = namedtuple("Named", ["inputs", "lengths"])


@pytest.mark.parametrize(
    ("batch", "path"),
    [
        ((INPUTS, LABELS), (0,)),
        ([INPUTS, LABELS], (0,)),
        ({"x": INPUTS, "y": LABELS}, ("x",)),
        (UserDict(x=INPUTS, y=LABELS), ("x",)),
        (SequenceBatch(INPUTS, LABELS, LABELS), (0,)),
        (((INPUTS, INPUTS + 1), LABELS), (0, 1)),
        (INPUTS, ()),
    ],
)
def test_every_kind_of_batch_is_cut_and_stays_of_its_kind(batch: object, path: tuple) -> None:
    split = SplitBatch.of(batch, parts=3)
    whole = batch
    for key in path:
        whole = whole[key]
    assert torch.equal(torch.cat(pieces(split, *path), 1), whole)
    assert [piece.shape[1] for piece in pieces(split, *path)] == [3, 2, 2]
    assert all(type(piece) is type(batch) for piece in split)
    assert split.size == 2


def test_labels_go_whole_into_each_part_and_labels_of_time_steps_are_cut() -> None:
    each = torch.arange(14).view(2, 7)
    split = SplitBatch.of((INPUTS, LABELS, each, "text"), parts=2)
    assert all(torch.equal(piece[1], LABELS) and piece[3] == "text" for piece in split)
    assert torch.equal(torch.cat(pieces(split, 2), 1), each)
    assert str(split) == (
        "2 parts of 3 to 4 time steps; cut along dimension 1: 0 (2, 7, 3), 2 (2, 7); whole in each part: 1 (2,), 3 str"
    )


def test_time_first_labels_are_not_mistaken_for_time_steps() -> None:
    # as many samples as time steps
    inputs, labels = torch.zeros(4, 4, 1), torch.arange(4)
    split = SplitBatch.of((inputs, labels), parts=2, time_dim=0)
    assert [tuple(piece[0].shape) for piece in split] == [(2, 4, 1), (2, 4, 1)]
    assert all(torch.equal(piece[1], labels) for piece in split)


def test_what_is_cut_can_be_named() -> None:
    classes = torch.zeros(2, 7)  # soft labels of seven classes, not of seven time steps
    assert all(piece[1].shape == (2, 7) for piece in SplitBatch.of((INPUTS, classes), parts=7, sequences=[0]))
    named = SplitBatch.of(SequenceBatch(INPUTS, classes, LABELS), parts=7, sequences=["inputs"])
    assert all(piece.target.shape == (2, 7) for piece in named)
    with pytest.raises(ConfigurationError, match=r"sequences names 'input', no element .* Did you mean 'inputs'"):
        SplitBatch.of({"inputs": INPUTS}, parts=2, sequences=["input"])
    with pytest.raises(ConfigurationError, match=r"sequences names 1, \(2,\), which does not have 7 time steps"):
        SplitBatch.of((INPUTS, LABELS), parts=2, sequences=[0, 1])


@pytest.mark.parametrize("kind", ["mapping", "named tuple"])
def test_lengths_become_the_valid_steps_of_the_part(kind: str) -> None:
    lengths = torch.tensor([2, 6])
    batch = {"inputs": INPUTS, "lengths": lengths} if kind == "mapping" else Named(INPUTS, lengths)
    split = SplitBatch.of(batch, parts=3)
    key = "lengths" if kind == "mapping" else 1
    assert [lengths.tolist() for lengths in pieces(split, key)] == [[2, 3], [0, 2], [0, 1]]


@pytest.mark.parametrize("lengths", [[0, 7], [3, 8], [-1, 2]])
def test_impossible_lengths_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="lengths must be 1 to 7, the time steps of the batch"):
        SplitBatch.of({"inputs": INPUTS, "lengths": torch.tensor(lengths)}, parts=2)
    with pytest.raises(ConfigurationError, match=r"lengths must be a tensor of shape \(2,\)"):
        SplitBatch.of({"inputs": INPUTS, "lengths": lengths}, parts=2)


def test_a_batch_without_sequences_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no tensor with a time axis"):
        SplitBatch.of({"y": LABELS, "name": "x"}, parts=2)
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(3, 1), torch.zeros(2, 1)])
    with pytest.raises(ConfigurationError, match="PackedSequence cannot be cut"):
        SplitBatch.of((packed, LABELS), parts=2)


def test_parts_are_views() -> None:
    assert (
        next(iter(SplitBatch.of(INPUTS, parts=2))).untyped_storage().data_ptr() == INPUTS.untyped_storage().data_ptr()
    )
