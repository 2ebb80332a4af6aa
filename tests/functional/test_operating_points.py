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
from lightning_efficient.functional import operating_points

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
        ({"form": "at_least"}, "risk_at_cov_atleast"),
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


def expected_risks(scores, errors, kind):
    """Risk of the k surest samples for k = 1 ... n, in expectation over the order of ties."""
    thresholds = np.unique(scores)[::-1]
    counts = [0.0, *((scores >= threshold).sum() for threshold in thresholds)]
    losses = [0.0, *(errors[scores >= threshold].sum() for threshold in thresholds)]
    ranks = np.arange(1, len(scores) + 1)
    return np.interp(ranks, counts, losses) / (ranks if kind == "selective" else len(scores))


KINDS = st.sampled_from(["selective", "generalized"])
TARGETS = st.sampled_from([0.0, 0.13, 0.3, 0.41, 0.77, 1.0])


@given(samples, TARGETS, KINDS)
def test_torch_uncertainty_form_takes_the_last_rank_at_the_target(rows, risk, kind):
    scores, errors = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    allowed = (expected_risks(scores, errors, kind) <= risk + 1e-12).nonzero()[0]
    expected = (allowed[-1] + 1) / len(rows) if len(allowed) else np.nan
    samples = torch.tensor(scores), torch.tensor(errors)
    coverage, threshold = LF.coverage_at_risk(*samples, risk=risk, kind=kind, form="torch_uncertainty")
    assert coverage.item() == pytest.approx(expected, nan_ok=True)
    assert (scores >= threshold.item()).mean() >= (0 if np.isnan(expected) else expected - 1e-12)


@pytest.mark.parametrize("theirs", ["msp_f64", "msp_f32"])
def test_torch_uncertainty_forms_equal_its_figures_where_nothing_is_tied(theirs):
    scores = torch.from_numpy(GOLDEN["m_score_msp"]).to(torch.float64 if "64" in theirs else torch.float32)
    summary = LF.risk_coverage_summary(scores, torch.from_numpy(GOLDEN["m_err"]))
    figures = dict(zip(GOLDEN["tu_fields"].tolist(), GOLDEN[f"tu_{theirs}"].tolist(), strict=True))
    tolerance = 1e-9 if "64" in theirs else 1e-5
    for risk in GOLDEN["m_rho"].tolist():
        coverage, _ = LF.coverage_at_risk(summary, risk=risk, form="torch_uncertainty")
        # Their coverage is a float32, whatever the scores are.
        assert coverage.float().item() == figures[f"CovAtxRisk({risk})"]
    for kappa in GOLDEN["m_kappa"].tolist():
        found, _ = LF.risk_at_coverage(summary, coverage=kappa, form="torch_uncertainty")
        assert found.item() == pytest.approx(figures[f"RiskAtxCov({kappa})"], abs=tolerance)


@given(samples, TARGETS, KINDS, st.integers(0, 12))
def test_first_violation_form_stops_before_the_first_rank_above_the_target(rows, risk, kind, unsettled):
    scores, errors = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    above = expected_risks(scores, errors, kind) > risk + 1e-12
    start = unsettled if unsettled < len(rows) and not above[unsettled] else 0
    expected = start + above[start:].argmax() if above[start:].any() else len(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operating_points, "UNSETTLED_RANKS", unsettled)
        samples = torch.tensor(scores), torch.tensor(errors)
        coverage, threshold = LF.coverage_at_risk(*samples, risk=risk, kind=kind, form="first_violation")
    assert coverage.item() == pytest.approx(expected / len(rows))
    assert (threshold.item() == torch.inf) == (expected == 0)


def test_first_violation_form_does_not_judge_the_first_two_hundred_ranks():
    errors = torch.zeros(1000)
    errors[[0, 1, 400, 401, 402, 403, 404, 405, 406, 407]] = 1
    coverage, threshold = LF.coverage_at_risk(-torch.arange(1000.0), errors, risk=0.01, form="first_violation")
    assert coverage.item() == 0.402  # 4 errors of 403 are too many; 2 of the first 2 were not judged
    assert threshold.item() == -401
    errors[:4] = 1  # 4 errors of 201 are too many at once, so that the first rank decides
    coverage, threshold = LF.coverage_at_risk(-torch.arange(1000.0), errors, risk=0.01, form="first_violation")
    assert (coverage.item(), threshold.item()) == (0, torch.inf)


