"""The picture of a trade-off: a front, what it dominates, and where it bends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.pareto import hypervolume, knee, pareto_mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DECADE = 10.0
_MARGIN = 0.1
_MOST_LABELS = 25
_RADIUS = 5
_DISTANCES = (7, 14, 22, 32)
_MISLEADING = 40
"""What a label beside another point costs, in percent of its area covered."""
_DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
_FRONT, _DOMINATED, _KNEE, _INK = "#3b5bdb", "0.65", "#e8590c", "#343a40"

_Corner: TypeAlias = tuple[float, float]
_Box: TypeAlias = tuple[float, float, float, float]
"""Left, bottom, right and top."""


@dataclass(frozen=True)
class ParetoPoint:
    """One model, or the mean of several runs of it.

    Attributes:
        label: The words beside it.
        x: Value on the horizontal axis, finite.
        y: Value on the vertical axis, finite.
        x_std: Standard deviation over the runs, 0 for one run.
        y_std: Likewise.
    """

    label: str
    x: float
    y: float
    x_std: float = 0.0
    y_std: float = 0.0


@dataclass(frozen=True)
class ParetoSummary:
    """What a set of points amounts to.

    Attributes:
        front: For each point whether no other dominates it.
        knee: Index of the point at which the front bends most, on the axes as drawn; None if it does not bend.
        hypervolume: Area that the points dominate, up to the reference, in units of both axes.
        share: The same as a share of the box between the best of each axis and the reference; 0 if that is empty.
        reference: The point up to which the area counts.
        logarithmic: Whether each axis is drawn as logarithms.
    """

    front: tuple[bool, ...]
    knee: int | None
    hypervolume: float
    share: float
    reference: tuple[float, float]
    logarithmic: tuple[bool, bool]


def pareto_summary(
    points: Sequence[ParetoPoint],
    maximize: tuple[bool, bool] = (False, True),
    reference: tuple[float, float] | None = None,
) -> ParetoSummary:
    """Tell front, knee and hypervolume of points.

    An axis is logarithmic if less is better there and its values are above 0 and span more than a decade.

    Args:
        points: At least one, finite.
        maximize: For both axes whether more is better.
        reference: For the hypervolume; by default the worst value of each axis and a tenth of the range beyond it, of
            the value where there is no range.

    Raises:
        ConfigurationError: no points, or values that are not finite.

    Example:
        >>> points = [ParetoPoint("a", 1, 0.5), ParetoPoint("b", 2, 0.9), ParetoPoint("c", 9, 0.95)]
        >>> summary = pareto_summary([*points, ParetoPoint("d", 5, 0.7)])
        >>> summary.front, points[summary.knee].label
        ((True, True, True, False), 'b')
    """
    values = torch.tensor([[point.x, point.y] for point in points], dtype=torch.float64)
    if not len(points) or not values.isfinite().all():
        raise ConfigurationError("points must be at least one, with finite x and y.")
    logarithmic = _logarithmic(values, maximize)
    best = torch.stack([each.max() if more else each.min() for each, more in zip(values.T, maximize, strict=True)])
    worst = torch.stack([each.min() if more else each.max() for each, more in zip(values.T, maximize, strict=True)])
    limit = _beyond(best, worst, maximize) if reference is None else torch.tensor(reference, dtype=torch.float64)
    front = pareto_mask(values, maximize)
    area = hypervolume(values, limit, maximize)
    box = float((limit - best).abs().prod())
    return ParetoSummary(
        front=tuple(front.tolist()),
        knee=_knee(values, maximize, logarithmic, front),
        hypervolume=area,
        share=area / box if box > 0 else 0.0,
        reference=(float(limit[0]), float(limit[1])),
        logarithmic=logarithmic,
    )


def pareto_figure(
    points: Sequence[ParetoPoint],
    x_label: str,
    y_label: str,
    *,
    maximize: tuple[bool, bool] = (False, True),
    summary: ParetoSummary | None = None,
    title: str = "",
) -> Figure:
    """Draw points with their front as steps, what is dominated in grey and the knee in a ring.

    Args:
        points: At least one, finite.
        x_label: Below the axes.
        y_label: Beside them.
        maximize: For both axes whether more is better.
        summary: Of these points, if it is at hand.
        title: Above the axes.

    Returns:
        A figure that pyplot does not know. Beyond 25 points, only those on the front have their labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = summary or pareto_summary(points, maximize)
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    for draw, logarithmic in zip((ax.set_xscale, ax.set_yscale), summary.logarithmic, strict=True):
        draw("log" if logarithmic else "linear")
    _draw_points(ax, points, summary)
    corners = _corners(points, summary, maximize)
    ax.plot([x for x, _ in corners], [y for _, y in corners], color=_FRONT, linewidth=1.2, alpha=0.7, zorder=1)
    if summary.knee is not None:
        bend = points[summary.knee]
        ax.scatter(
            [bend.x], [bend.y], s=170, facecolors="none", edgecolors=_KNEE, linewidths=1.5, label="knee", zorder=4
        )
    ax.margins(0.12)
    ax.set_xlabel(x_label + _better(maximize[0], "→", "←"))
    ax.set_ylabel(y_label + _better(maximize[1], "↑", "↓"))
    ax.grid(alpha=0.3)
    if title:
        ax.set_title(title, loc="left", fontsize="medium")
    if not all(summary.front) or summary.knee is not None:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    _place_labels(ax, points, summary, corners)
    return figure


