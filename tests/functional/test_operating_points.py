"""Coverage at a risk, risk at a coverage, and readings at a threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lightning_efficient.functional as LF
from lightning_efficient.errors import ConfigurationError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "selective_metrics.npz")
SCORES = ["msp", "msp_r2", "const", "neg_entropy", "max_logit"]
samples = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=20)


def summary_of(score):
    return LF.risk_coverage_summary(torch.from_numpy(GOLDEN[f"m_score_{score}"]), torch.from_numpy(GOLDEN["m_err"]))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("kind", "golden"), [("selective", "cov_at_selrisk"), ("generalized", "cov_at_genrisk")])
def test_coverage_at_risk_equals_the_golden_brute_force(score, kind, golden):
    summary = summary_of(score)
    coverages = [LF.coverage_at_risk(summary, risk=risk, kind=kind)[0].item() for risk in GOLDEN["m_rho"]]
    np.testing.assert_allclose(coverages, GOLDEN[f"m_ref_{score}__{golden}"], rtol=1e-12)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("options", "golden"),
    [
        ({}, "risk_at_cov_interp"),
        ({"at_least": True}, "risk_at_cov_atleast"),
        ({"kind": "generalized"}, "genrisk_at_cov_interp"),
    ],
)
def test_risk_at_coverage_equals_the_golden_brute_force(score, options, golden):
    summary = summary_of(score)
    risks = [LF.risk_at_coverage(summary, coverage=kappa, **options)[0].item() for kappa in GOLDEN["m_kappa"]]
    np.testing.assert_allclose(risks, GOLDEN[f"m_ref_{score}__{golden}"], rtol=1e-12, atol=1e-15)


@given(samples, st.floats(0, 1), st.sampled_from(["selective", "generalized"]))
def test_no_threshold_beats_the_coverage_at_risk_and_the_returned_one_reaches_it(rows, risk, kind):
    scores, errors = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    allowed = [0.0]
    for threshold in set(scores.tolist()):
        accepted = scores >= threshold
        if errors[accepted].sum() / (accepted.sum() if kind == "selective" else len(rows)) <= risk:
            allowed.append(accepted.mean())
    coverage, threshold = LF.coverage_at_risk(torch.tensor(scores), torch.tensor(errors), risk=risk, kind=kind)
    assert coverage.item() == max(allowed)
    assert (scores >= threshold.item()).mean() == coverage.item()


def test_an_unreachable_risk_answers_nothing_and_says_so():
    coverage, threshold = LF.coverage_at_risk(torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), risk=0.1)
    assert coverage.item() == 0.0
    assert threshold.item() == torch.inf


def test_selective_risk_that_falls_again_is_searched_to_the_end():
    scores, errors = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 0, 0])
    assert LF.coverage_at_risk(scores, errors, risk=0.25) == (torch.tensor(1.0).double(), torch.tensor(1.0))


@pytest.mark.parametrize(("coverage", "accepted"), [(0.55, 55), (0.07, 7), (0.551, 56), (1e-9, 1), (1.0, 100)])
def test_risk_at_coverage_accepts_the_ceiling_without_float_slips(coverage, accepted):
    scores = -torch.arange(100.0)
    errors = torch.arange(100) >= 50
    risk, threshold = LF.risk_at_coverage(scores, errors, coverage=coverage)
    assert risk.item() == max(0, accepted - 50) / accepted
    assert threshold.item() == scores[accepted - 1]


def test_risk_inside_a_tie_is_expected_or_that_of_the_whole_group():
    scores, errors = torch.tensor([0.9, 0.5, 0.5, 0.5]), torch.tensor([0, 1, 1, 0])
    assert LF.risk_at_coverage(scores, errors, coverage=0.5)[0].item() == pytest.approx((2 / 3) / 2)
    assert LF.risk_at_coverage(scores, errors, coverage=0.5, at_least=True)[0].item() == 2 / 4


@given(samples, st.integers(-1, 5))
def test_readings_at_a_threshold_equal_a_mask(rows, threshold):
    scores, errors = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    accepted = scores >= threshold
    accuracy = LF.selective_accuracy(torch.tensor(scores), torch.tensor(errors), threshold=threshold).item()
    abstained = LF.abstention_rate(torch.tensor(scores), torch.tensor(errors), threshold=threshold).item()
    assert abstained == pytest.approx(1 - accepted.mean(), abs=1e-15)
    expected = 1 - errors[accepted].mean() if accepted.any() else np.nan
    assert accuracy == pytest.approx(expected, abs=1e-15, nan_ok=True)


def test_a_float32_score_equal_to_the_threshold_is_accepted():
    assert LF.abstention_rate(torch.tensor([0.9]), torch.tensor([0]), threshold=0.9).item() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: LF.risk_at_coverage(s, coverage=0.0), r"coverage=0.0 is outside \(0, 1\]"),
        (lambda s: LF.risk_at_coverage(s, coverage=80), r"coverage=80 is outside \(0, 1\]"),
        (lambda s: LF.risk_at_coverage(s, coverage=float("nan")), r"outside \(0, 1\]"),
        (lambda s: LF.coverage_at_risk(s, risk=-0.1), r"risk=-0.1 is outside \[0, 1\]"),
        (lambda s: LF.coverage_at_risk(s, risk=0.1, kind="generalised"), "Did you mean 'generalized'"),
        (lambda s: LF.risk_at_coverage(s, coverage=0.1, kind="joint"), "not one of"),
    ],
)
def test_targets_out_of_range_are_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call(summary_of("const"))
