"""The forms of the metrics, in one compute group, and their bootstrap intervals."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

import lightning_efficient.functional as LF
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.bootstrap import bootstrap_interval
from lightning_efficient.functional.risk_coverage_area import eaugrc
from lightning_efficient.metrics import (
    AUGRC,
    AURC,
    EAURC,
    AbstentionRate,
    CoverageAtRisk,
    RiskAtCoverage,
    RiskCoverageCurve,
    SelectiveAccuracy,
    _risk_coverage_base,
)
from lightning_efficient.metrics.risk_coverage_area import EAUGRC

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "selective_metrics.npz")
MSP = torch.from_numpy(GOLDEN["m_score_msp"])
ERRORS = torch.from_numpy(GOLDEN["m_err"])
READINGS = {
    "aurc": (AURC, LF.aurc),
    "augrc": (AUGRC, LF.augrc),
    "eaugrc": (EAUGRC, eaugrc),
    "coverage": (partial(CoverageAtRisk, 0.1), lambda s: LF.coverage_at_risk(s, risk=0.1)[0]),
    "risk": (partial(RiskAtCoverage, 0.8), lambda s: LF.risk_at_coverage(s, coverage=0.8)[0]),
    "accuracy": (partial(SelectiveAccuracy, 0.4), lambda s: LF.selective_accuracy(s, threshold=0.4)),
    "abstention": (partial(AbstentionRate, 0.4), lambda s: LF.abstention_rate(s, threshold=0.4)),
}


def every_form(**options):
    return {
        "aurc_tu": AURC(form="torch_uncertainty", **options),
        "aurc_hull": AURC(form="fd_shifts_achievable", **options),
        "eaurc_fd": EAURC(oracle="asymptotic", form="fd_shifts", **options),
        "augrc_tu": AUGRC(form="torch_uncertainty", **options),
        "coverage_tu": CoverageAtRisk(risk=0.1, form="torch_uncertainty", **options),
        "coverage_first": CoverageAtRisk(risk=0.1, form="first_violation", **options),
        "risk_at_least": RiskAtCoverage(coverage=0.8, form="at_least", **options),
        "risk_tu": RiskAtCoverage(coverage=0.8, form="torch_uncertainty", **options),
        "risk_sn": RiskAtCoverage(coverage=0.8, form="selectivenet", **options),
        "risk_dg": RiskAtCoverage(coverage=0.8, form="deep_gamblers", **options),
    }


def expected_forms(summary):
    return {
        "aurc_tu": LF.aurc(summary, form="torch_uncertainty"),
        "aurc_hull": LF.aurc(summary, form="fd_shifts_achievable"),
        "eaurc_fd": LF.eaurc(summary, oracle="asymptotic", form="fd_shifts"),
        "augrc_tu": LF.augrc(summary, form="torch_uncertainty"),
        "coverage_tu": LF.coverage_at_risk(summary, risk=0.1, form="torch_uncertainty")[0],
        "coverage_first": LF.coverage_at_risk(summary, risk=0.1, form="first_violation")[0],
        "risk_at_least": LF.risk_at_coverage(summary, coverage=0.8, form="at_least")[0],
        "risk_tu": LF.risk_at_coverage(summary, coverage=0.8, form="torch_uncertainty")[0],
        "risk_sn": LF.risk_at_coverage(summary, coverage=0.8, form="selectivenet")[0],
        "risk_dg": LF.risk_at_coverage(summary, coverage=0.8, form="deep_gamblers")[0],
    }


def feed(metric):
    for scores, errors in zip(MSP.split(700), ERRORS.split(700), strict=True):
        metric.update(confidence=scores, loss=errors)
    return metric


@pytest.mark.parametrize("bins", [None, 100])
def test_every_form_is_that_of_the_function(bins):
    metrics = feed(MetricCollection(every_form(bins=bins)))
    assert metrics.compute() == expected_forms(metrics["aurc_tu"].summary())


def test_at_least_is_short_for_its_form():
    assert feed(RiskAtCoverage(0.8, at_least=True)).compute() == feed(RiskAtCoverage(0.8, form="at_least")).compute()
    with pytest.raises(ConfigurationError, match="leave one out"):
        RiskAtCoverage(0.8, form="deep_gamblers", at_least=True)


@pytest.mark.parametrize("bins", [None, 500])
def test_metrics_of_different_forms_form_one_compute_group_and_sort_once(bins, monkeypatch):
    calls = []
    summarise = _risk_coverage_base.risk_coverage_summary
    monkeypatch.setattr(_risk_coverage_base, "risk_coverage_summary", lambda *a: calls.append(a) or summarise(*a))
    metrics = feed(MetricCollection(every_form(bins=bins) | {"plain": AURC(bins=bins), "eaugrc": EAUGRC(bins=bins)}))
    metrics.compute()
    assert len(metrics.compute_groups) == 1
    assert len(calls) == (1 if bins is None else 0)


@pytest.mark.parametrize("bins", [None, 200])
@pytest.mark.parametrize("name", READINGS)
def test_the_interval_of_a_metric_is_that_of_its_summary(name, bins):
    make, read = READINGS[name]
    metric = feed(make(bins=bins))
    low, high = metric.confidence_interval(level=0.9, resamples=30, seed=2)
    assert (low, high) == bootstrap_interval(read, metric.summary(), level=0.9, resamples=30, seed=2)
    assert low <= metric.compute() <= high


def test_the_interval_of_a_value_with_a_threshold_is_that_of_the_value():
    metric = feed(CoverageAtRisk(0.1, return_threshold=True))
    assert metric.confidence_interval(resamples=20) == feed(CoverageAtRisk(0.1)).confidence_interval(resamples=20)


def test_the_interval_of_weighted_samples_and_of_other_losses_draws_the_samples():
    generator = torch.Generator().manual_seed(0)
    loss, weight = torch.rand(2, 3000, generator=generator)
    for case in ((loss, None), (loss, weight), (ERRORS, weight)):
        metric = AUGRC()
        metric.update_scores(MSP, *case)
        expected = bootstrap_interval(LF.augrc, MSP, *case, resamples=20)
        assert metric.confidence_interval(resamples=20) == expected


def test_the_interval_does_not_sort_again(monkeypatch):
    metric = feed(AURC())
    metric.compute()
    monkeypatch.setattr(torch.Tensor, "sort", None)
    low, high = metric.confidence_interval(resamples=20)
    assert low < metric.compute() < high


@pytest.mark.parametrize(
    "samples",
    [
        (MSP[:1000], ERRORS[:1000], torch.full((1000,), 0.3)),
        (MSP[:1000], ERRORS[:1000], torch.full((1000,), 4)),
        (torch.tensor([0.12, 0.15, 0.55, 0.58]), torch.full((4,), 0.5), None),
    ],
    ids=["weights", "whole weights", "losses with a whole sum"],
)
@pytest.mark.parametrize("validate_args", [True, False])
def test_bins_of_other_than_single_samples_and_errors_have_no_interval(samples, validate_args):
    metric = AURC(bins=10, validate_args=validate_args)
    metric.update_scores(*samples)
    metric.update_scores(MSP[1000:], ERRORS[1000:])
    for attempt in (lambda: metric.confidence_interval(resamples=5), lambda: metric.plot(interval=0.9, resamples=5)):
        with pytest.raises(ConfigurationError, match="bins=10 hold weighted samples or losses other than 0 and 1"):
            attempt()
    metric.plot()
    metric.reset()
    assert feed(metric).confidence_interval(resamples=5) == feed(AURC(bins=10)).confidence_interval(resamples=5)


def test_weights_of_one_and_errors_of_any_dtype_have_the_interval_of_the_plain_samples():
    expected = feed(AURC(bins=10)).confidence_interval(resamples=20)
    for loss in (ERRORS.bool(), ERRORS.float(), ERRORS.long()):
        for weight in (None, torch.ones(3000), torch.ones(3000, dtype=torch.int64)):
            metric = AURC(bins=10)
            metric.update_scores(MSP, loss, weight)
            assert metric.confidence_interval(resamples=20) == expected


def test_weighted_bins_stay_one_compute_group_and_refuse_in_every_member():
    metrics = feed(
        MetricCollection({"aurc": AURC(bins=10), "augrc": AUGRC(bins=10), "risk": RiskAtCoverage(1, bins=10)})
    )
    for _ in range(2):
        metrics.update(confidence=MSP, loss=ERRORS, weight=torch.full((3000,), 2))
    assert len(metrics.compute_groups) == 1
    metrics.compute()
    for name in metrics:
        with pytest.raises(ConfigurationError, match="leave bins out"):
            metrics[name].confidence_interval(resamples=5)


def test_a_batch_of_weighted_bins_is_remembered_by_forward_and_by_a_merge():
    weighted = AURC(bins=10)
    weighted(confidence=MSP[:9], loss=ERRORS[:9], weight=torch.full((9,), 2))
    weighted(confidence=MSP, loss=ERRORS)
    merged = feed(AURC(bins=10))
    merged.merge_state(weighted)
    for metric in (weighted, merged):
        with pytest.raises(ConfigurationError, match="leave bins out"):
            metric.confidence_interval(resamples=5)


def test_a_curve_has_no_interval_and_says_what_has_one():
    with pytest.raises(ConfigurationError, match=r"plot\(interval=0.95\)"):
        feed(RiskCoverageCurve()).confidence_interval()


@pytest.mark.parametrize("metric", [RiskCoverageCurve, AUGRC, lambda: CoverageAtRisk(risk=0.1)])
def test_a_plot_with_an_interval_draws_a_band_around_the_curve(metric):
    _, axes = feed(metric()).plot(interval=0.9, resamples=40)
    band = axes.collections[-1]
    assert band.get_label() == "90% interval"
    edge = band.get_paths()[0].vertices
    model = axes.lines[0].get_xydata()
    for coverage in (0.3, 0.6, 0.9):
        near = edge[np.abs(edge[:, 0] - coverage) < 0.01, 1]
        assert near.min() < np.interp(coverage, *model.T) < near.max()
    assert axes.get_ylim()[1] > edge[edge[:, 0] > 0.02, 1].max()