def _draw_points(ax: Axes, points: Sequence[ParetoPoint], summary: ParetoSummary) -> None:
    for on_front, colour, label, layer in ((False, _DOMINATED, "dominated", 2), (True, _FRONT, "front", 3)):
        chosen = [point for point, front in zip(points, summary.front, strict=True) if front == on_front]
        if chosen:
            ax.errorbar(
                [point.x for point in chosen],
                [point.y for point in chosen],
                xerr=_errors([point.x_std for point in chosen]),
                yerr=_errors([point.y_std for point in chosen]),
                fmt="o",
                color=colour,
                label=label,
                zorder=layer,
                markersize=6,
                elinewidth=1,
                capsize=2,
            )


def _errors(deviations: list[float]) -> list[float] | None:
    return deviations if any(deviations) else None


def _corners(points: Sequence[ParetoPoint], summary: ParetoSummary, maximize: tuple[bool, bool]) -> list[_Corner]:
    """Return the corners of the front's steps: what a budget buys is what the best point within it offers."""
    front = sorted((point.x, point.y) for point, on_front in zip(points, summary.front, strict=True) if on_front)
    corners = front[:1]
    for (x, y), (next_x, next_y) in pairwise(front):
        corners += [(x, next_y) if maximize[0] else (next_x, y), (next_x, next_y)]
    return corners


def _place_labels(ax: Axes, points: Sequence[ParetoPoint], summary: ParetoSummary, corners: list[_Corner]) -> None:
    """Put each label where it covers least of points, steps and other labels, the front's first."""
    figure: Any = ax.figure
    figure.draw_without_rendering()  # it settles where a value is on the page
    scale = figure.dpi / 72
    pixels = ax.transData.transform([(point.x, point.y) for point in points]).tolist()
    steps = ax.transData.transform(corners).tolist() if corners else []
    taken = [_around(place, place, _RADIUS * scale) for place in pixels]
    taken += [_around(start, end, scale) for start, end in pairwise(steps)]
    frame = ax.get_window_extent().extents
    order = sorted(range(len(points)), key=lambda index: not summary.front[index])
    for index in order[: len(points) if len(points) <= _MOST_LABELS else sum(summary.front)]:
        x, y = pixels[index]
        width, height = _size(ax, points[index].label)
        places = []
        for distance, (right, up) in product(_DISTANCES, _DIRECTIONS):
            left = x + right * distance * scale - width * (1 - right) / 2
            bottom = y + up * distance * scale * 0.8 - height * (1 - up) / 2
            place = (left, bottom, left + width, bottom + height)
            covered = sum(_overlap(place, other) for other in taken) + 2 * (width * height - _overlap(place, frame))
            nearer = any(_gap(place, other) < _gap(place, pixels[index]) for other in pixels)
            places.append((100 * covered / (width * height) + distance + _MISLEADING * nearer, distance, place))
        _, distance, place = min(places)
        taken.append(place)
        text = ax.annotate(
            points[index].label,
            (points[index].x, points[index].y),
            xytext=((place[0] - x) / scale, (place[1] - y) / scale),
            textcoords="offset points",
            fontsize="small",
            color=_INK if summary.front[index] else "0.45",
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6} if distance > _DISTANCES[0] else None,
            zorder=5,
        )
        text.set_in_layout(False)


def _size(ax: Axes, label: str) -> tuple[float, float]:
    canvas: Any = ax.figure.canvas
    text = ax.text(0, 0, label, fontsize="small", transform=ax.transAxes)
    extent = text.get_window_extent(canvas.get_renderer())
    text.remove()
    return extent.width, 0.8 * extent.height  # the line above the letters may stay empty


def _around(start: Sequence[float], end: Sequence[float], margin: float) -> _Box:
    (left, right), (bottom, top) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    return left - margin, bottom - margin, right + margin, top + margin


def _overlap(a: _Box, b: _Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _gap(box: _Box, place: Sequence[float]) -> float:
    across = max(box[0] - place[0], place[0] - box[2], 0.0)
    return math.hypot(across, max(box[1] - place[1], place[1] - box[3], 0.0))


def _better(more: bool, up: str, down: str) -> str:
    return f"  (better {up})" if more else f"  (better {down})"


def _beyond(best: torch.Tensor, worst: torch.Tensor, maximize: tuple[bool, bool]) -> torch.Tensor:
    size = (worst - best).abs()
    size = torch.where(size > 0, size, torch.where(worst != 0, worst.abs(), 1.0))
    return worst + _MARGIN * size * torch.tensor([-1.0 if more else 1.0 for more in maximize], dtype=torch.float64)


def _logarithmic(values: torch.Tensor, maximize: tuple[bool, bool]) -> tuple[bool, bool]:
    spans = [
        not more and float(each.min()) > 0 and float(each.max() / each.min()) > _DECADE
        for each, more in zip(values.T, maximize, strict=True)
    ]
    return spans[0], spans[1]


def _knee(
    values: torch.Tensor, maximize: tuple[bool, bool], logarithmic: tuple[bool, bool], front: torch.Tensor
) -> int | None:
    drawn = torch.stack([each.log() if log else each for each, log in zip(values.T, logarithmic, strict=True)], 1)
    index = knee(drawn, maximize)
    ends = drawn[front].amin(0), drawn[front].amax(0)
    at_end = any(math.isclose(float(drawn[index, axis]), float(end[axis])) for end in ends for axis in (0, 1))
    return None if at_end else index
