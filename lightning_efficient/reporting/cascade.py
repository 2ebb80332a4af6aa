"""The picture of a cascade: how accurate it is for what an answer costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class CostCurve:
    """Accuracy over mean cost, along the thresholds of one system.

    Attributes:
        label: What the legend calls it.
        costs: Mean cost of an answer at each threshold.
        accuracies: Share of right answers at each, in ``[0, 1]``.
    """

    label: str
    costs: Sequence[float]
    accuracies: Sequence[float]


@dataclass(frozen=True)
class CostMark:
    """A system without thresholds: one stage that answers everything.

    Attributes:
        label: The words beside the mark.
        cost: Of an answer.
        accuracy: Share of right answers, in ``[0, 1]``.
    """

    label: str
    cost: float
    accuracy: float


def cascade_figure(
    curves: Sequence[CostCurve],
    marks: Sequence[CostMark] = (),
    *,
    title: str = "",
    cost_name: str = "MACs",
    per: str = "input",
) -> Figure:
    """Draw accuracy over mean cost.

    Args:
        curves: Lines, one for each system.
        marks: Points, such as the single stages.
        title: Above the axes.
        cost_name: What costs are counted in; ``MACs`` are scaled to k, M, G or T.
        per: What one answer is for.
    """
    from matplotlib.figure import Figure

    largest = max([0.0, *(cost for curve in curves for cost in curve.costs), *(mark.cost for mark in marks)])
    scale, prefix = next(((size, letter) for size, letter in _UNITS if largest >= size), (1.0, ""))
    if cost_name != "MACs":
        scale, prefix = 1.0, ""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.add_subplot()
    for number, curve in enumerate(curves):
        ordered = sorted(zip(curve.costs, curve.accuracies, strict=True))
        ax.plot(
            [cost / scale for cost, _ in ordered],
            [100 * accuracy for _, accuracy in ordered],
            label=curve.label,
            color=f"C{number}",
        )
    for mark in marks:
        ax.plot([mark.cost / scale], [100 * mark.accuracy], "o", color="0.35", zorder=3)
        ax.annotate(
            mark.label,
            (mark.cost / scale, 100 * mark.accuracy),
            textcoords="offset points",
            xytext=(6, -11),
            fontsize="small",
        )
    ax.margins(x=0.12)
    ax.set_xlabel(f"mean {prefix}{' ' if prefix else ''}{cost_name} per {per}")
    ax.set_ylabel("accuracy, %")
    ax.grid(alpha=0.3)
    if curves:
        ax.legend(frameon=False, loc="lower right")
    if title:
        ax.set_title(title, loc="left", fontsize="medium")
    return figure
