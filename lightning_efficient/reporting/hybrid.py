"""The picture of a hybrid of two models: how accurate it is at each share of inputs that the small one answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning_efficient.functional.routing import HybridCurve, accuracy_at_coverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class CostPoint(NamedTuple):
    """A working point of a hybrid.

    Attributes:
        coverage: Share that the base answers.
        accuracy: Share that is right.
        latency_ms: Milliseconds per input, in a batch.
    """

    coverage: float
    accuracy: float
    latency_ms: float


def hybrid_figure(
    curve: HybridCurve,
    oracle: HybridCurve,
    plain: HybridCurve,
    target_coverage: float,
    costs: Sequence[CostPoint] = (),
) -> Figure:
    """Draw accuracy over coverage, and over latency where that was measured.

    Args:
        curve: Of the router.
        oracle: Of the best order of the same inputs.
        plain: Of the maximum softmax probability of the base.
        target_coverage: Share to mark.
        costs: Working points with their latency.
    """
    from matplotlib.figure import Figure

    panels = 2 if costs else 1
    figure = Figure(figsize=(6.4 if panels == 1 else 10.0, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _accuracy_over_coverage(axes[0], curve, oracle, plain, target_coverage)
    if costs:
        _accuracy_over_latency(axes[1], costs, target_coverage)
    return figure


def _accuracy_over_coverage(
    ax: Axes, curve: HybridCurve, oracle: HybridCurve, plain: HybridCurve, target: float
) -> None:
    lines = (("oracle", oracle, "--", "0.6"), ("max-prob", plain, ":", "0.3"), ("router", curve, "-", "C0"))
    for name, each, style, colour in lines:
        ax.plot(100 * each.coverage.cpu(), 100 * each.accuracy.cpu(), style, color=colour, label=name)
    reached = 100 * float(accuracy_at_coverage(curve, target))
    ax.plot([100 * target], [reached], "o", color="C0")
    ax.annotate(f"{reached:.1f} %", (100 * target, reached), textcoords="offset points", xytext=(6, -12))
    ax.invert_xaxis()  # from the base alone on the left to the global model alone
    ax.set_xlabel("coverage: % answered by the base")
    ax.set_ylabel("accuracy, %")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="lower right")


def _accuracy_over_latency(ax: Axes, costs: Sequence[CostPoint], target: float) -> None:
    ordered = sorted(costs, key=lambda point: point.coverage)
    ax.plot([point.latency_ms for point in ordered], [100 * point.accuracy for point in ordered], "o-", color="C0")
    named = {0.0: "global model alone", 1.0: "base alone"}
    marked = [point for point in ordered if point.coverage in (0.0, 1.0) or point.coverage == target]
    for point in marked:
        text = named.get(point.coverage, f"{100 * point.coverage:g} % kept")
        ax.annotate(
            text,
            (point.latency_ms, 100 * point.accuracy),
            textcoords="offset points",
            xytext=(-8, -14) if point.coverage < 0.5 else (8, -4),
            ha="right" if point.coverage < 0.5 else "left",
            fontsize="small",
        )
    ax.set_xlabel("measured latency per input in a batch, ms")
    ax.grid(alpha=0.3)
