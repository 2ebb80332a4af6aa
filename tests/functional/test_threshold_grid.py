"""The search over models and thresholds against the authors' and against brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.operating_points import coverage_at_risk
from lightning_efficient.functional.threshold_grid import GridChoice, best_coverage_at_error, best_error_at_coverage

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "one_sided.npz")
PRICES = (0.49, 1.67)
SEARCHES: tuple[tuple[str, str, Callable[..., GridChoice]], ...] = (
    ("best_cov_at_error", "risk", best_coverage_at_error),
    ("best_err_at_cov", "coverage", best_error_at_coverage),
)

# few values, so that ties within and between models are common
one_model = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=6, max_size=6)
models = st.lists(one_model, min_size=1, max_size=3)
labels = st.lists(st.integers(0, 2), min_size=6, max_size=6)


def golden_scores() -> list[Tensor]:
    return [torch.from_numpy(GOLDEN[f"osp_search__scores_mu{price}"]) for price in PRICES]


def golden_target() -> Tensor:
    return torch.from_numpy(GOLDEN["osp_search__labels"])


def by_hand(scores: Tensor, target: Tensor, thresholds: list[float], wins: Callable[..., bool]) -> GridChoice | None:
    """Try every pair in order and keep the first that wins."""
    best = None
    for model, of_model in enumerate(scores):
        for threshold in thresholds:
            accepted = (of_model >= threshold).any(1)
            wrong = accepted & (of_model.max(1).indices != target)
            coverage, error = (int(mask.sum()) / len(target) for mask in (accepted, wrong))
            if wins(coverage, error, best):
                best = GridChoice(model, threshold, coverage, error)
    return best


@pytest.mark.parametrize(("table", "option", "search"), SEARCHES)
@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("stacked", [False, True])
def test_the_released_form_finds_bit_for_bit_what_the_authors_search_finds(
    table: str, option: str, search: Callable[..., GridChoice], row: int, stacked: bool
) -> None:
    wanted, *expected = GOLDEN[f"osp_search__{table}"][row].tolist()
    scores: Any = torch.stack(golden_scores()) if stacked else golden_scores()
    thresholds = torch.from_numpy(np.linspace(0, 1, 1000))
    choice = search(scores, golden_target(), thresholds, **{option: wanted}, form="released")
    assert [choice.coverage, choice.error, PRICES[choice.model], choice.threshold] == expected


def test_the_exact_form_keeps_pairs_that_meet_the_risk_exactly() -> None:
    thresholds = torch.linspace(0, 1, 1000, dtype=torch.float64)
    exact, released = (
        best_coverage_at_error(golden_scores(), golden_target(), thresholds, risk=0.005, form=form)
        for form in ("exact", "released")
    )
    assert exact.error == 0.005
    assert exact.coverage > released.coverage


@pytest.mark.parametrize("risk", [0.0, 0.005, 0.02, 0.1])
def test_no_equispaced_threshold_beats_the_distinct_scores(risk: float) -> None:
    thresholds = torch.linspace(0, 1, 1000)
    few, all_of_them = (
        best_coverage_at_error(golden_scores(), golden_target(), given, risk=risk) for given in (thresholds, None)
    )
    assert all_of_them.coverage >= few.coverage
    assert all_of_them.error <= risk


def test_one_model_is_searched_as_by_the_coverage_at_a_risk() -> None:
    scores, target = golden_scores()[1], golden_target()
    choice = best_coverage_at_error([scores], target, risk=0.01)
    confidence, prediction = scores.max(1)
    expected = coverage_at_risk(confidence, prediction != target, risk=0.01, kind="generalized")
    assert (choice.coverage, choice.threshold) == tuple(value.item() for value in expected)


@given(models, labels, st.lists(st.integers(-1, 6), min_size=1, max_size=8), st.floats(0, 1))
@settings(deadline=None)
def test_coverage_at_an_error_is_that_of_trying_every_pair(
    scores: list[Any], target: list[int], thresholds: list[int], risk: float
) -> None:
    scores, classes = torch.tensor(scores, dtype=torch.float32), torch.tensor(target)

    def wins(coverage: float, error: float, best: GridChoice | None) -> bool:
        return error <= risk and coverage > (best.coverage if best else 0)

    expected = by_hand(scores, classes, thresholds, wins) or GridChoice(0, math.inf, 0.0, 0.0)
    assert best_coverage_at_error(scores, classes, torch.tensor(thresholds), risk=risk) == expected
    every = sorted({value for of_model in scores.amax(2).tolist() for value in of_model})
    expected = by_hand(scores, classes, every, wins) or GridChoice(0, math.inf, 0.0, 0.0)
    found = best_coverage_at_error(scores, classes, risk=risk)
    assert (found.model, found.coverage, found.error) == (expected.model, expected.coverage, expected.error)


@given(models, labels, st.lists(st.integers(-1, 6), min_size=1, max_size=8), st.floats(0.01, 1))
@settings(deadline=None)
def test_error_at_a_coverage_is_that_of_trying_every_pair(
    scores: list[Any], target: list[int], thresholds: list[int], least: float
) -> None:
    scores, classes = torch.tensor(scores, dtype=torch.float32), torch.tensor(target)

    def wins(coverage: float, error: float, best: GridChoice | None) -> bool:
        return coverage >= least and error < (best.error if best else math.inf)

    expected = by_hand(scores, classes, thresholds, wins)
    if expected is None:
        with pytest.raises(ConfigurationError, match="is reached by no threshold"):
            best_error_at_coverage(scores, classes, torch.tensor(thresholds), coverage=least)
    else:
        assert best_error_at_coverage(scores, classes, torch.tensor(thresholds), coverage=least) == expected
    every = sorted({value for of_model in scores.amax(2).tolist() for value in of_model})
    expected = by_hand(scores, classes, every, wins)
    found = best_error_at_coverage(scores, classes, coverage=least)
    assert expected is not None
    assert (found.model, found.coverage, found.error) == (expected.model, expected.coverage, expected.error)


@given(models, labels, st.floats(0, 1))
@settings(deadline=None)
def test_the_threshold_really_has_its_coverage_and_error(scores: list[Any], target: list[int], risk: float) -> None:
    scores, classes = torch.tensor(scores, dtype=torch.float32), torch.tensor(target)
    choice = best_coverage_at_error(scores, classes, risk=risk)
    confidence, prediction = scores[choice.model].max(1)
    accepted = confidence >= choice.threshold
    assert accepted.double().mean().item() == choice.coverage
    assert (accepted & (prediction != classes)).double().mean().item() == choice.error <= risk


def test_a_score_meets_a_threshold_in_its_own_dtype() -> None:
    # 0.9 in float32 is below 0.9 in float64
    scores = torch.tensor([[[0.9, 0.1]]])
    choice = best_coverage_at_error(scores, torch.tensor([0]), torch.tensor([0.9], dtype=torch.float64), risk=0.0)
    assert choice == GridChoice(0, 0.9, 1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_answer_of_float32(dtype: torch.dtype) -> None:
    rounded = torch.stack(golden_scores()).to(dtype)
    assert best_coverage_at_error(rounded, golden_target(), risk=0.01) == best_coverage_at_error(
        rounded.float(), golden_target(), risk=0.01
    )


def test_where_every_answer_is_wrong_nothing_is_accepted() -> None:
    scores, target = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]]), torch.tensor([1, 1])
    assert best_coverage_at_error(scores, target, risk=0.0) == GridChoice(0, math.inf, 0.0, 0.0)


@pytest.mark.parametrize("search", [best_coverage_at_error, best_error_at_coverage])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(2, 3)}, r"scores of model 0 have shape \(3,\)"),
        ({"scores": []}, "there are 0 models and 2 samples"),
        ({"scores": [torch.zeros(0, 3)], "target": torch.zeros(0, dtype=torch.long)}, "1 models and 0 samples"),
        ({"scores": [torch.full((2, 3), math.nan)]}, "confidence"),
        ({"target": torch.zeros(3, dtype=torch.long)}, r"integers of shape \(2,\)"),
        ({"target": torch.zeros(2, 3)}, "soft targets"),
        ({"thresholds": torch.zeros(0)}, r"thresholds have shape \(0,\)"),
        ({"thresholds": torch.tensor([math.nan])}, "without NaN"),
        ({"form": "release"}, "Did you mean 'released'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    search: Callable[..., GridChoice], change: dict[str, Any], message: str
) -> None:
    target = {"risk": 0.1} if search is best_coverage_at_error else {"coverage": 0.9}
    inputs = {"scores": torch.rand(1, 2, 3), "target": torch.tensor([0, 1]), **target, **change}
    with pytest.raises(ConfigurationError, match=message):
        search(**inputs)


def test_percents_are_refused() -> None:
    scores, target = torch.rand(1, 2, 3), torch.tensor([0, 1])
    with pytest.raises(ConfigurationError, match="risk=5 is outside"):
        best_coverage_at_error(scores, target, risk=5)
    with pytest.raises(ConfigurationError, match=r"coverage=0\.0 is outside"):
        best_error_at_coverage(scores, target, coverage=0.0)
