"""A metric is a function of the samples: neither batches, nor their order, nor pickling on the way change it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lightning_efficient.metrics as LM
from lightning_efficient.functional import confidence, risk_coverage_summary
from lightning_efficient.metrics._risk_coverage_base import RiskCoverageMetric

METRICS: dict[str, Callable[..., RiskCoverageMetric]] = {
    "AURC": LM.AURC,
    "EAURC": LM.EAURC,
    "AUGRC": LM.AUGRC,
    "EAUGRC": LM.EAUGRC,
    "RiskCoverageCurve": LM.RiskCoverageCurve,
    "CoverageAtRisk": lambda **options: LM.CoverageAtRisk(0.2, **options),
    "RiskAtCoverage": lambda **options: LM.RiskAtCoverage(0.7, **options),
    "SelectiveAccuracy": lambda **options: LM.SelectiveAccuracy(0.4, **options),
    "AbstentionRate": lambda **options: LM.AbstentionRate(0.4, **options),
}
EXACT_INPUTS = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([torch.float32, torch.float64]))


def drawn(seed: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(size, 3, generator=generator, dtype=torch.float64)).round().to(dtype) / 2
    return logits, torch.randint(3, (size,), generator=generator), generator


def values_of(metric: RiskCoverageMetric) -> list[Tensor]:
    value = metric.compute()
    return list(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("bins", [None, 8], ids=["exact", "binned"])
@pytest.mark.parametrize("name", METRICS)
@given(inputs=EXACT_INPUTS, cuts=st.lists(st.integers(0, 12), max_size=3))
def test_batches_their_order_and_a_copy_on_the_way_change_nothing(
    name: str, bins: int | None, inputs: tuple[int, int, torch.dtype], cuts: list[int]
) -> None:
    logits, target, generator = drawn(*inputs)
    whole, parts = METRICS[name](bins=bins), METRICS[name](bins=bins)
    whole.update(logits, target)
    order = torch.randperm(len(target), generator=generator)
    bounds = sorted({0, len(target), *(min(cut, len(target)) for cut in cuts)})
    for start, stop in pairwise(bounds):
        parts.update(logits[order][start:stop], target[order][start:stop])
        parts = pickle.loads(pickle.dumps(parts))
    for one, other in zip(values_of(whole), values_of(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12, equal_nan=True)


@given(inputs=EXACT_INPUTS)
def test_a_metric_of_logits_is_the_function_of_their_confidence(inputs: tuple[int, int, torch.dtype]) -> None:
    logits, target, _ = drawn(*inputs)
    curve = LM.RiskCoverageCurve()
    curve.update(logits, target)
    summary = risk_coverage_summary(confidence(logits), logits.argmax(1) != target)
    found = curve.compute()
    torch.testing.assert_close(found.coverage, summary.coverages)
    torch.testing.assert_close(found.selective_risk, summary.selective_risks)
    torch.testing.assert_close(found.threshold, summary.thresholds)
