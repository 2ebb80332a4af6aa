"""Single points of the risk-coverage curve as metrics."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional.operating_points import (
    COVERAGE_AT_RISK_FORMS,
    RISK_KINDS,
    CoverageAtRiskForm,
    RiskAtCoverageForm,
    RiskKind,
    abstention_rate,
    coverage_at_risk,
    risk_at_coverage,
    risk_at_coverage_form,
    selective_accuracy,
)
from lightning_efficient.functional.risk_coverage import RiskCoverage
from lightning_efficient.metrics._plot import OperatingPoint
from lightning_efficient.metrics._risk_coverage_base import RiskCoverageMetric


class CoverageAtRisk(RiskCoverageMetric):
    """Largest achievable coverage at a risk target; see :func:`lightning_efficient.functional.coverage_at_risk`.

    Args:
        risk: Target in ``[0, 1]``.
        kind: ``"selective"`` or ``"generalized"`` risk.
        form: ``"achievable"``, ``"torch_uncertainty"`` or ``"first_violation"``.
        return_threshold: Whether ``compute`` returns ``(coverage, threshold)``.
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = CoverageAtRisk(risk=0.1, return_threshold=True)
        >>> metric.update_scores(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 0]))
        >>> metric.compute()
        (tensor(0.5000, dtype=torch.float64), tensor(0.8000))
    """

    higher_is_better = True

    def __init__(
        self,
        risk: float,
        kind: RiskKind = "selective",
        *,
        form: CoverageAtRiskForm = "achievable",
        return_threshold: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fraction("risk", risk, zero=True)
        check_choice("kind", kind, RISK_KINDS)
        check_choice("form", form, COVERAGE_AT_RISK_FORMS)
        self.risk = risk
        self.kind = kind
        self.form = form
        self.return_threshold = return_threshold

    def _evaluate(self, summary: RiskCoverage) -> Tensor | tuple[Tensor, Tensor]:
        coverage, threshold = coverage_at_risk(summary, risk=self.risk, kind=self.kind, form=self.form)
        return (coverage, threshold) if self.return_threshold else coverage

    @property
    def _drawn_risk(self) -> RiskKind:
        return self.kind

    def _operating_point(self, summary: RiskCoverage, value: Tensor | tuple[Tensor, Tensor]) -> OperatingPoint | None:
        _, threshold = coverage_at_risk(summary, risk=self.risk, kind=self.kind, form=self.form)
        text = f"{_percent(value)} answered at risk ≤ {self.risk:.3g}\nthreshold {float(threshold):.4g}"
        return _point_on_curve(summary, self.kind, _first(value), text)


class RiskAtCoverage(RiskCoverageMetric):
    """Risk of the surest samples at a coverage; see :func:`lightning_efficient.functional.risk_at_coverage`.

    Args:
        coverage: Target in ``(0, 1]``.
        kind: ``"selective"`` or ``"generalized"`` risk.
        form: ``"expected"``, ``"at_least"``, ``"torch_uncertainty"``, ``"selectivenet"`` or ``"deep_gamblers"``.
        at_least: The same as ``form="at_least"``.
        return_threshold: Whether ``compute`` returns ``(risk, threshold)``.
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = RiskAtCoverage(coverage=0.75)
        >>> metric.update_scores(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 0]))
        >>> metric.compute()
        tensor(0.3333, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(
        self,
        coverage: float,
        kind: RiskKind = "selective",
        *,
        form: RiskAtCoverageForm = "expected",
        at_least: bool = False,
        return_threshold: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fraction("coverage", coverage, zero=False)
        check_choice("kind", kind, RISK_KINDS)
        self.coverage = coverage
        self.kind = kind
        self.form = risk_at_coverage_form(form, at_least)
        self.return_threshold = return_threshold

    def _evaluate(self, summary: RiskCoverage) -> Tensor | tuple[Tensor, Tensor]:
        risk, threshold = risk_at_coverage(summary, coverage=self.coverage, kind=self.kind, form=self.form)
        return (risk, threshold) if self.return_threshold else risk

    @property
    def _drawn_risk(self) -> RiskKind:
        return self.kind

    def _operating_point(self, summary: RiskCoverage, value: Tensor | tuple[Tensor, Tensor]) -> OperatingPoint | None:
        if math.isnan(_first(value)):
            return None
        _, threshold = risk_at_coverage(summary, coverage=self.coverage, kind=self.kind, form=self.form)
        text = f"risk {_percent(value)} at coverage {self.coverage:.3g}\nthreshold {float(threshold):.4g}"
        return OperatingPoint(self.coverage, _first(value), text)


class SelectiveAccuracy(RiskCoverageMetric):
    """Accuracy of the samples with confidence at or above a threshold; NaN when there are none.

    Args:
        threshold: Lowest confidence accepted.
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = SelectiveAccuracy(threshold=0.7)
        >>> metric.update_scores(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 0]))
        >>> metric.compute()
        tensor(0.6667, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, threshold: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def _evaluate(self, summary: RiskCoverage) -> Tensor:
        return selective_accuracy(summary, threshold=self.threshold)

    def _operating_point(self, summary: RiskCoverage, value: Tensor) -> OperatingPoint | None:
        text = f"accuracy {_percent(value)}\nat threshold {self.threshold:.4g}"
        return _point_on_curve(
            summary, "selective", 1 - float(abstention_rate(summary, threshold=self.threshold)), text
        )


class AbstentionRate(RiskCoverageMetric):
    """Share of the samples with confidence below a threshold.

    Args:
        threshold: Lowest confidence accepted.
        kwargs: See :class:`RiskCoverageMetric`.

    Example:
        >>> import torch
        >>> metric = AbstentionRate(threshold=0.7)
        >>> metric.update_scores(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 0]))
        >>> metric.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, threshold: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def _evaluate(self, summary: RiskCoverage) -> Tensor:
        return abstention_rate(summary, threshold=self.threshold)

    def _operating_point(self, summary: RiskCoverage, value: Tensor) -> OperatingPoint | None:
        text = f"{_percent(value)} abstained\nat threshold {self.threshold:.4g}"
        return _point_on_curve(summary, "selective", 1 - float(value), text)


def _first(value: Tensor | tuple[Tensor, Tensor]) -> float:
    return float(value[0] if isinstance(value, tuple) else value)


def _percent(value: Tensor | tuple[Tensor, Tensor]) -> str:
    return f"{_first(value):.2%}"


def _point_on_curve(summary: RiskCoverage, kind: RiskKind, coverage: float, text: str) -> OperatingPoint | None:
    """Return the point to mark, or nothing where no sample is answered and there is no risk to show."""
    if not coverage > 0:
        return None
    risk, _ = risk_at_coverage(summary, coverage=coverage, kind=kind)
    return OperatingPoint(coverage, float(risk), text)
