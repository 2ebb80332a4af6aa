"""Fronts, hypervolumes and knees against definitions that are slow and plain."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.pareto import hypervolume, knee, mnasnet_reward, pareto_mask


@st.composite
def clouds(draw, most: int = 9, largest: int = 5):
    """Points on a small grid, so that ties and duplicates occur, and a direction for each axis."""
    axes = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(st.integers(0, largest), min_size=axes, max_size=axes), min_size=1, max_size=most))
    return torch.tensor(rows, dtype=torch.float64), draw(st.lists(st.booleans(), min_size=axes, max_size=axes))


def dominates(a: torch.Tensor, b: torch.Tensor, maximize: list[bool]) -> bool:
    pairs = [(x, y) if more else (-x, -y) for x, y, more in zip(a.tolist(), b.tolist(), maximize, strict=True)]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


@given(clouds())
@settings(deadline=None)
def test_the_front_is_what_no_other_point_dominates(cloud) -> None:
    points, maximize = cloud
    expected = [not any(dominates(other, point, maximize) for other in points) for point in points]
    assert pareto_mask(points, maximize).tolist() == expected


@given(clouds())
@settings(deadline=None)
def test_the_front_does_not_change_when_an_axis_is_stretched_or_turned_with_its_direction(cloud) -> None:
    points, maximize = cloud
    front = pareto_mask(points, maximize)
    assert torch.equal(pareto_mask(points.exp() * 3 + 1, maximize), front)
    assert torch.equal(pareto_mask(-points, [not more for more in maximize]), front)


def test_many_points_are_compared_across_chunks() -> None:
    points = torch.rand(2500, 2, generator=torch.Generator().manual_seed(0))
    points[2400] = torch.tensor([-1.0, 2.0])
    front = pareto_mask(points, (False, True))
    assert front.nonzero().flatten().tolist() == [2400]


@given(clouds(most=6, largest=3))
@settings(max_examples=80, deadline=None)
def test_the_hypervolume_is_the_number_of_unit_cells_that_some_point_dominates(cloud) -> None:
    points, maximize = cloud
    costs = torch.where(torch.tensor(maximize), 3 - points, points)  # on the grid 0..3, less is better
    reference = [0.0 if more else 3.0 for more in maximize]
    cells = itertools.product(range(3), repeat=points.shape[1])
    covered = sum(bool((costs <= torch.tensor(cell, dtype=torch.float64)).all(1).any()) for cell in cells)
    assert hypervolume(points, reference, maximize) == covered


@given(clouds(most=6))
@settings(max_examples=50, deadline=None)
def test_the_hypervolume_is_that_of_the_front_alone_and_of_any_order(cloud) -> None:
    points, maximize = cloud
    reference = [-1.0 if more else 7.5 for more in maximize]
    volume = hypervolume(points, reference, maximize)
    assert hypervolume(points[pareto_mask(points, maximize)], reference, maximize) == pytest.approx(volume)
    assert hypervolume(points.flip(0), reference, maximize) == pytest.approx(volume)


def test_points_beyond_the_reference_add_nothing() -> None:
    points = torch.tensor([[1.0, 0.5], [5.0, 0.9], [0.5, -0.1]])
    assert hypervolume(points, (3.0, 0.0), (False, True)) == 1.0
    assert hypervolume(points[1:], (3.0, 0.0), (False, True)) == 0.0
    assert hypervolume(torch.zeros(0, 2), (1.0, 1.0), (False, False)) == 0.0


@pytest.mark.parametrize("flipped", [False, True])
def test_the_knee_of_a_hyperbola_is_its_middle(flipped: bool) -> None:
    x = torch.logspace(-1, 1, 41, dtype=torch.float64)  # 1 / x: both axes span 0.1 to 10
    y = 1 / x
    points = torch.stack([-y if flipped else x, x if flipped else y], 1)
    index = knee(points, (flipped, False))
    assert float(x[index]) == pytest.approx(1.0)


def test_the_knee_is_on_the_front_and_an_end_where_nothing_bends() -> None:
    ends = [[0.0, 0.0], [10.0, 1.0]]
    assert knee(torch.tensor([*ends[::-1]]), (False, True)) == 1
    assert knee(torch.tensor([*ends, [5.0, 0.2]]), (False, True)) == 0  # below the line
    assert knee(torch.tensor([*ends, [2.0, 0.8], [1.0, -5.0], [9.0, 0.5]]), (False, True)) == 2
    assert knee(torch.tensor([[3.0, 3.0]]), (True, True)) == 0


@given(st.floats(0.01, 1), st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_the_reward_is_the_accuracy_at_the_target_and_falls_with_latency(
    accuracy: float, latency: float, target: float
) -> None:
    assert mnasnet_reward(accuracy, target, target) == accuracy
    assert mnasnet_reward(accuracy, latency, target) == pytest.approx(
        accuracy * math.exp(-0.07 * math.log(latency / target))
    )
    assert mnasnet_reward(accuracy, 2 * latency, target) < mnasnet_reward(accuracy, latency, target)
    assert mnasnet_reward(accuracy, latency, target, exponent=0) == accuracy


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pareto_mask(torch.zeros(3), [True]), r"points of shape \(3,\) must be \(N, D\)"),
        (lambda: pareto_mask(torch.tensor([[math.nan, 1.0]]), [True, True]), "without NaN"),
        (lambda: pareto_mask(torch.zeros(3, 2), [True]), r"maximize=\[True\] must say for each of the 2 axes"),
        (lambda: hypervolume(torch.zeros(3, 2), (1.0,), [True, True]), "one finite number for each of the 2 axes"),
        (lambda: hypervolume(torch.zeros(3, 2), (1.0, math.inf), [True, True]), "one finite number"),
        (lambda: knee(torch.zeros(3, 3), [True] * 3), r"must be \(N, 2\)"),
        (lambda: knee(torch.zeros(0, 2), [True] * 2), "at least one"),
        (lambda: knee(torch.tensor([[math.inf, 1.0]]), [False, True]), "finite"),
        (lambda: mnasnet_reward(0.5, 0, 80), "latency_ms=0 must be a finite number above 0"),
        (lambda: mnasnet_reward(0.5, 80, -1), "target_ms=-1 must be"),
        (lambda: mnasnet_reward(-0.5, 80, 80), "accuracy=-0.5 must be"),
        (lambda: mnasnet_reward(0.5, 80, 80, 0.07), "exponent=0.07 must be .* 0 or less"),
    ],
    ids=["flat", "nan", "axes", "short", "open", "three", "none", "infinite", "latency", "target", "accuracy", "sign"],
)
def test_bad_input_is_named(call, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        call()
