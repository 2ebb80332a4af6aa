"""Metrics with the interface of torchmetrics; the mathematics is in the file of the same name in ``functional``.

All risk-coverage metrics keep the same state, so that in a ``MetricCollection`` they form one compute group: the state
is kept, updated and sorted once, whichever numbers are read from it.
"""

from __future__ import annotations

from lightning_efficient.metrics._plot import OperatingPoint, draw_risk_coverage
from lightning_efficient.metrics.operating_points import (
    AbstentionRate,
    CoverageAtRisk,
    RiskAtCoverage,
    SelectiveAccuracy,
)
from lightning_efficient.metrics.risk_coverage import RiskCoverageCurve
from lightning_efficient.metrics.risk_coverage_area import AUGRC, AURC, EAUGRC, EAURC
from lightning_efficient.metrics.routing import RoutingCurve

__all__ = [
    "AUGRC",
    "AURC",
    "EAUGRC",
    "EAURC",
    "AbstentionRate",
    "CoverageAtRisk",
    "OperatingPoint",
    "RiskAtCoverage",
    "RiskCoverageCurve",
    "RoutingCurve",
    "SelectiveAccuracy",
    "draw_risk_coverage",
]
