"""What holds for any scores and errors: curves, areas over a perfect ranking, thresholds, and Pareto fronts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lightning_efficient.functional as LF
from lightning_efficient.functional.operating_points import expected_losses, risk_at_coverage_form
from lightning_efficient.functional.risk_coverage import (
    are_errors,
    as_summary,
    cast_samples,
    checked_samples,
    sort_into_groups,
)

seeds = st.integers(0, 2**32 - 1)


@st.composite
def samples(draw, binary: bool = False, least: int = 1) -> tuple[Tensor, Tensor]:
    """Confidences in both precisions, with ties, zeros of both signs and large values, and losses."""
    size, generator = draw(st.integers(least, 12)), torch.Generator().manual_seed(draw(seeds))
    values = torch.randn(size, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1e-30, 1.0, 1e30]))
    if draw(st.booleans()):
        values = torch.randint(-2, 3, (size,), generator=generator).double() * draw(st.sampled_from([-1.0, 0.5]))
    loss = torch.rand(size, generator=generator, dtype=torch.float64)
    loss = (loss < 0.4).double() if binary or draw(st.booleans()) else loss
    return values.to(draw(st.sampled_from([torch.float32, torch.float64]))), loss


@given(given_samples=samples())
def test_a_curve_has_the_risk_of_what_each_of_its_thresholds_accepts(given_samples: tuple[Tensor, Tensor]) -> None:
    confidence, loss = given_samples
    curve = LF.risk_coverage_curve(confidence, loss)
    assert curve.threshold.tolist() == confidence.unique().flip(0).tolist()
    assert curve.coverage[-1] == 1
    for coverage, risk, joint, threshold in zip(*curve, strict=True):
        accepted = confidence >= threshold
        assert coverage == accepted.double().mean()
        torch.testing.assert_close(risk, loss[accepted].mean())
        torch.testing.assert_close(joint, risk * coverage)


@given(given_samples=samples(), seed=seeds)
def test_areas_ignore_the_order_of_samples_and_any_rising_change_of_the_scores(
    given_samples: tuple[Tensor, Tensor], seed: int
) -> None:
    confidence, loss = given_samples
    order = torch.randperm(len(loss), generator=torch.Generator().manual_seed(seed))
    ranks = confidence.unique(return_inverse=True)[1].double()
    for area in (LF.aurc, LF.augrc, LF.eaurc, LF.eaugrc):
        found = area(confidence, loss)
        torch.testing.assert_close(area(confidence[order], loss[order]), found, rtol=0, atol=1e-12)
        torch.testing.assert_close(area(ranks.exp(), loss), found, rtol=0, atol=1e-12)


@given(given_samples=samples())
def test_no_ranking_is_better_than_a_perfect_one(given_samples: tuple[Tensor, Tensor]) -> None:
    confidence, loss = given_samples
    for excess, area in ((LF.eaurc, LF.aurc), (LF.eaugrc, LF.augrc)):
        assert excess(confidence, loss) >= -1e-12
        assert 0 <= area(confidence, loss) <= 1
    errors = (loss > 0.5).double()
    for excess in (LF.eaurc, LF.eaugrc):
        assert excess(-errors, errors) == 0
    # a constant score knows nothing: it is the mean over all orders
    rate = errors.mean()
    torch.testing.assert_close(LF.eaugrc(torch.zeros(len(errors)), errors), rate / 2 - rate**2 / 2, rtol=0, atol=1e-12)


@given(given_samples=samples(), share=st.floats(0.01, 1))
def test_expected_losses_rise_linearly_between_the_ends_of_ties(
    given_samples: tuple[Tensor, Tensor], share: float
) -> None:
    summary = LF.risk_coverage_summary(*given_samples)
    assert as_summary(summary, None, None) is summary
    ends = torch.cat([summary.counts.new_zeros(1), summary.counts])
    losses = torch.cat([summary.losses.new_zeros(1), summary.losses])
    torch.testing.assert_close(expected_losses(summary, summary.counts), summary.losses)
    between = ends[:-1] + share * ends.diff()
    torch.testing.assert_close(expected_losses(summary, between), losses[:-1] + share * losses.diff())


@given(at_least=st.booleans())
def test_the_older_option_is_the_form_at_least(at_least: bool) -> None:
    confidence, loss = torch.tensor([2.0, 1.0, 1.0]), torch.tensor([0, 1, 0])
    form = risk_at_coverage_form("expected", at_least)
    one = LF.risk_at_coverage(confidence, loss, coverage=0.5, at_least=at_least)
    assert one == LF.risk_at_coverage(confidence, loss, coverage=0.5, form=form)


@given(given_samples=samples())
def test_groups_of_ties_are_those_of_the_sorted_scores(given_samples: tuple[Tensor, Tensor]) -> None:
    confidence, loss = given_samples
    assert are_errors(loss) == set(loss.tolist()).issubset({0.0, 1.0})
    values, losses, weight = checked_samples(confidence, loss, None)
    assert weight is None
    again = cast_samples(values, losses, None)
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], losses)
    order, last, scores = sort_into_groups(confidence)
    assert sorted(order.tolist()) == list(range(len(confidence)))
    assert torch.equal(confidence[order], confidence.sort(descending=True).values)
    assert torch.equal(confidence[order][last], scores)
    assert (scores.diff() < 0).all()
    assert int(last[-1]) == len(confidence) - 1


@given(given_samples=samples(), risk=st.floats(0, 1))
def test_the_empirical_threshold_accepts_the_most_that_meets_its_target(
    given_samples: tuple[Tensor, Tensor], risk: float
) -> None:
    confidence, loss = given_samples
    found = LF.empirical_threshold(confidence, loss, risk=risk)
    counts = {
        float(threshold): (int((confidence >= threshold).sum()), float(loss[confidence >= threshold].sum()))
        for threshold in confidence.unique()
    }
    summary = LF.risk_coverage_summary(confidence, loss)
    met = summary.counts[summary.selective_risks <= risk].tolist()
    assert found.accepted == (int(met[-1]) if met else 0)
    if found.accepted:
        assert counts[found.threshold] == (found.accepted, pytest.approx(found.errors))
    else:
        assert found.threshold == math.inf
    assert LF.empirical_threshold(confidence, loss, risk=1.0).accepted == len(loss)


@given(given_samples=samples(binary=True), first=st.floats(0, 1), second=st.floats(0, 1))
def test_a_larger_target_of_the_risk_never_covers_less(
    given_samples: tuple[Tensor, Tensor], first: float, second: float
) -> None:
    low, high = sorted((first, second))
    for kind in ("selective", "generalized"):
        narrow, strict = LF.coverage_at_risk(*given_samples, risk=low, kind=kind)
        wide, loose = LF.coverage_at_risk(*given_samples, risk=high, kind=kind)
        assert narrow <= wide
        assert strict >= loose


@st.composite
def fronts(draw) -> tuple[Tensor, list[bool]]:
    size = draw(st.integers(1, 8))
    points = torch.randn(size, 2, generator=torch.Generator().manual_seed(draw(seeds)), dtype=torch.float64)
    points = points.round() if draw(st.booleans()) else points
    return points, draw(st.lists(st.booleans(), min_size=2, max_size=2))


@given(front=fronts(), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_a_knee_is_on_the_front_and_does_not_depend_on_the_units(
    front: tuple[Tensor, list[bool]], scale: float, shift: float
) -> None:
    points, maximize = front
    mask, found = LF.pareto_mask(points, maximize), LF.knee(points, maximize)
    assert mask[found]
    assert LF.knee(-points, [not more for more in maximize]) == found

    def gain(index: int) -> float:
        """Return how far a point is beyond the line between the ends of the front, in shares of their ranges."""
        signed = torch.where(torch.tensor(maximize), -points, points)
        best, worst = signed[mask].amin(0), signed[mask].amax(0)
        return float((1 - (signed[index] - best) / torch.where(worst > best, worst - best, 1.0)).sum()) - 1

    in_other_units = LF.knee(points * torch.tensor([scale, 1.0]) + torch.tensor([shift, -shift]), maximize)
    assert gain(in_other_units) == pytest.approx(gain(found), abs=1e-6)
    assert gain(found) >= max(gain(index) for index in mask.nonzero().flatten().tolist()) - 1e-9
