"""Query scores, curves over coverage and thresholds, against brute force and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.routing import (
    QUERY_SCORES,
    accuracy_at_coverage,
    gap_to_oracle,
    hybrid_area,
    hybrid_curve,
    oracle_curve,
    proxy_label,
    query_score,
    query_threshold,
)

TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def pair_of(seed: int, samples: int = 40, values: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with many ties, and who is right."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, values, (samples,), generator=generator).float()
    base, large = (torch.rand(samples, generator=generator) < share for share in (0.5, 0.7))
    return scores, base, large


samples = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-3, 3), min_size=n, max_size=n).map(lambda each: torch.tensor(each).float()),
        st.lists(st.booleans(), min_size=n, max_size=n).map(torch.tensor),
        st.lists(st.booleans(), min_size=n, max_size=n).map(torch.tensor),
    )
)


@pytest.mark.parametrize("score", QUERY_SCORES)
def test_every_score_asks_more_about_a_flat_answer_than_about_a_sure_one(score: str) -> None:
    flat, sure = query_score(torch.tensor([[0.1, 0.0, 0.0], [9.0, 0.0, 0.0]]), score)
    assert flat > sure


def test_scores_are_their_formulas() -> None:
    logits = torch.tensor([[1.0, 0.5, -1.0], [2.0, 2.0, 0.0]], dtype=torch.float64)
    probs, half = logits.softmax(1), (logits / 2).softmax(1)
    first, second = probs.sort(descending=True).values[:, :2].unbind(1)
    wanted = {
        "msp": -first,
        "margin": second - first,
        "logit_margin": torch.tensor([-0.5, 0.0], dtype=torch.float64),
        "entropy": -(probs * probs.log()).sum(1),
        "gini": -(probs**2).sum(1),
        "energy": -logits.exp().sum(1).log(),
        "energy_softmax": -probs.exp().sum(1).log(),
        "max_logit": -logits.amax(1),
    }
    assert set(wanted) == set(QUERY_SCORES)
    for name, values in wanted.items():
        torch.testing.assert_close(query_score(logits, name), values, rtol=0, atol=1e-12)
    torch.testing.assert_close(query_score(logits, "gini", temperature=2.0), -(half**2).sum(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(query_score(logits, "energy", 2.0), -2 * (logits / 2).exp().sum(1).log())


def test_energy_after_the_softmax_lies_in_a_narrow_band_and_that_of_logits_does_not() -> None:
    logits = 20 * torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    narrow, wide = query_score(logits, "energy_softmax"), query_score(logits, "energy")
    assert -math.log(9 + math.e) - 1e-6 <= narrow.min()
    assert narrow.max() <= -math.log(10) - 0.1 + 1e-6
    assert wide.max() - wide.min() > 10


def test_a_function_gives_a_confidence_and_is_negated() -> None:
    logits = torch.tensor([[2.0, 0.0], [4.0, 0.0]])
    assert query_score(logits, lambda z: z[:, 0], temperature=2.0).tolist() == [-1.0, -2.0]


def test_half_precision_is_scored_in_float32() -> None:
    assert query_score(torch.randn(4, 3).bfloat16(), "gini").dtype == torch.float32


@pytest.mark.parametrize(
    ("score", "logits", "said"),
    [
        ("entrpy", torch.zeros(2, 3), r"score='entrpy' is not one of .*Did you mean 'entropy'"),
        ("logit_margin", torch.zeros(2, 1), r"C >= 2"),
        ("gini", torch.zeros(3), r"\(N, C\), got \(3,\)"),
    ],
)
def test_a_score_that_cannot_work_is_told_in_one_line(score: str, logits: Tensor, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        query_score(logits, score)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_the_proxy_asks_only_where_the_base_is_wrong_and_the_global_model_right(base: bool, large: bool) -> None:
    assert proxy_label(torch.tensor([base]), torch.tensor([large])).item() is (large and not base)


def test_points_of_the_curve_are_what_each_threshold_gives() -> None:
    scores, base, large = pair_of(1)
    curve = hybrid_curve(scores, base, large)
    assert curve.samples == 40
    assert curve.threshold[0] == -math.inf
    assert curve.threshold[1:].tolist() == scores.unique().tolist()
    for coverage, accuracy, threshold in zip(*curve[:3], strict=True):
        kept = scores <= threshold
        assert coverage == kept.double().mean()
        assert accuracy.item() == pytest.approx(torch.where(kept, base, large).double().mean().item(), abs=1e-15)


@given(samples)
@settings(max_examples=100, deadline=None)
def test_the_ends_are_the_global_models_and_the_bases_accuracy(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, base, large = drawn
    curve = hybrid_curve(scores, base, large)
    assert (curve.coverage[0], curve.coverage[-1]) == (0, 1)
    assert (curve.coverage.diff() > 0).all()
    assert accuracy_at_coverage(curve, 0.0) == pytest.approx(large.double().mean().item())
    assert accuracy_at_coverage(curve, 1.0) == pytest.approx(base.double().mean().item())


@given(samples, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_samples_changes_nothing(drawn: tuple[Tensor, Tensor, Tensor], random) -> None:
    order = list(range(len(drawn[0])))
    random.shuffle(order)
    one, other = hybrid_curve(*drawn), hybrid_curve(*(each[order] for each in drawn))
    for left, right in zip(one[:3], other[:3], strict=True):
        assert torch.equal(left, right)


@given(samples, st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_no_score_does_better_than_the_oracle_at_any_coverage(
    drawn: tuple[Tensor, Tensor, Tensor], coverage: float
) -> None:
    curve, oracle = hybrid_curve(*drawn), oracle_curve(*drawn[1:])
    assert accuracy_at_coverage(curve, coverage) <= accuracy_at_coverage(oracle, coverage) + 1e-12
    assert gap_to_oracle(curve, oracle) >= -1e-12


@given(samples, st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_accuracy_at_a_coverage_shares_ties_out(drawn: tuple[Tensor, Tensor, Tensor], coverage: float) -> None:
    scores, base, large = drawn
    kept = math.ceil(coverage * len(scores) - 1e-9)
    right = large.double().sum()
    for value in scores.unique():
        tied = scores == value
        taken = min(kept, int(tied.sum()))
        right += taken * (base[tied].double() - large[tied].double()).mean()
        kept -= taken
    assert accuracy_at_coverage(hybrid_curve(*drawn), coverage) == pytest.approx(float(right / len(scores)), abs=1e-12)


def test_the_oracle_first_keeps_what_the_global_model_spoils() -> None:
    base, large = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    oracle = oracle_curve(base, large)
    assert oracle.coverage.tolist() == [0, 0.25, 0.75, 1]
    assert oracle.accuracy.tolist() == [0.5, 0.75, 0.75, 0.5]
    assert oracle.threshold.tolist() == [-math.inf, -1, 0, 1]


def test_the_area_is_the_mean_accuracy_over_coverages() -> None:
    curve = hybrid_curve(*pair_of(2))
    grid = [accuracy_at_coverage(curve, place / 40) for place in range(41)]
    assert hybrid_area(curve) == pytest.approx((sum(grid) - grid[0] / 2 - grid[-1] / 2) / 40, abs=1e-12)


def test_the_gain_as_score_has_no_gap_to_the_oracle_and_the_proxy_has_where_the_global_model_spoils() -> None:
    _, base, large = pair_of(3, samples=200)
    oracle = oracle_curve(base, large)
    gain, proxy = large.float() - base.float(), proxy_label(base, large).float()
    assert gap_to_oracle(hybrid_curve(gain, base, large), oracle) == 0
    assert gap_to_oracle(hybrid_curve(proxy, base, large), oracle) > 0.01


def test_scores_that_are_not_finite_are_the_last_to_be_kept() -> None:
    base, large = torch.tensor([False, True, False]), torch.tensor([True, True, True])
    curve = hybrid_curve(torch.tensor([math.nan, 5.0, -math.inf]), base, large)
    assert curve.coverage.tolist() == pytest.approx([0, 1 / 3, 1])
    assert curve.accuracy.tolist() == pytest.approx([1, 1, 1 / 3])
    assert curve.threshold.tolist() == [-math.inf, 5, math.inf]


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_a_threshold_is_the_smallest_that_keeps_the_coverage(values: list[int], coverage: float) -> None:
    scores = torch.tensor(values).float()
    threshold, wanted = query_threshold(scores, coverage), math.ceil(coverage * len(values) - 1e-9)
    assert (scores <= threshold).sum() >= wanted
    assert threshold == -math.inf or (scores < threshold).sum() < wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_threshold_keeps_the_score_that_it_was_taken_from_in_every_number_format(dtype: torch.dtype) -> None:
    scores = torch.randn(101, generator=torch.Generator().manual_seed(0)).to(dtype).unique()
    kept = scores <= query_threshold(scores, 0.7)
    assert kept.sum() == math.ceil(0.7 * len(scores))


@pytest.mark.parametrize(("coverage", "samples"), [(0.7, 10), (0.1, 30), (0.3, 100), (0.29, 100), (0.57, 100)])
def test_a_coverage_that_is_a_number_of_samples_is_not_rounded_up(coverage: float, samples: int) -> None:
    scores = torch.arange(1.0, samples + 1)
    assert query_threshold(scores, coverage) == round(coverage * samples)


def test_thresholds_where_scores_are_not_finite() -> None:
    scores = torch.tensor([1.0, math.nan, 2.0, math.inf])
    assert query_threshold(scores, 0.5) == 2.0
    assert query_threshold(scores, 0.75) == math.inf
    assert query_threshold(scores, 0.0) == -math.inf


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: query_threshold(torch.zeros(3), 70), r"coverage=70 is outside \[0, 1\]; .*not a percent"),
        (lambda: query_threshold(torch.zeros(0), 0.5), r"at least one sample"),
        (lambda: query_threshold(torch.zeros(3, 1), 0.5), r"query_scores has shape \(3, 1\)"),
        (lambda: hybrid_curve(torch.zeros(2), TRUE.expand(3), TRUE.expand(3)), r"shape \(2,\) for 3 samples"),
        (lambda: hybrid_curve(torch.zeros(0), torch.zeros(0).bool(), torch.zeros(0).bool()), "at least one sample"),
        (lambda: proxy_label(torch.zeros(3), TRUE.expand(3)), r"base_correct has dtype torch.float32"),
        (lambda: oracle_curve(FALSE.expand(2), TRUE.expand(3)), r"global_correct torch.bool and \(3,\)"),
        (lambda: accuracy_at_coverage(hybrid_curve(*pair_of(0)), -0.1), r"coverage=-0.1 is outside"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(call, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
