"""Cascades: who answers, what it costs, and the published thresholds against the authors' values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.cascade import (
    budgeted_thresholds,
    cascade_choice,
    expected_cost,
    published_thresholds,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "hybrid.npz"
INF, NAN = math.inf, math.nan


# ---- who answers


def test_the_first_stage_at_or_below_its_threshold_answers_and_the_last_takes_the_rest() -> None:
    scores = torch.tensor([[0.5, 9.0], [0.6, 0.25], [0.6, 0.3]])
    assert cascade_choice(scores, [0.5, 0.25]).tolist() == [0, 1, 2]


def test_a_hybrid_may_give_its_scores_without_a_second_dimension() -> None:
    scores, expected = torch.tensor([0.125, 0.25, 0.375]), [0, 0, 1]
    assert cascade_choice(scores, [0.25]).tolist() == cascade_choice(scores.unsqueeze(1), [0.25]).tolist() == expected


@pytest.mark.parametrize("score", [INF, -INF, NAN])
@pytest.mark.parametrize("threshold", [INF, 0.0, -INF])
def test_a_score_that_is_not_finite_is_never_kept(score: float, threshold: float) -> None:
    assert cascade_choice(torch.tensor([score]), [threshold]).tolist() == [1]


@pytest.mark.parametrize(("threshold", "stage"), [(INF, 0), (-INF, 1)])
def test_infinite_thresholds_keep_everything_or_nothing(threshold: float, stage: int) -> None:
    largest = torch.finfo(torch.float32).max
    assert cascade_choice(torch.tensor([-largest, 0.0, largest]), [threshold]).tolist() == [stage] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_threshold_taken_from_a_score_keeps_that_sample_in_every_precision(dtype: torch.dtype) -> None:
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    for row, score in enumerate(scores.tolist()):
        assert cascade_choice(scores, [score])[row] == 0


def test_a_float32_score_just_above_a_threshold_in_float64_is_not_kept() -> None:
    assert torch.tensor([0.2]).double() > 0.2
    assert cascade_choice(torch.tensor([0.2]), [0.2]).tolist() == [1]


def test_no_samples_have_no_answers() -> None:
    choice = cascade_choice(torch.zeros(0, 2), [0.0, 0.0])
    assert (choice.shape, choice.dtype) == ((0,), torch.int64)


@pytest.mark.parametrize(
    ("scores", "thresholds", "match"),
    [
        (torch.zeros(3, 2), [0.0], r"thresholds has shape \(1,\); give 2"),
        (torch.zeros(3), [0.0, 1.0], r"thresholds has shape \(2,\); give 1"),
        (torch.zeros(3, 0), [], r"query_scores has dtype torch.float32 and shape \(3, 0\)"),
        (torch.zeros(3, dtype=torch.int64), [0.0], r"query_scores has dtype torch.int64"),
        (torch.zeros(3), [NAN], r"thresholds holds NaN"),
    ],
)
def test_scores_and_thresholds_that_do_not_fit_are_named(
    scores: torch.Tensor, thresholds: list[float], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        cascade_choice(scores, thresholds)


@given(
    scores=st.lists(st.tuples(*[st.integers(0, 5)] * 2), min_size=1, max_size=20),
    low=st.tuples(*[st.integers(-1, 6)] * 2),
    more=st.tuples(*[st.integers(0, 3)] * 2),
)
def test_larger_thresholds_never_ask_a_later_stage(
    scores: list[tuple[int, ...]], low: tuple[int, ...], more: tuple[int, ...]
) -> None:
    table = torch.tensor(scores, dtype=torch.float32)
    strict = cascade_choice(table, low)
    loose = cascade_choice(table, [a + b for a, b in zip(low, more, strict=True)])
    assert (loose <= strict).all()


# ---- what it costs


def test_every_answer_costs_what_its_stage_costs_in_all() -> None:
    assert expected_cost(torch.tensor([0, 1, 1, 2]), [1.0, 3.0, 13.0]) == pytest.approx((1 + 3 + 3 + 13) / 4)


@pytest.mark.parametrize(
    ("choice", "costs", "match"),
    [
        ([0, 1], [3.0, 1.0], r"stage_costs=\[3.0, 1.0\] must be cumulative"),
        ([0, 1], [-1.0, 1.0], r"must be cumulative"),
        ([0, 1], [0.0, INF], r"must be cumulative"),
        ([0, 2], [1.0, 2.0], r"choice names the stages 0 to 2, and stage_costs has 2 costs"),
        ([-1, 0], [1.0, 2.0], r"choice names the stages -1 to 0"),
        ([], [1.0, 2.0], r"choice has shape \(0,\)"),
    ],
)
def test_costs_that_cannot_be_are_named(choice: list[int], costs: list[float], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        expected_cost(torch.tensor(choice, dtype=torch.int64), costs)


# ---- published thresholds


@pytest.mark.parametrize("answers", [1, 5])
def test_published_thresholds_are_those_of_the_authors_code(answers: int) -> None:
    golden = np.load(GOLDEN)
    probabilities, target = torch.tensor(golden["cascade/softmax"]), torch.tensor(golden["cascade/y"])
    best = probabilities.topk(answers, dim=2)
    correct = (best.indices == target[None, :, None]).any(2)
    for tolerance, expected in zip(golden["cascade/eps"], golden[f"cascade/deltas_top{answers}"], strict=True):
        found = published_thresholds(best.values.sum(2), correct, float(tolerance))
        assert found.tolist() == pytest.approx(expected.tolist(), abs=2e-7)


def by_definition(confidences: torch.Tensor, correct: torch.Tensor, tolerance: float) -> float:
    accuracy = {c: correct[confidences >= c].double().mean().item() for c in confidences.tolist()}
    return min(c for c, value in accuracy.items() if value >= max(accuracy.values()) - tolerance - 1e-12)


@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30),
    tolerance=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
)
def test_published_thresholds_follow_their_definition_with_ties(rows: list[tuple[int, bool]], tolerance: float) -> None:
    confidences = torch.tensor([[row[0] / 8 for row in rows]])
    correct = torch.tensor([[row[1] for row in rows]])
    expected = by_definition(confidences[0], correct[0], tolerance)
    assert published_thresholds(confidences, correct, tolerance).tolist() == [expected]


def test_each_stage_is_judged_on_all_samples() -> None:
    confidences, correct = torch.rand(3, 50), torch.rand(3, 50) < 0.7
    alone = [published_thresholds(confidences[[m]], correct[[m]], 0.05).item() for m in range(3)]
    assert published_thresholds(confidences, correct, 0.05).tolist() == alone


def test_half_precision_gives_thresholds_in_float32() -> None:
    assert published_thresholds(torch.ones(1, 2).half(), torch.ones(1, 2).bool(), 0.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("confidences", "correct", "tolerance", "match"),
    [
        (torch.ones(2, 3), torch.ones(2, 3).bool(), 1.5, r"tolerance=1.5 is outside \[0, 1\]"),
        (torch.ones(2, 3), torch.ones(2, 3), 0.1, r"correct has dtype torch.float32"),
        (torch.ones(2, 3), torch.ones(3, 2).bool(), 0.1, r"give booleans of shape \(2, 3\)"),
        (torch.ones(3), torch.ones(3).bool(), 0.1, r"confidences has dtype torch.float32 and shape \(3,\)"),
        (torch.ones(2, 0), torch.ones(2, 0).bool(), 0.1, r"at least one of each"),
        (torch.full((1, 1), NAN), torch.ones(1, 1).bool(), 0.1, r"confidences holds a value that is not finite"),
    ],
)
def test_published_thresholds_refuse_what_they_cannot_use(
    confidences: torch.Tensor, correct: torch.Tensor, tolerance: float, match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        published_thresholds(confidences, correct, tolerance)


# ---- budgeted thresholds


def shares_that_end(confidences: torch.Tensor, thresholds: torch.Tensor) -> list[int]:
    choice = cascade_choice(-confidences.T[:, :-1], -thresholds[:-1])
    return choice.bincount(minlength=len(confidences)).tolist()


@pytest.mark.parametrize(("parameter", "expected"), [(0.5, [57, 28, 15]), (1.0, [33, 33, 34]), (2.0, [14, 28, 58])])
def test_shares_that_end_are_a_geometric_series(parameter: float, expected: list[int]) -> None:
    confidences = torch.rand(3, 100, generator=torch.Generator().manual_seed(0))
    thresholds = budgeted_thresholds(confidences, parameter)
    assert shares_that_end(confidences, thresholds) == expected
    assert thresholds[-1] == -INF


def test_the_second_stage_takes_the_surest_of_those_that_are_left() -> None:
    confidences = torch.tensor([[0.9, 0.8, 0.1, 0.2, 0.3, 0.4], [0.99, 0.98, 0.3, 0.5, 0.4, 0.6], [0.0] * 6])
    assert budgeted_thresholds(confidences, 1.0)[:2].tolist() == pytest.approx([0.8, 0.5])


def test_a_stage_that_ties_leave_too_few_samples_for_ends_none() -> None:
    assert budgeted_thresholds(torch.full((3, 9), 0.5), 1.0).tolist() == [0.5, INF, -INF]


def test_an_extreme_parameter_does_not_overflow() -> None:
    confidences = torch.rand(4, 50)
    assert budgeted_thresholds(confidences, 1e300).tolist() == [INF, INF, INF, -INF]
    assert budgeted_thresholds(confidences, 1e-300)[0] == confidences[0].min()


@pytest.mark.parametrize("parameter", [0.0, -1.0, NAN, INF])
def test_a_parameter_out_of_range_is_named(parameter: float) -> None:
    with pytest.raises(ConfigurationError, match=f"share_parameter={parameter} must be a finite number above 0"):
        budgeted_thresholds(torch.rand(2, 5), parameter)
