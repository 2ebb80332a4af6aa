"""The picture of what abstaining buys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_efficient import functional as LF
from lightning_efficient.functional import RiskCoverage, RiskKind
from lightning_efficient.metrics import OperatingPoint, draw_risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def risk_coverage_figure(
    summary: RiskCoverage, stage: str, risks: Sequence[float] = (), kind: RiskKind = "selective"
) -> Figure:
    """Draw the risk-coverage curve of a model with the coverage that each asked risk allows.

    Args:
        summary: The sorted summary of all samples.
        stage: Which samples they are, for the title.
        risks: Risks to mark, where they can be reached.
        kind: Which risk the vertical axis shows.
    """
    from matplotlib.figure import Figure

    points: list[OperatingPoint] = []
    for risk in sorted(risks):
        coverage, threshold = (float(value) for value in LF.coverage_at_risk(summary, risk=risk, kind=kind))
        # where the same threshold reaches several risks, the lowest says it all
        if coverage > 0 and all(coverage != point.coverage for point in points):
            text = f"{100 * coverage:.1f} % answered at ≤ {100 * risk:g} % risk\nconfidence ≥ {threshold:.3f}"
            reached = float(LF.risk_at_coverage(summary, coverage=coverage, kind=kind)[0])
            points.append(OperatingPoint(coverage, reached, text))
    area = f"AURC {LF.aurc(summary):.4f}" if kind == "selective" else f"AUGRC {LF.augrc(summary):.4f}"
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    draw_risk_coverage(
        figure.add_subplot(),
        summary,
        kind=kind,
        label=f"model, {area}",
        points=points,
        title=f"{stage} · {int(summary.total):,} samples",
    )
    return figure
