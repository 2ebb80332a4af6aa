"""Drawing of risk-coverage curves on given axes; knows no metric and leaves pyplot alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_efficient.functional.operating_points import RiskKind
from lightning_efficient.functional.risk_coverage import RiskCoverage

MODEL, PERFECT, RANDOM, MARK, INK = "#3b5bdb", "#0ca678", "#868e96", "#e8590c", "#343a40"


@dataclass(frozen=True)
class OperatingPoint:
    """A point to mark on the curve, with the words beside it."""

    coverage: float
    risk: float
    text: str


@dataclass(frozen=True)
class RiskBand:
    """An interval of the risk at each coverage, each of shape ``(G,)``, and the level it was made for."""

    level: float
    coverage: Tensor
    low: Tensor
    high: Tensor


def new_axes(width: float = 6.4, height: float = 4.2) -> Axes:
    """Return the axes of a new figure that pyplot does not know, so nothing needs closing."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained").add_subplot()


def draw_risk_coverage(
    ax: Axes,
    summary: RiskCoverage,
    *,
    kind: RiskKind = "selective",
    label: str = "model",
    points: Sequence[OperatingPoint] = (),
    title: str | None = None,
    band: RiskBand | None = None,
) -> None:
    """Draw the curve of a model between that of a perfect and that of a random ranking.

    Inside a group of ties the curve follows the expected risk, so the area under it is the AURC or AUGRC.

    Args:
        ax: Where to draw.
        summary: The sorted summary of a model.
        kind: Which risk the vertical axis shows.
        label: What the legend calls the model.
        points: Operating points to mark.
        title: Title above the axes.
        band: Interval around the curve.
    """
    _dress(ax, kind, title, legend_rows=1 if band is None else 2)
    if summary.is_empty:
        ax.text(0.5, 0.5, "no samples", ha="center", va="center", color=RANDOM, transform=ax.transAxes)
        return
    total, total_loss = float(summary.total), float(summary.total_loss)
    accepted = _grid(total)
    counts, losses = (np.append(0.0, values.cpu().numpy()) for values in (summary.counts, summary.losses))
    model = np.interp(accepted, counts, losses)
    perfect = (accepted - (total - total_loss)).clip(min=0)
    random = accepted * total_loss / total
    divisor = accepted if kind == "selective" else total
    coverage, lines = accepted / total, [curve / divisor for curve in (model, perfect, random)]
    ax.fill_between(coverage, lines[1], lines[0], color=MODEL, alpha=0.10, linewidth=0)
    ax.plot(coverage, lines[0], color=MODEL, linewidth=2.4, label=label, zorder=3)
    ax.plot(coverage, lines[1], color=PERFECT, linewidth=1.6, label="perfect ranking", clip_on=False, zorder=2.5)
    ax.plot(coverage, lines[2], color=RANDOM, linewidth=1.4, linestyle=(0, (4, 3)), label="random ranking")
    if band is not None:
        low, high = band.low.cpu().numpy(), band.high.cpu().numpy()
        words = f"{100 * band.level:g}% interval"
        ax.fill_between(band.coverage.cpu().numpy(), low, high, color=MODEL, alpha=0.25, linewidth=0, label=words)
    for index, point in enumerate(points):
        _mark(ax, point, 34 * index)
    # The noise of the few surest samples would otherwise set the scale.
    settled = np.concatenate([line[coverage >= 0.02] for line in lines] + [[point.risk for point in points]])
    if band is not None:
        settled = np.append(settled, high[band.coverage.cpu().numpy() >= 0.02])
    ax.set_ylim(0, max(1.12 * settled.max(initial=0.0), 0.01))
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=3 if band is None else 2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.6,
        borderaxespad=0.2,
    )


def _grid(total: float, size: int = 1000) -> np.ndarray:
    """Numbers of accepted samples at which to draw: even ones, and close ones where few samples are accepted."""
    first = min(1.0, total)
    return np.union1d(np.linspace(first, total, size), np.geomspace(first, total, size // 4))


def band_grid(summary: RiskCoverage, size: int = 200) -> Tensor:
    """Coverages at which to take an interval, each at least that of one sample; shape ``(G,)``, float64."""
    grid = np.unique(_grid(float(summary.total), size)) / float(summary.total)
    return torch.as_tensor(grid.clip(max=1), dtype=torch.float64, device=summary.counts.device)


def _dress(ax: Axes, kind: RiskKind, title: str | None, legend_rows: int) -> None:
    ax.set_xlim(0, 1)
    ax.set_xlabel("coverage: share of samples answered", color=INK)
    ax.set_ylabel("risk among the answered" if kind == "selective" else "risk among all samples", color=INK)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#ced4da")
    ax.tick_params(colors=INK, length=0, labelsize=9, pad=6)
    ax.grid(True, color="#e9ecef", linewidth=0.8)
    ax.set_axisbelow(True)
    if title is not None:
        ax.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=8 + 16 * legend_rows)


def _mark(ax: Axes, point: OperatingPoint, raised: float) -> None:
    """Mark a point, its words raised by so many points where there are others."""
    ax.plot(
        [0, point.coverage, point.coverage],
        [point.risk, point.risk, 0],
        color=MARK,
        linewidth=1,
        linestyle=(0, (1, 2)),
        zorder=3.5,
    )
    ax.plot(
        point.coverage,
        point.risk,
        "o",
        color=MARK,
        markeredgecolor="white",
        markeredgewidth=1.5,
        markersize=9,
        clip_on=False,
        zorder=4,
    )
    ax.annotate(
        point.text,
        (point.coverage, point.risk),
        xytext=(-12, 10 + raised) if point.coverage > 0.5 else (12, raised - 4),
        textcoords="offset points",
        ha="right" if point.coverage > 0.5 else "left",
        va="bottom",
        fontsize=9,
        color=MARK,
        linespacing=1.4,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2},
        zorder=3.5,
    )
