"""The sorted summary: grouping of ties, weights, bins, order, precision, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lightning_efficient.functional as LF
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.risk_coverage import sort_into_groups
from lightning_efficient.functional.risk_coverage_area import eaugrc

samples = st.lists(st.tuples(st.integers(-4, 4), st.floats(0, 1)), min_size=1, max_size=30)


def brute_force(confidence, loss, weight):
    """Cumulative weight and loss at every distinct confidence, by a mask for each."""
    rows = []
    for threshold in sorted(set(confidence.tolist()), reverse=True):
        accepted = confidence >= threshold
        rows.append((threshold, weight[accepted].sum(), (weight * loss)[accepted].sum()))
    return np.array(rows, dtype=np.float64).T


@given(samples, st.sampled_from([torch.float32, torch.float64]))
def test_summary_equals_a_mask_per_threshold(rows, dtype):
    score, loss = (torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True))
    summary = LF.risk_coverage_summary(score / 3, loss)
    thresholds, counts, losses = brute_force((score / 3).numpy(), loss.double().numpy(), np.ones(len(rows)))
    assert summary.thresholds.dtype == dtype
    assert np.array_equal(summary.thresholds.numpy(), thresholds)
    assert np.array_equal(summary.counts.numpy(), counts)
    np.testing.assert_allclose(summary.losses.numpy(), losses, rtol=1e-12, atol=1e-12)


@given(samples, st.data())
def test_an_integer_weight_stands_for_as_many_samples(rows, data):
    score, loss = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    weight = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))
    weighted = LF.risk_coverage_summary(score, loss, weight)
    repeated = LF.risk_coverage_summary(score.repeat_interleave(weight), loss.repeat_interleave(weight))
    assert torch.equal(weighted.thresholds, repeated.thresholds)
    assert torch.equal(weighted.counts, repeated.counts)
    torch.testing.assert_close(weighted.losses, repeated.losses, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_holds_across_signs_and_both_zeros(dtype):
    scores = torch.tensor([0.0, 1e-30, -0.0, -1e-30, -7.5, 3.0], dtype=dtype)
    summary = LF.risk_coverage_summary(scores, torch.arange(6) % 2)
    assert torch.equal(summary.thresholds, torch.tensor([3.0, 1e-30, 0.0, -1e-30, -7.5], dtype=dtype))
    assert summary.counts.tolist() == [1, 2, 4, 5, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sort_itself_knows_infinities(dtype):
    scores = torch.tensor([0.0, -torch.inf, torch.inf, 3.0, torch.inf], dtype=dtype)
    order, ends, thresholds = sort_into_groups(scores)
    assert torch.equal(thresholds, torch.tensor([torch.inf, 3.0, 0.0, -torch.inf], dtype=dtype))
    assert ends.tolist() == [1, 2, 3, 4]
    assert torch.equal(scores[order][ends], thresholds)


def test_curve_lists_the_achievable_points():
    curve = LF.risk_coverage_curve(torch.tensor([0.9, 0.7, 0.9, 0.5]), torch.tensor([0, 1, 1, 0]))
    assert curve.coverage.tolist() == [0.5, 0.75, 1.0]
    assert curve.selective_risk.tolist() == [1 / 2, 2 / 3, 2 / 4]
    assert curve.generalized_risk.tolist() == [1 / 4, 2 / 4, 2 / 4]
    assert curve.threshold.tolist() == pytest.approx([0.9, 0.7, 0.5])


def test_bins_count_their_samples_as_ties_and_leave_out_empty_bins():
    counts, losses = torch.tensor([4, 0, 1, 3]), torch.tensor([2.0, 0.0, 1.0, 0.0])
    summary = LF.RiskCoverage.from_histogram(counts, losses, low=-1, high=1)
    assert summary.thresholds.tolist() == [0.5, 0.0, -1.0]
    assert summary.counts.tolist() == [3, 4, 8]
    assert summary.losses.tolist() == [0, 1, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_float32_on_the_same_rounded_scores(dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(70_000, generator=generator).to(dtype)
    loss = torch.rand(70_000, generator=generator) < 0.2
    half, single = LF.risk_coverage_summary(scores, loss), LF.risk_coverage_summary(scores.float(), loss)
    assert half.thresholds.dtype == torch.float32
    assert torch.equal(half.counts, single.counts)
    assert torch.equal(half.losses, single.losses)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_counted_in_every_dtype(dtype):
    scores = torch.linspace(0, 1, 40, dtype=dtype)
    scores[[17, 20, 39]] = torch.tensor([torch.inf, torch.nan, -torch.inf], dtype=dtype)
    with pytest.raises(ConfigurationError, match="holds 3 values that are not finite, the first at index 17;"):
        LF.risk_coverage_summary(scores, torch.zeros(40))


def test_finite_scores_whose_sum_overflows_are_taken():
    summary = LF.risk_coverage_summary(torch.tensor([3e38, 2e38, 1e38]), torch.tensor([0, 1, 0]))
    assert summary.counts.tolist() == [1, 2, 3]


def test_a_bool_loss_counts_errors():
    loss = torch.tensor([True, False, True])
    assert LF.risk_coverage_summary(torch.tensor([3.0, 2.0, 1.0]), loss).losses.tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("confidence", "loss", "weight", "message"),
    [
        ([0.5, torch.nan], [0, 1], None, "1 value that is not finite, the first at index 1; NaN"),
        ([0.5, torch.inf], [0, 1], None, "1 value that is not finite, the first at index 1"),
        ([0.5, -torch.inf, torch.nan], [0, 1, 0], None, "2 values that are not finite, the first at index 1"),
        ([0.5, 0.4], [0, 2], None, r"\[0, 1\]"),
        ([0.5, 0.4], [0.0, torch.nan], None, r"\[0, 1\]"),
        ([0.5, 0.4], [0], None, "one shape"),
        ([[0.5, 0.4]], [[0, 1]], None, "one shape"),
        ([0.5, 0.4], [0, 1], [1.0, -1.0], "weight"),
        ([0.5, 0.4], [0, 1], [1.0], "one shape"),
    ],
)
def test_unusable_samples_are_refused(confidence, loss, weight, message):
    weight = None if weight is None else torch.tensor(weight)
    with pytest.raises(ConfigurationError, match=message):
        LF.risk_coverage_summary(torch.tensor(confidence), torch.tensor(loss), weight)


def test_a_summary_is_taken_alone_and_a_confidence_with_its_loss():
    scores, loss = torch.tensor([0.5, 0.4]), torch.tensor([0, 1])
    with pytest.raises(ConfigurationError, match="pass it alone"):
        LF.aurc(LF.risk_coverage_summary(scores, loss), loss)
    with pytest.raises(ConfigurationError, match="needs the loss"):
        LF.aurc(scores)


@pytest.mark.parametrize(
    "read",
    [
        LF.aurc,
        LF.eaurc,
        LF.augrc,
        eaugrc,
        lambda *s: LF.coverage_at_risk(*s, risk=0.1)[0],
        lambda *s: LF.risk_at_coverage(*s, coverage=0.8)[0],
        lambda *s: LF.selective_accuracy(*s, threshold=0.5),
        lambda *s: LF.abstention_rate(*s, threshold=0.5),
    ],
)
def test_no_samples_give_nan_and_a_warning(read):
    with pytest.warns(UserWarning, match="No samples"):
        assert read(torch.zeros(0), torch.zeros(0)).isnan()
