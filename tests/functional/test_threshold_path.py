"""Thresholds from query scores alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.cascade import cascade_choice
from lightning_efficient.functional.threshold_path import query_thresholds, threshold_path

INF = math.inf


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("points", [2, 11, 101])
def test_a_path_leads_from_always_asking_to_never_in_equal_steps(stages: int, points: int) -> None:
    scores = torch.rand(500, stages - 1)
    path = threshold_path(scores, points)
    assert (path.shape, path.dtype) == ((points, stages - 1), torch.float64)
    assert (path[0] == -INF).all()
    assert (path[-1] == INF).all()
    for index, thresholds in enumerate(path):
        kept = (scores.double() <= thresholds).sum(0)
        assert kept.tolist() == [math.ceil(500 * index / (points - 1) - 1e-9)] * (stages - 1)


def test_a_path_is_exact_in_the_precision_of_the_scores() -> None:
    scores = torch.rand(30)
    path = threshold_path(scores, 11)[1:-1]
    assert torch.equal(path.float().double(), path)


@given(scores=st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=1, max_size=15), points=st.integers(2, 20))
def test_a_path_never_falls(scores: list[tuple[int, ...]], points: int) -> None:
    path = threshold_path(torch.tensor(scores, dtype=torch.float32), points)
    assert (path[1:] >= path[:-1]).all()


def test_scores_that_are_not_finite_make_the_path_end_early() -> None:
    scores = torch.tensor([0.5, math.nan, INF, -INF])
    assert threshold_path(scores, 5).squeeze(1).tolist() == [-INF, 0.5, INF, INF, INF]


@pytest.mark.parametrize("coverage", [0.01, 0.3, 0.57, 0.999])
def test_a_hybrid_keeps_the_smallest_number_that_is_at_least_the_share(coverage: float) -> None:
    scores = torch.rand(1000)
    kept = cascade_choice(scores, query_thresholds(scores, coverage)) == 0
    assert int(kept.sum()) == math.ceil(coverage * 1000 - 1e-9)


def test_each_stage_keeps_its_share_of_what_reaches_it() -> None:
    scores = torch.rand(1000, 2)
    counts = cascade_choice(scores, query_thresholds(scores, 0.6)).bincount().tolist()
    assert counts == [600, 240, 160]


def test_full_coverage_keeps_every_finite_score_to_come() -> None:
    assert query_thresholds(torch.rand(4, 2), 1.0).tolist() == [INF, INF]


def test_a_stage_that_nothing_reaches_keeps_everything() -> None:
    assert query_thresholds(torch.tensor([[1.0, 5.0], [1.0, 6.0]]), 0.5).tolist() == [1.0, INF]


def test_scores_that_are_not_finite_move_on_and_count() -> None:
    scores = torch.tensor([[math.nan, 3.0], [-INF, 4.0], [1.0, 5.0], [2.0, 6.0]])
    assert query_thresholds(scores, 0.5).tolist() == [2.0, 3.0]
    assert query_thresholds(scores, 0.75).tolist() == [INF, 4.0]


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.1, math.nan])
def test_a_coverage_out_of_range_is_named(coverage: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"coverage={coverage} is outside \(0, 1\]"):
        query_thresholds(torch.rand(3), coverage)


def test_too_few_points_or_samples_are_named() -> None:
    with pytest.raises(ConfigurationError, match="points=1 must be at least 2"):
        threshold_path(torch.rand(3), 1)
    with pytest.raises(ConfigurationError, match="query_scores holds no samples"):
        threshold_path(torch.rand(0))
    with pytest.raises(ConfigurationError, match="query_scores holds no samples"):
        query_thresholds(torch.rand(0, 2), 0.5)
