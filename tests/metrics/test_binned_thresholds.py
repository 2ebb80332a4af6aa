"""A threshold read from bins accepts the samples that the metric counted for it, and no others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_efficient.functional as LF
from lightning_efficient.functional.risk_coverage import bin_edges, bin_indices
from lightning_efficient.metrics import AURC, AbstentionRate, CoverageAtRisk, RiskAtCoverage, SelectiveAccuracy

DTYPES = (torch.float32, torch.float64)
CPU = torch.device("cpu")


def accepted_by(metric, confidence, loss):
    """Compare what a summary says of its thresholds with what the thresholds accept."""
    summary = metric.summary()
    assert summary.thresholds.dtype == confidence.dtype
    for threshold, count, lost in zip(summary.thresholds, summary.counts, summary.losses, strict=True):
        accepted = confidence >= threshold
        assert accepted.sum() == count
        assert loss[accepted].sum() == lost
        assert torch.equal(confidence >= threshold.item(), accepted)


def test_a_float32_score_on_an_edge_is_accepted_by_the_threshold_that_counted_it():
    confidence = torch.tensor([0.75] * 8 + [0.7] * 4)
    wrong = torch.tensor([0] * 8 + [1] * 4)
    metric = CoverageAtRisk(0.0, bins=10, return_threshold=True)
    metric.update_scores(confidence, wrong)
    coverage, threshold = metric.compute()
    assert wrong[confidence >= threshold].sum() == 0
    assert (confidence >= threshold).double().mean() == coverage
    tied = RiskAtCoverage(0.5, bins=10, return_threshold=True)
    tied.update_scores(confidence, wrong)
    assert tied.compute() == (torch.tensor(4 / 12, dtype=torch.float64), torch.tensor(0.7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", [3, 10, 100, 1000])
@pytest.mark.parametrize("low_high", [(0.0, 1.0), (-1.0, 1.0), (-0.3, 17.9), (1000.0, 1000.1)])
def test_scores_on_and_beside_every_edge_count_where_they_are_accepted(dtype, bins, low_high):
    edges = bin_edges(bins, *low_high, dtype=dtype, device=CPU)
    beside = [torch.nextafter(edges[1:], edges.new_tensor(end)) for end in (-torch.inf, torch.inf)]
    confidence = torch.cat([edges, *beside])
    loss = (torch.arange(len(confidence)) % 3 == 0).int()
    metric = AURC(bins=bins, bin_range=low_high)
    metric.update_scores(confidence, loss)
    accepted_by(metric, confidence, loss)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_an_index_is_that_of_a_search_among_the_edges(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    low = data.draw(st.floats(-1e4, 1e4))
    high = low + data.draw(st.floats(1e-3, 1e4))
    edges = bin_edges(data.draw(st.integers(1, 5000)), low, high, dtype=dtype, device=CPU)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    inside = torch.rand(500, generator=generator, dtype=dtype) * 1.2 * (high - low) + low - 0.1 * (high - low)
    ends = [torch.nextafter(edges, edges.new_tensor(end)) for end in (-torch.inf, torch.inf)]
    confidence = torch.cat([inside, edges, *ends, edges.new_tensor([-1e30, 1e30, -torch.inf, torch.inf])])
    expected = torch.searchsorted(edges, confidence, right=True).sub(1).clamp(min=0)
    edges[0] = -torch.inf
    assert torch.equal(bin_indices(confidence, edges, low, high), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_threshold_that_is_an_edge_accepts_the_scores_on_it_as_without_bins(dtype):
    confidence = torch.tensor([0.1, 0.29, 0.3, 0.57, 0.7, 0.9], dtype=dtype)
    for threshold in confidence.tolist():
        for make in (SelectiveAccuracy, AbstentionRate):
            exact, binned = make(round(threshold, 2)), make(round(threshold, 2), bins=100)
            for metric in (exact, binned):
                metric.update_scores(confidence, torch.tensor([1, 0, 1, 0, 1, 0]))
            assert exact.compute() == binned.compute()


def test_batches_of_float32_and_float64_use_the_edges_of_float32():
    metric = AURC(bins=10)
    metric.update_scores(torch.tensor([0.75], dtype=torch.float64), torch.zeros(1))
    assert metric.summary().thresholds.dtype == torch.float64
    metric.update_scores(torch.tensor([0.7]), torch.zeros(1))
    assert metric.summary().thresholds.dtype == torch.float32
    metric.reset()
    metric.update_scores(torch.tensor([0.75], dtype=torch.float64), torch.zeros(1))
    assert metric.summary().thresholds.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_counted_as_the_float32_that_it_is_cast_to(dtype):
    confidence = torch.linspace(0, 1, 500).to(dtype)
    loss = torch.arange(500) % 2
    metric = AURC(bins=10)
    metric.update_scores(confidence, loss)
    accepted_by(metric, confidence.float(), loss)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_thresholds_of_a_histogram_have_the_dtype_of_its_confidences(dtype):
    summary = LF.RiskCoverage.from_histogram(torch.ones(10), torch.zeros(10), dtype=dtype)
    assert torch.equal(summary.thresholds, (torch.arange(9.0, -1, -1, dtype=torch.float64) / 10).to(dtype))
