"""How an export is compared with its network, and what is told of an exporter's complaints."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient._graph_problems import quiet
from lightning_efficient.inference._export_graph import export_problem
from lightning_efficient.inference._export_parity import difference, drawn


@given(st.integers(1, 9), st.floats(-3, 3), st.integers(0, 8))
def test_one_changed_value_is_found_wherever_it_is(size: int, change: float, place: int) -> None:
    ours = torch.linspace(-1, 1, size)
    theirs = ours.clone()
    theirs[place % size] += change
    found = difference((ours,), (theirs,))
    apart = abs(float(theirs[place % size].double() - ours[place % size].double()))
    assert found == pytest.approx(apart / max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([torch.inf, 1.0], [torch.inf, 1.0], 0.0),
        ([torch.nan, 1.0], [torch.nan, 1.0], 0.0),
        ([torch.nan, 1.0], [0.0, 1.0], torch.inf),
        ([0.0, 1.0], [torch.nan, 1.0], torch.inf),
        ([-torch.inf, 1.0], [torch.inf, 1.0], torch.inf),
        ([100.0, 0.0], [101.0, 0.0], 1 / 101),
    ],
)
def test_values_that_are_not_finite_must_be_the_same(ours: Any, theirs: Any, expected: float) -> None:
    assert difference((torch.tensor(ours),), (torch.tensor(theirs),)) == pytest.approx(expected)


def test_another_dtype_or_shape_is_infinitely_far() -> None:
    assert difference((torch.zeros(2),), (torch.zeros(2).long(),)) == torch.inf
    assert difference((torch.zeros(2),), (torch.zeros(2, 1),)) == torch.inf
    assert difference((torch.zeros(2),), (torch.zeros(2), torch.zeros(2))) == torch.inf


def test_batches_for_the_check_differ_from_row_to_row_even_of_a_constant_example() -> None:
    batch = drawn(torch.zeros(1, 4), 3)
    assert batch.shape == (3, 4)
    assert len(batch.unique(dim=0)) == 3
    numbers = drawn(torch.tensor([[5, 9]]), 20)
    assert set(numbers.flatten().tolist()) == {5, 9}


def test_exporters_are_kept_quiet_and_errors_pass(capfd: pytest.CaptureFixture[str]) -> None:
    def export_loudly() -> None:
        sys.stdout.write("noise")
        warnings.warn("noise", stacklevel=1)
        logging.getLogger("torch.onnx").error("noise")
        raise RuntimeError("heard")

    with pytest.raises(RuntimeError, match="heard"), quiet():
        export_loudly()
    assert "noise" not in "".join(capfd.readouterr())
    assert logging.getLogger("torch.onnx").isEnabledFor(logging.ERROR)


def test_a_long_problem_is_cut_and_a_silent_one_is_named_by_its_class() -> None:
    assert len(str(export_problem("edge", "ONNX", RuntimeError("x" * 999)))) < 260
    assert str(export_problem("edge", "ONNX", KeyError())).endswith("ONNX: KeyError")
