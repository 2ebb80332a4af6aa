"""The risk-coverage curve as a metric."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.risk_coverage import RiskCoverage, RiskCoveragePoints, risk_coverage_curve
from lightning_efficient.metrics._risk_coverage_base import RiskCoverageMetric


class RiskCoverageCurve(RiskCoverageMetric):
    """The achievable points of the risk-coverage curve.

    ``compute`` returns the named tuple ``(coverage, selective_risk, generalized_risk, threshold)``, each of shape
    ``(M,)``, surest sample first.

    Args:
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = RiskCoverageCurve()
        >>> metric.update(torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1, 1]))
        >>> metric.compute().selective_risk
        tensor([0.0000, 0.0000, 0.3333], dtype=torch.float64)
    """

    higher_is_better = None

    def _evaluate(self, summary: RiskCoverage) -> RiskCoveragePoints:
        return risk_coverage_curve(summary)

    def _wrap_compute(self, compute: Callable) -> Callable:
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def of_one_dimension() -> RiskCoveragePoints:
            # torchmetrics makes scalars of tensors with one element, and so of a curve with one point
            return RiskCoveragePoints(*(each.reshape(-1) for each in wrapped()))

        return of_one_dimension

    def confidence_interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Raise: a curve has no single value; ``plot(interval=0.95)`` draws the band around it."""
        raise ConfigurationError("RiskCoverageCurve has no single value; plot(interval=0.95) draws a band around it.")
