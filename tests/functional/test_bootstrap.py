"""Bootstrap intervals: a brute-force bootstrap, coverage by simulation, and what cannot be resampled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_efficient.functional as LF
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import bootstrap
from lightning_efficient.functional.bootstrap import bootstrap_interval

RESAMPLES = 40
STATISTICS = {
    "aurc": LF.aurc,
    "eaurc": LF.eaurc,
    "augrc": LF.augrc,
    "coverage": lambda s: LF.coverage_at_risk(s, risk=0.3)[0],
    "risk": lambda s: LF.risk_at_coverage(s, coverage=0.7)[0],
}


def resamples_of(summary, seed):
    seen = []
    bootstrap_interval(lambda resample: seen.append(resample) or resample.total, summary, resamples=3, seed=seed)
    return seen


def uniform(count, seed):
    """Confidences on (0, 1), and errors with probability 0.6 (1 - confidence): the AUGRC of the population is 0.1."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=generator)
    return confidence, torch.rand(count, generator=generator) < 0.6 * (1 - confidence)


def brute_force(statistic, confidence, loss, weight, level, seed):
    """The same draws, of samples sorted by confidence and then loss, each resample sorted anew."""
    order = np.lexsort((loss.numpy(), -confidence.numpy()))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(RESAMPLES):
        chosen = order[torch.randint(len(order), (len(order),), generator=generator)]
        drawn_weight = None if weight is None else weight[chosen]
        values.append(statistic(LF.risk_coverage_summary(confidence[chosen], loss[chosen], drawn_weight)).item())
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2])


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("ties", [False, True])
def test_errors_give_what_a_brute_force_bootstrap_gives(name, ties):
    confidence, error = uniform(150, seed=3)
    confidence = (confidence * 12).round() / 12 if ties else confidence
    expected = brute_force(STATISTICS[name], confidence, error, None, 0.9, seed=5)
    options = {"level": 0.9, "resamples": RESAMPLES, "seed": 5}
    found = bootstrap_interval(STATISTICS[name], confidence, error, **options)
    np.testing.assert_allclose([end.item() for end in found], expected, rtol=1e-10)
    summary = LF.risk_coverage_summary(confidence, error)
    assert bootstrap_interval(STATISTICS[name], summary, **options) == found


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("weighted", [False, True])
def test_other_losses_and_weights_give_what_a_brute_force_bootstrap_gives(name, weighted):
    confidence, _ = uniform(150, seed=3)
    loss, weight = torch.rand(2, 150, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weight = weight + 0.5 if weighted else None
    expected = brute_force(STATISTICS[name], confidence, loss, weight, 0.9, seed=5)
    options = {"level": 0.9, "resamples": RESAMPLES, "seed": 5}
    found = bootstrap_interval(STATISTICS[name], confidence, loss, weight, **options)
    np.testing.assert_allclose([end.item() for end in found], expected, rtol=1e-10)


@pytest.mark.study
def test_the_interval_holds_the_value_of_the_population_about_as_often_as_it_says():
    held = 0
    for seed in range(200):
        low, high = bootstrap_interval(LF.augrc, *uniform(300, seed), level=0.9, resamples=150, seed=seed)
        held += bool(low <= 0.1 <= high)
    assert 165 <= held <= 195  # 180 are promised, with a standard deviation of 4.2


def test_counts_of_few_cells_are_drawn_from_the_same_distribution_as_samples(monkeypatch):
    confidence, error = uniform(4000, seed=0)
    summary = LF.risk_coverage_summary((confidence * 10).round(), error)
    counts = bootstrap_interval(LF.augrc, summary, resamples=2000)
    monkeypatch.setattr(bootstrap, "_FEW_CELLS", float("inf"))
    samples = bootstrap_interval(LF.augrc, summary, resamples=2000)
    assert counts != samples
    for one, other in zip(counts, samples, strict=True):
        assert one.item() == pytest.approx(other.item(), abs=0.1 * (samples[1] - samples[0]).item())


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=6), st.integers(0, 99))
def test_every_resample_has_as_many_samples_as_there_are(groups, seed):
    right, wrong = torch.tensor(groups, dtype=torch.float64).T
    if right.sum() + wrong.sum() == 0:
        right = right + 1
    histogram = LF.RiskCoverage.from_histogram(right + wrong, wrong)
    for few in (1e-9, float("inf")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bootstrap, "_FEW_CELLS", few)
            seen = resamples_of(histogram, seed)
        assert [summary.total.item() for summary in seen] == [histogram.total.item()] * 3
        for summary in seen:
            assert summary.counts.diff(prepend=torch.zeros(1)).min() > 0
            assert set(summary.thresholds.tolist()) <= set(histogram.thresholds.tolist())


def test_an_interval_of_many_numbers_has_their_shape():
    confidence, error = uniform(200, seed=0)
    low, high = bootstrap_interval(lambda s: torch.stack([LF.aurc(s), LF.augrc(s)]), confidence, error, resamples=50)
    assert low.shape == high.shape == (2,)
    assert (low < high).all()


def test_a_wider_level_holds_the_narrower_one_and_a_seed_repeats_itself():
    samples = uniform(200, seed=0)
    narrow, wide = (bootstrap_interval(LF.aurc, *samples, level=level, resamples=99) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_interval(LF.aurc, *samples, level=0.5, resamples=99) == narrow
    generator = torch.Generator().manual_seed(0)
    assert bootstrap_interval(LF.aurc, *samples, level=0.5, resamples=99, seed=generator) == narrow
    assert bootstrap_interval(LF.aurc, *samples, level=0.5, resamples=99, seed=1) != narrow


def test_resamples_without_a_value_are_left_out():
    confidence, error = torch.tensor([0.9, 0.5, 0.4]), torch.tensor([0, 0, 1])
    low, high = bootstrap_interval(lambda s: LF.selective_accuracy(s, threshold=0.8), confidence, error, resamples=200)
    assert (low, high) == (1, 1)


def test_no_samples_give_nan_and_a_warning():
    with pytest.warns(UserWarning, match="No samples"):
        low, high = bootstrap_interval(LF.aurc, torch.zeros(0), torch.zeros(0))
    assert low.isnan()
    assert high.isnan()


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ((torch.rand(3), torch.zeros(3)), {"level": 95}, "level=95 must lie between 0 and 1"),
        ((torch.rand(3), torch.zeros(3)), {"resamples": 0}, "resamples=0 must be at least 1"),
        ((torch.rand(3),), {}, "needs the loss"),
        ((torch.tensor([0.1, torch.nan]), torch.zeros(2)), {}, "not finite"),
        (
            (LF.RiskCoverage.from_histogram(torch.tensor([2, 2]), torch.tensor([0.5, 1])),),
            {},
            "whole samples and errors",
        ),
        ((LF.RiskCoverage.from_histogram(torch.tensor([2]), torch.tensor([1])), torch.zeros(2)), {}, "pass it alone"),
    ],
)
def test_what_cannot_be_resampled_is_refused(scores, options, message):
    with pytest.raises(ConfigurationError, match=message):
        bootstrap_interval(LF.aurc, *scores, **options)