@given(samples, st.sampled_from([0.01, 0.3, 0.5, 0.77, 1.0]), KINDS)
def test_selectivenet_form_accepts_what_is_strictly_above_the_percentile_of_numpy(rows, coverage, kind):
    scores, errors = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    accepted = scores > np.percentile(scores, 100 - 100 * coverage)
    divisor = accepted.sum() if kind == "selective" else len(rows)
    expected = errors[accepted].sum() / divisor if accepted.any() else np.nan
    samples = torch.tensor(scores), torch.tensor(errors)
    risk, threshold = LF.risk_at_coverage(*samples, coverage=coverage, kind=kind, form="selectivenet")
    assert risk.item() == pytest.approx(expected, nan_ok=True)
    assert np.array_equal(scores >= threshold.item(), accepted)


@pytest.mark.parametrize(("coverage", "accepted"), [(0.5, 4), (0.61, 5), (0.65, 6), (0.66, 6), (1.0, 9)])
def test_deep_gamblers_form_rounds_the_number_of_samples(coverage, accepted):
    scores, errors = -torch.arange(9.0), torch.tensor([0, 0, 0, 1, 0, 1, 1, 0, 1])
    risk, threshold = LF.risk_at_coverage(scores, errors, coverage=coverage, form="deep_gamblers")
    assert risk.item() == pytest.approx(errors[:accepted].double().mean().item())
    assert threshold.item() == scores[accepted - 1]


def test_a_coverage_that_rounds_to_no_sample_has_no_risk():
    risk, threshold = LF.risk_at_coverage(torch.rand(9), torch.zeros(9), coverage=0.05, form="deep_gamblers")
    assert risk.isnan()
    assert threshold == torch.inf


def test_torch_uncertainty_form_keeps_the_float_slip():
    scores, errors = -torch.arange(100.0), torch.arange(100) >= 50
    risks = [
        LF.risk_at_coverage(scores, errors, coverage=0.55, form=form)[0] for form in ("expected", "torch_uncertainty")
    ]
    assert [risk.item() for risk in risks] == [5 / 55, 6 / 56]


@given(samples, st.data())
def test_risks_at_many_coverages_equal_one_at_a_time(rows, data):
    scores, errors = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    summary = LF.risk_coverage_summary(scores, errors)
    ranks = torch.arange(1, len(rows) + 1, dtype=torch.float64)
    kind = data.draw(KINDS)
    singly = [LF.risk_at_coverage(summary, coverage=k / len(rows), kind=kind)[0] for k in ranks.tolist()]
    together = operating_points.risks_at(summary, ranks / len(rows), kind)
    np.testing.assert_allclose(together.numpy(), torch.stack(singly).numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("score", ["msp_r2", "msp_r1"])
@pytest.mark.parametrize("form", [*operating_points.COVERAGE_AT_RISK_FORMS, *operating_points.RISK_AT_COVERAGE_FORMS])
def test_no_form_depends_on_the_order_or_the_scale_of_the_scores(score, form):
    scores, errors = torch.from_numpy(GOLDEN[f"m_score_{score}"]), torch.from_numpy(GOLDEN["m_err"])
    names = operating_points.COVERAGE_AT_RISK_FORMS
    reads = [lambda s: LF.coverage_at_risk(s, risk=0.1, form=form)[0]] if form in names else []
    if form in operating_points.RISK_AT_COVERAGE_FORMS:
        reads.append(lambda s: LF.risk_at_coverage(s, coverage=0.6, form=form)[0])
    expected = [read(LF.risk_coverage_summary(scores, errors)) for read in reads]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        order = torch.randperm(len(scores), generator=generator)
        mapped = LF.risk_coverage_summary(torch.exp(3 * scores[order]), errors[order])
        assert [read(mapped) for read in reads] == expected


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
        (lambda s: LF.risk_at_coverage(s, coverage=0.1, form="selectivnet"), "Did you mean 'selectivenet'"),
        (lambda s: LF.coverage_at_risk(s, risk=0.1, form="first-violation"), "Did you mean 'first_violation'"),
        (lambda s: LF.risk_at_coverage(s, coverage=0.1, form="selectivenet", at_least=True), "leave one out"),
    ],
)
def test_targets_out_of_range_are_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call(summary_of("const"))
