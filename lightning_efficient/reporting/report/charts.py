"""Charts as inline SVG, each with what it shows in words and its numbers in a table that opens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_efficient.reporting.report.markup import folded, number, quantity, table, text
from lightning_efficient.reporting.report.scales import Scale, scale_of, thinned

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 36
_MOST_POINTS, _MOST_MARKS, _MOST_ROWS, _COLOURS = 400, 40, 60, 8
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "4 2", "1 2", "10 2 2 2")
_BAR = 18
_LONGEST = 28


@dataclass(frozen=True)
class Series:
    """A line, or marks.

    Attributes:
        label: In the legend, plain text.
        points: Horizontal and vertical values, in their order; a value that is not finite is a gap.
        joined: Whether a line joins them.
        names: Beside the points, plain text; none of them, or one for each.
    """

    label: str
    points: Sequence[tuple[float, float]]
    joined: bool = True
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Axes:
    """What a chart says beside its lines.

    Attributes:
        title: Above it.
        x: Name of the horizontal values, with their unit.
        y: Name of the vertical values, with their unit.
        tight: Whether the horizontal axis ends at the outermost points.
        logarithmic: Of both axes; None leaves it to the values.
    """

    title: str
    x: str
    y: str
    tight: bool = True
    logarithmic: tuple[bool | None, bool | None] = (False, None)


def line_chart(axes: Axes, series: Sequence[Series]) -> str:
    """Return a figure with lines and marks; empty if no value is finite.

    Args:
        axes: What it says.
        series: At most as many as can be told apart get a colour of their own.
    """
    finite = [point for each in series for point in each.points if all(map(math.isfinite, point))]
    if not finite:
        return ""
    across = scale_of((x for x, _ in finite), logarithmic=axes.logarithmic[0], tight=axes.tight)
    upward = scale_of((y for _, y in finite), logarithmic=axes.logarithmic[1])
    drawn = "".join(_drawn(each, index, across, upward) for index, each in enumerate(series))
    inside = _frame(across, upward, axes) + drawn
    many = len(series) > 1 or series[0].label != axes.title
    return _figure(axes.title, inside, _HEIGHT, _words(axes, series), _legend(series) if many else "") + (
        f"{_numbers(axes, series)}</figure>"
    )


def bar_chart(title: str, bars: Sequence[tuple[str, float]], unit: str, shown: Sequence[str] = ()) -> str:
    """Return a figure with horizontal bars that begin at 0.

    Args:
        title: Above it.
        bars: Names and values from 0 on.
        unit: Of the values.
        shown: What stands beside each bar; by default its value.
    """
    bars = [(name, value) for name, value in bars if math.isfinite(value)]
    if not bars:
        return ""
    longest = max(value for _, value in bars) or 1.0
    left, room = 190, _WIDTH + 90 - 190 - 80
    parts = []
    for index, (name, value) in enumerate(bars):
        top = index * _BAR + 2
        label = name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
        beside = shown[index] if index < len(shown) else quantity(value, unit)
        width = max(0.0, value / longest * room)
        parts.append(
            f'<text x="{left - 6}" y="{top + 11}" text-anchor="end">{text(label)}</text>'
            f'<rect class="b0" x="{left}" y="{top}" width="{width:.1f}" height="{_BAR - 5}"/>'
            f'<text x="{left + width + 4:.1f}" y="{top + 11}">{text(beside)}</text>'
        )
    largest = max(bars, key=lambda bar: bar[1])
    words = f"Bars of {len(bars)} values in {unit or 'shares'}; the largest is {largest[0]} with {number(largest[1])}."
    rows = [[name, value] for name, value in bars]
    return _figure(title, "".join(parts), len(bars) * _BAR + 4, words, "", _WIDTH + 90) + (
        folded("numbers", table([title, unit or "value"], rows)) + "</figure>"
    )


def heat_map(title: str, columns: Sequence[str], rows: Sequence[Sequence[float]], axes: tuple[str, str]) -> str:
    """Return a figure with a cell for each column of a histogram and each of its bins, from below.

    Args:
        title: Above it.
        columns: Names, such as epochs.
        rows: For each column the counts in equal bins over ``[0, 1]``.
        axes: Names of the horizontal and of the vertical axis.
    """
    if not rows or not rows[0]:
        return ""
    bins = len(rows[0])
    width, height = (_WIDTH - _LEFT - _RIGHT) / len(rows), (_HEIGHT - _TOP - _BOTTOM) / bins
    cells, means = [], []
    for place, counts in enumerate(rows):
        finite = [count if math.isfinite(count) and count > 0 else 0.0 for count in counts]
        total = sum(finite) or 1.0
        means.append(sum(count * (index + 0.5) / bins for index, count in enumerate(finite)) / total)
        for index, count in enumerate(finite):
            if count:
                x, y = _LEFT + place * width, _HEIGHT - _BOTTOM - (index + 1) * height
                cells.append(
                    f'<rect class="b0" x="{x:.2f}" y="{y:.2f}" width="{width + 0.2:.2f}" height="{height + 0.2:.2f}" '
                    f'fill-opacity="{math.sqrt(count / total):.3f}"/>'
                )
    frame = _frame(Scale(-0.5, len(rows) - 0.5), Scale(0.0, 1.0), Axes(title, *axes), columns)
    words = (
        f"Histogram over {axes[1]} for each of {len(rows)} {axes[0]}s; the mean goes from {number(means[0])} to "
        f"{number(means[-1])}. Darker means more samples, by the square root of their share."
    )
    heads = [axes[0], *(f"from {index / bins:g}" for index in range(bins))]
    listed = [[name, *counts] for name, counts in zip(columns, rows, strict=True)]
    return _figure(title, "".join(cells) + frame, _HEIGHT, words, "") + (
        folded("numbers", table(heads, listed, "samples", most=_MOST_ROWS)) + "</figure>"
    )


def _figure(title: str, inside: str, height: float, words: str, legend: str, width: int = _WIDTH) -> str:
    """Return the beginning of a figure, up to its numbers."""
    return (
        f"<figure><figcaption>{text(title)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{text(f"{title}. {words}")}">'
        f"{inside}</svg>{legend}"
    )


def _frame(across: Scale, upward: Scale, axes: Axes, names: Sequence[str] = ()) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in upward.ticks():
        y = bottom - upward.place(value) * (bottom - _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text(_tick(value))}</text>')
    for value in across.ticks():
        if names and (value != int(value) or not 0 <= value < len(names)):
            continue
        x = _LEFT + across.place(value) * (right - _LEFT)
        label = names[int(value)] if names else _tick(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text(label)}</text>')
    parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{text(axes.x)}</text>')
    place = f"translate(11 {(bottom + _TOP) / 2}) rotate(-90)"
    parts.append(f'<text transform="{place}" text-anchor="middle">{text(axes.y)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return quantity(value) if abs(value) >= 1000 else f"{value:.6g}"


def _drawn(series: Series, index: int, across: Scale, upward: Scale) -> str:
    colour, dash = index % _COLOURS, _DASHES[index % len(_DASHES)]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in thinned(series.points, _MOST_POINTS):
        if not (math.isfinite(x) and math.isfinite(y)) or abs(y) >= 1e300:
            runs.append([])
            continue
        place = _LEFT + across.place(x) * (right - _LEFT), bottom - upward.place(y) * (bottom - _TOP)
        runs[-1].append(place)
    parts = []
    if series.joined:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        for run in runs:
            if len(run) > 1:
                points = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
                parts.append(f'<polyline class="l l{colour}" points="{points}"{dashed}/>')
    placed = [place for run in runs for place in run]
    if not series.joined or len(placed) <= _MOST_MARKS:
        radius = 2.2 if series.joined else 4
        parts += [f'<circle class="d d{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in placed]
    for (x, y), name in zip(placed, series.names, strict=False):
        end, aside = ("end", -7) if x > (_LEFT + right) / 2 else ("start", 7)
        parts.append(f'<text class="ink" x="{x + aside:.1f}" y="{y - 8:.1f}" text-anchor="{end}">{text(name)}</text>')
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    items = []
    for index, each in enumerate(series):
        dash = _DASHES[index % len(_DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        line = f'<polyline class="l l{index % _COLOURS}" points="0,4 26,4"{dashed}/>'
        dot = f'<circle class="d d{index % _COLOURS}" cx="13" cy="4" r="3.5"/>'
        swatch = line if each.joined else dot
        items.append(f'<li><svg viewBox="0 0 26 8" aria-hidden="true">{swatch}</svg>{text(each.label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _words(axes: Axes, series: Sequence[Series]) -> str:
    said = []
    for each in series:
        values = [y for x, y in each.points if math.isfinite(y)]
        if not values:
            said.append(f"{each.label}: no finite value")
        elif len(values) == 1 or not each.joined:
            said.append(f"{each.label}: " + ", ".join(map(number, values[:8])))
        else:
            ends = f"from {number(values[0])} to {number(values[-1])}"
            said.append(f"{each.label}: {ends}, lowest {number(min(values))}, highest {number(max(values))}")
        missing = len(each.points) - len(values)
        if missing:
            said[-1] += f", {missing} not finite"
    return f"{axes.y} over {axes.x}. {'; '.join(said)}."


def _numbers(axes: Axes, series: Sequence[Series]) -> str:
    listed = [[each.label, x, y] for each in series for x, y in _evenly(each.points, max(8, _MOST_ROWS // len(series)))]
    total = sum(len(each.points) for each in series)
    gaps = sum(not math.isfinite(y) for each in series for _, y in each.points)
    notes = [f"{len(listed)} of {total:,} points"] if len(listed) < total else []
    notes += [f"{gaps:,} not finite"] if gaps else []
    summary = "numbers" + (f" ({', '.join(notes)})" if notes else "")
    return folded(summary, table(["", axes.x, axes.y], listed, most=len(listed) or 1))


def _evenly(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(index * step)] for index in range(most)]
