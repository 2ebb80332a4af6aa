"""Whether a stream still behaves like the samples of a calibration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.drift import (
    bet_against,
    clopper_pearson_lower,
    e_value,
    ks_distance,
    ks_limit,
    population_stability,
    rate_band,
    rate_change_p_value,
)


@pytest.mark.parametrize(("errors", "samples"), [(1, 1), (3, 10), (50, 1000), (999, 1000), (1000, 1000)])
@pytest.mark.parametrize("delta", [0.3, 0.01, 1e-6])
def test_the_lower_limit_equals_the_beta_quantile(errors, samples, delta):
    expected = stats.beta.ppf(delta, errors, samples - errors + 1)
    assert clopper_pearson_lower(errors, samples, delta) == pytest.approx(expected, rel=1e-9)


def test_without_errors_the_lower_limit_is_zero():
    assert clopper_pearson_lower(0, 100, 0.05) == 0.0


# ---- one look at a rate


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400), st.integers(1, 400), st.data())
def test_the_p_value_is_twice_the_smaller_tail_of_the_hypergeometric_distribution(first, second, data):
    before, after = data.draw(st.integers(0, first)), data.draw(st.integers(0, second))
    tails = stats.hypergeom(first + second, before + after, second)
    expected = min(1.0, 2 * min(tails.cdf(after), tails.sf(after - 1)))
    assert rate_change_p_value(before, first, after, second) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("delta", [0.05, 0.001])
@pytest.mark.parametrize(("hits", "reference"), [(0, 50), (60, 200), (200, 200), (1, 3)])
def test_the_band_holds_exactly_the_rates_whose_p_value_exceeds_delta(hits, reference, delta):
    low, high = rate_band(hits, reference, 80, delta)
    inside = [n / 80 for n in range(81) if rate_change_p_value(hits, reference, n, 80) > delta]
    assert (low, high) == (min(inside), max(inside))
    assert len(inside) == round((high - low) * 80) + 1


def test_new_samples_leave_the_band_at_most_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    for rate in (0.02, 0.3):
        before = torch.binomial(torch.full((2000,), 100.0), torch.tensor(rate), generator).int().tolist()
        after = torch.binomial(torch.full((2000,), 60.0), torch.tensor(rate), generator).int().tolist()
        bands = {hits: rate_band(hits, 100, 60, 0.1) for hits in set(before)}
        outside = sum(not bands[b][0] <= a / 60 <= bands[b][1] for b, a in zip(before, after, strict=True))
        assert 0 < outside / 2000 <= 0.1


def test_the_band_of_many_samples_is_narrower_but_not_narrower_than_the_calibration_allows():
    widths = [high - low for low, high in (rate_band(300, 1000, n, 0.01) for n in (10, 100, 1000, 10_000))]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] > 2 * 2.5 * math.sqrt(0.3 * 0.7 / 1000)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((11, 10, 1, 10), "reference_hits=11 must be an integer from 0 to the 10 samples"),
        ((1, 10, -1, 10), "hits=-1 must be"),
        ((1, 10, 0.5, 10), "hits=0.5 must be"),
        ((1, 10, 0, 0), "samples=0 must be an integer of at least 1"),
    ],
)
def test_impossible_counts_are_refused(arguments, match):
    with pytest.raises(ConfigurationError, match=match):
        rate_change_p_value(*arguments)


@pytest.mark.parametrize("delta", [0.0, 1.0, 5])
def test_impossible_deltas_are_refused(delta):
    with pytest.raises(ConfigurationError, match="is outside"):
        rate_band(1, 10, 10, delta)
    with pytest.raises(ConfigurationError, match="is outside"):
        ks_limit(10, 10, delta)


# ---- a bet that may be looked at all the time


@given(
    st.floats(0.01, 0.99),
    st.floats(0, 1),
    st.integers(1, 50),
    st.floats(-20, 20),
    st.integers(1, 30),
)
def test_the_expected_wealth_does_not_grow_while_the_rate_is_at_the_limit(limit, guess, step, log_wealth, samples):
    before = math.exp(log_wealth) + 1 / step
    after = sum(
        stats.binom.pmf(hits, samples, limit)
        * e_value(bet_against(log_wealth, step, hits, samples, limit=limit, guess=guess), step)
        for hits in range(samples + 1)
    )
    assert after == pytest.approx(before, rel=1e-6)


def test_below_the_limit_the_wealth_shrinks_on_average_and_above_it_grows():
    def mean_log_growth(rate: float) -> float:
        return sum(
            stats.binom.pmf(hits, 10, rate) * bet_against(0.0, 10**6, hits, 10, limit=0.3, guess=0.5)
            for hits in range(11)
        )

    assert mean_log_growth(0.2) < mean_log_growth(0.3) < 0 < mean_log_growth(0.5)


def test_nothing_is_bet_on_a_guess_that_agrees_with_the_hypothesis():
    assert bet_against(0.0, 1, 100, 100, limit=0.5, guess=0.5) == pytest.approx(math.log(1.5))
    assert bet_against(0.0, 1, 100, 100, limit=1.0, guess=1.0) == pytest.approx(math.log(1.5))
    assert bet_against(0.0, 1, 100, 100, limit=0.0, guess=1.0) == pytest.approx(math.log(1.5))


def test_bets_lost_before_a_change_do_not_hide_it():
    log_wealth, steps = -math.inf, 0
    for hits in [20] * 200 + [45] * 30:
        steps += 1
        log_wealth = bet_against(log_wealth, steps, hits, 100, limit=0.3, guess=0.45)
    assert e_value(log_wealth, steps) > 1e6


def test_great_wealth_does_not_overflow():
    log_wealth = bet_against(1e5, 1, 100_000, 100_000, limit=0.01, guess=0.99)
    assert math.isfinite(e_value(log_wealth, 1))


# ---- distributions


def test_the_index_of_equal_shares_is_zero_and_does_not_depend_on_which_comes_first():
    a, b = torch.tensor([100, 300, 600]), torch.tensor([500, 0, 500])
    assert population_stability(a, 10 * a) == pytest.approx(0.0, abs=1e-4)
    assert population_stability(a, b) == pytest.approx(population_stability(b, a))
    p, q = (torch.tensor(values, dtype=torch.float64) for values in ([0.1, 0.3, 0.6], [0.5, 0.2, 0.3]))
    expected = ((q - p) * (q / p).log()).sum().item()
    assert population_stability(p * 1e9, q * 1e9) == pytest.approx(expected, rel=1e-6)


def test_histograms_of_other_shapes_are_refused():
    with pytest.raises(ConfigurationError, match=r"reference has shape \(2,\) and counts \(3,\)"):
        population_stability(torch.ones(2), torch.ones(3))


@settings(deadline=None)
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    st.lists(st.integers(-5, 5), min_size=1, max_size=30),
)
def test_the_distance_is_the_largest_between_the_shares_up_to_any_value(first, second):
    def up_to(values: list[int], limit: int) -> float:
        return sum(value <= limit for value in values) / len(values)

    found = ks_distance(torch.tensor(first, dtype=torch.float32), torch.tensor(second, dtype=torch.float32))
    assert found == pytest.approx(max(abs(up_to(first, value) - up_to(second, value)) for value in range(-5, 6)))


def test_the_distance_of_equal_distributions_exceeds_the_limit_at_most_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    limit = ks_limit(50, 80, 0.2)
    far = [
        ks_distance(torch.rand(50, generator=generator), torch.rand(80, generator=generator)) > limit
        for _ in range(300)
    ]
    assert sum(far) / 300 <= 0.2
    assert ks_limit(1, 1, 0.5) == 1.0


@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([0.0, math.nan])])
def test_unusable_values_are_refused(values):
    with pytest.raises(ConfigurationError, match="values must be numbers of shape"):
        ks_distance(torch.zeros(3), values)
