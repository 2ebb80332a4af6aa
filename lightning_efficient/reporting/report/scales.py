"""From numbers to places on a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_DECADES = 3.0
_MARGIN = 0.04


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        low: Value at its beginning.
        high: Value at its end, above ``low``.
        logarithmic: Whether equal lengths are equal ratios.
    """

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at the beginning and 1 at the end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values along the axis.

        Example:
            >>> Scale(0, 0.97).ticks(), Scale(0.01, 100, logarithmic=True).ticks()
            ([0.0, 0.2, 0.4, 0.6, 0.8], [0.01, 0.1, 1.0, 10.0, 100.0])
        """
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / most))
            decades = [10.0**power for power in range(first, last + 1, every)]
            if len(decades) > 1:
                return decades
        raw = (self.high - self.low) / most
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [float(f"{index * step:.10g}") for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale_of(values: Iterable[float], *, logarithmic: bool | None = None, tight: bool = False) -> Scale:
    """Return an axis that holds all finite values.

    Args:
        values: Of which those that are not finite do not count.
        logarithmic: By default where all are above 0 and span more than three decades.
        tight: Whether the axis ends at the outermost values.
    """
    finite = [value for value in values if math.isfinite(value) and abs(value) < 1e300]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if logarithmic is None:
        logarithmic = low > 0 and high / low > 10**_DECADES
    if logarithmic and low > 0 and high > low:
        margin = 1.0 if tight else (high / low) ** _MARGIN
        return Scale(low / margin, high * margin, True)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        if low == high == 0:
            return Scale(-_MARGIN, 1.0)
        around = max(abs(low), abs(high)) * 0.1
        return Scale(low - around, high + around)
    margin = 0.0 if tight else _MARGIN * (high - low)
    return Scale(low - margin, high + margin)


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Keep the ends and of each of equal runs of points the lowest and the highest, so that no spike is lost.

    Example:
        >>> thinned([(step, float(step == 7)) for step in range(1000)], 6)
        [(0, 0.0), (7, 1.0), (500, 0.0), (999, 0.0)]
    """
    if len(points) <= most:
        return list(points)
    size = len(points) / max(1, (most - 2) // 2)
    kept = {0, len(points) - 1}
    start = 0
    while start < len(points):
        end = min(len(points), max(start + 1, round((start // size + 1) * size)))
        finite = [index for index in range(start, end) if math.isfinite(points[index][1])]
        if finite:
            kept |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
        if len(finite) < end - start:  # a gap stays a gap
            kept.add(next(index for index in range(start, end) if not math.isfinite(points[index][1])))
        start = end
    return [points[index] for index in sorted(kept)]
