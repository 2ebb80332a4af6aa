"""The exact binomial limit of an error rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.binomial import clopper_pearson_upper, largest_allowed_errors


@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-3, 1e-6])
def test_the_limit_equals_the_beta_quantile(delta):
    samples = np.array([1, 2, 10, 300, 5000, 1_000_000])
    errors = np.array([0, 1, 3, 7, 49, 999_000])
    found = clopper_pearson_upper(torch.from_numpy(errors), torch.from_numpy(samples), delta).numpy()
    np.testing.assert_allclose(found, stats.beta.isf(delta, errors + 1, samples - errors), rtol=1e-10)


@given(st.integers(1, 400), st.data(), st.floats(1e-6, 0.9))
def test_at_the_limit_so_few_errors_have_exactly_the_probability_delta(samples, data, delta):
    errors = data.draw(st.integers(0, samples - 1))
    limit = clopper_pearson_upper(errors, samples, delta).item()
    assert stats.binom.cdf(errors, samples, limit) == pytest.approx(delta, rel=1e-9)


@pytest.mark.parametrize(("errors", "samples"), [(0, 0), (1, 1), (7, 7)])
def test_the_limit_is_one_without_samples_or_where_all_are_wrong(errors, samples):
    assert clopper_pearson_upper(errors, samples, 0.05).item() == 1.0


def test_without_errors_the_limit_is_the_root_of_delta():
    found = clopper_pearson_upper(0, torch.tensor([1, 10, 299]), 0.05)
    torch.testing.assert_close(found, 1 - 0.05 ** (1 / torch.tensor([1.0, 10, 299]).double()), rtol=1e-12, atol=0)


def test_counts_broadcast_and_half_precision_counts_are_not_rounded_further():
    found = clopper_pearson_upper(torch.tensor([[0], [5]]), torch.tensor([10, 20, 30]), 0.1)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    assert (found.diff(dim=0) > 0).all()
    assert (found.diff(dim=1) < 0).all()


@pytest.mark.parametrize(
    ("samples", "risk", "allowed"),
    [(1000, 0.01, 5), (2000, 0.01, 13), (5000, 0.01, 40), (10_000, 0.01, 86), (1000, 0.02, 13), (5000, 0.02, 86)],
)
def test_the_errors_allowed_at_a_confidence_of_90_percent_are_those_of_the_design(samples, risk, allowed):
    assert largest_allowed_errors(samples, risk, 0.1) == allowed


@given(st.integers(1, 200), st.floats(0.001, 0.999), st.floats(0.001, 0.5))
def test_one_error_more_than_allowed_exceeds_the_target(samples, risk, delta):
    allowed = largest_allowed_errors(samples, risk, delta)
    within = clopper_pearson_upper(torch.arange(samples + 1), samples, delta) <= risk
    assert within.sum().item() == (0 if allowed is None else allowed + 1)


def test_everything_is_allowed_at_risk_one_and_nothing_at_risk_zero():
    assert largest_allowed_errors(10, 1.0, 0.05) == 10
    assert largest_allowed_errors(10, 0.0, 0.05) is None


@pytest.mark.parametrize("delta", [0, 1, 5, -0.1, float("nan")])
def test_a_delta_that_is_no_probability_is_refused(delta):
    with pytest.raises(ConfigurationError, match=r"is outside \(0, 1\)"):
        clopper_pearson_upper(1, 10, delta)


@pytest.mark.parametrize(("errors", "samples"), [(0.5, 10), (-1, 10), (11, 10), (1, 10.5), (float("nan"), 10)])
def test_counts_that_cannot_be_are_refused(errors, samples):
    with pytest.raises(ConfigurationError, match="whole numbers with 0 <= errors <= samples"):
        clopper_pearson_upper(torch.tensor(errors), torch.tensor(samples), 0.1)
