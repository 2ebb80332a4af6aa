"""The promises of rules for thresholds, by exact enumeration of all samples from small populations with ties."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_efficient.functional.thresholds import (
    conformal_threshold,
    coverage_threshold,
    empirical_threshold,
    fixed_sequence_threshold,
    rcps_threshold,
    sgr_threshold,
)

# three confidences, each right or wrong
SAMPLES = 9
SHARES = np.array([0.5, 0.3, 0.2])
RISING = np.array([0.05, 0.3, 0.6])
FALLING = np.array([0.5, 0.3, 0.05])


def outcomes(error_rates):
    """Probability, confidences and errors of every multiset of samples from the population."""
    cells = np.concatenate([SHARES * error_rates, SHARES * (1 - error_rates)])
    scores, errors = torch.tensor([3.0, 2.0, 1.0] * 2), torch.tensor([1, 1, 1, 0, 0, 0])
    for counts in product(range(SAMPLES + 1), repeat=5):
        if (rest := SAMPLES - sum(counts)) >= 0:
            repeats = torch.tensor([*counts, rest])
            chance = stats.multinomial.pmf(repeats.numpy(), SAMPLES, cells)
            yield chance, scores.repeat_interleave(repeats), errors.repeat_interleave(repeats)


@pytest.fixture(scope="module")
def populations():
    return {name: (rates, list(outcomes(rates))) for name, rates in (("rising", RISING), ("falling", FALLING))}


def true_risks(rates, choices):
    """Coverage, selective and generalized risk of the population at each threshold."""
    accepted = np.array([3.0, 2.0, 1.0]) >= np.array([choice.threshold for choice in choices])[:, None]
    coverage, joint = accepted @ SHARES, accepted @ (SHARES * rates)
    return coverage, joint / np.maximum(coverage, 1e-300), joint


def test_all_outcomes_were_enumerated(populations):
    for _, found in populations.values():
        assert sum(chance for chance, *_ in found) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("population", ["rising", "falling"])
@pytest.mark.parametrize("risk", [0.11, 0.23])
def test_rcps_exceeds_the_target_no_more_often_than_delta(populations, population, risk):
    rates, found = populations[population]
    delta = 0.4
    choices = [rcps_threshold(*samples, risk=risk, delta=delta) for _, *samples in found]
    violated = true_risks(rates, choices)[2] > risk
    assert np.array([chance for chance, *_ in found]) @ violated <= delta


@pytest.mark.parametrize(("risk", "delta"), [(0.23, 0.4), (0.16, 0.9)])
def test_sgr_exceeds_the_target_no_more_often_than_delta_where_errors_do_not_become_rarer(populations, risk, delta):
    rates, found = populations["rising"]
    choices = [sgr_threshold(*samples, risk=risk, delta=delta) for _, *samples in found]
    violated = true_risks(rates, choices)[1] > risk
    assert np.array([chance for chance, *_ in found]) @ violated <= delta


@pytest.mark.parametrize(("risk", "delta"), [(0.23, 0.4), (0.14, 0.4), (0.14, 0.9)])
@pytest.mark.parametrize("start", [0.0, 0.5, 0.9])
def test_a_fixed_sequence_exceeds_the_target_no_more_often_than_delta(populations, risk, delta, start):
    rates, found = populations["rising"]
    options = {"risk": risk, "delta": delta, "start": start}
    choices = [fixed_sequence_threshold(*samples, **options) for _, *samples in found]
    violated = true_risks(rates, choices)[1] > risk
    assert np.array([chance for chance, *_ in found]) @ violated <= delta


@pytest.mark.parametrize("population", ["rising", "falling"])
@pytest.mark.parametrize("risk", [0.1, 0.2])
def test_conformal_meets_the_target_on_average(populations, population, risk):
    rates, found = populations[population]
    choices = [conformal_threshold(*samples, risk=risk) for _, *samples in found]
    assert np.array([chance for chance, *_ in found]) @ true_risks(rates, choices)[2] <= risk


def test_the_empirical_rule_exceeds_the_target_often(populations):
    rates, found = populations["rising"]
    choices = [empirical_threshold(*samples, risk=0.14) for _, *samples in found]
    violated = true_risks(rates, choices)[1] > 0.14
    assert np.array([chance for chance, *_ in found]) @ violated > 0.4


@pytest.mark.parametrize("coverage", [0.3, 0.5, 0.85])
def test_the_expected_coverage_is_at_least_its_share_of_one_sample_more(populations, coverage):
    rates, found = populations["rising"]
    choices = [coverage_threshold(*samples, coverage=coverage) for _, *samples in found]
    expected = np.array([chance for chance, *_ in found]) @ true_risks(rates, choices)[0]
    assert expected >= math.ceil(coverage * SAMPLES) / (SAMPLES + 1)


def test_without_ties_the_expected_coverage_is_exactly_that_share():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.rand(9, generator=generator, dtype=torch.float64) for _ in range(4000)]
    covered = [1 - coverage_threshold(scores, torch.zeros(9), coverage=0.5).threshold for scores in draws]
    # the coverage is Beta(5, 5) distributed
    assert np.mean(covered) == pytest.approx(5 / 10, abs=5 * (25 / 1100 / 4000) ** 0.5)
