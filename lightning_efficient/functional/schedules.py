"""How a number varies over training: value objects that map progress in ``[0, 1]`` to a float."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

from lightning_efficient.errors import ConfigurationError

TOLERANCE = 1e-9
"""By how much progress may miss [0, 1], and a position the start of a cycle or step, from rounding."""


class Schedule(ABC):
    """A number that varies over training, as a function of progress.

    Progress is the share of training that is done, such as ``epoch / epochs`` or ``step / steps``. Schedules compare
    equal when their options do, and YAML names them by class. For one of your own implement ``value_at``.
    """

    def __call__(self, progress: float) -> float:
        """Return the value at a point of training.

        Args:
            progress: Share of training that is done, in ``[0, 1]``; rounding may take it outside by 1e-9.

        Raises:
            ConfigurationError: ``progress`` is outside ``[0, 1]``.
        """
        if not -TOLERANCE <= progress <= 1 + TOLERANCE:
            raise ConfigurationError(
                f"progress={progress!r} is outside [0, 1]; give the share of training that is done, as step / steps."
            )
        return self.value_at(min(max(float(progress), 0.0), 1.0))

    @abstractmethod
    def value_at(self, progress: float) -> float:
        """Return the value; ``progress`` lies within ``[0, 1]``."""


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """The same value throughout.

    Args:
        value: The value, finite.

    Raises:
        ConfigurationError: ``value`` is not a finite number.

    Example:
        >>> ConstantSchedule(0.2)(0.7)
        0.2
    """

    value: float

    def __post_init__(self) -> None:
        _check_finite(self)

    def value_at(self, progress: float) -> float:
        """Return the value."""
        return float(self.value)


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """A straight line.

    Args:
        start: Value at the beginning.
        end: Value at the end.

    Raises:
        ConfigurationError: an option is not a finite number.

    Example:
        >>> LinearSchedule(1.0, 5.0)(0.25)
        2.0
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        _check_finite(self)

    def value_at(self, progress: float) -> float:
        """Return the value on the line."""
        return (1 - progress) * self.start + progress * self.end


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Half a cosine from ``start`` to ``end``, again and again if there are several cycles.

    Cycle ``k`` runs from ``b = start * decay ** k`` to ``end``: ``b + (end - b) (1 - cos(π phase)) / 2`` with the phase
    in ``[0, 1)``. Where a cycle ends the next one begins, so ``end`` itself is reached at ``progress`` 1 only, if the
    number of cycles is whole; there is no cycle to begin there.

    Args:
        start: Value at the beginning of the first cycle.
        end: Value that each cycle approaches.
        cycles: Number of cycles, above 0; a fraction cuts the last one short.
        decay: Factor on ``start`` at each restart, above 0. Once ``start`` has decayed past ``end``, cycles go the
            other way.

    Raises:
        ConfigurationError: an option is not a finite number, or ``cycles`` or ``decay`` is not above 0.

    Example:
        >>> budget = CosineSchedule(0.6, 0.4, cycles=10, decay=0.9)
        >>> [round(budget(epoch / 200), 4) for epoch in (0, 10, 20, 200)]
        [0.6, 0.5, 0.54, 0.4]

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023: the released code's
        schedules of the budget and of its multiplier.
    """

    start: float
    end: float
    cycles: float = 1.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        _check_finite(self)
        for option, given in (("cycles", self.cycles), ("decay", self.decay)):
            if given <= 0:
                raise ConfigurationError(f"CosineSchedule: {option} is {given!r}; it must be above 0")

    def value_at(self, progress: float) -> float:
        """Return the value in the cycle that ``progress`` falls into."""
        cycle, phase = _split(progress * self.cycles, self.cycles)
        begin = self.start * self.decay**cycle
        return begin + (self.end - begin) * 0.5 * (1 - math.cos(math.pi * phase))


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Steps of equal length, each ``factor`` times the last one.

    Args:
        start: Value on the first step.
        factor: Factor from one step to the next.
        steps: Number of steps, 1 or more; the last one holds until the end.

    Raises:
        ConfigurationError: an option is not a finite number, or ``steps`` is not a whole number above 0.

    Example:
        >>> halving = StepSchedule(1.0, factor=0.5, steps=4)
        >>> [halving(progress) for progress in (0, 0.25, 0.5, 1)]
        [1.0, 0.5, 0.25, 0.125]
    """

    start: float
    factor: float
    steps: int

    def __post_init__(self) -> None:
        _check_finite(self)
        if self.steps < 1 or self.steps != int(self.steps):
            raise ConfigurationError(f"StepSchedule: steps is {self.steps!r}; it must be a whole number, 1 or more")

    def value_at(self, progress: float) -> float:
        """Return the value of the step that ``progress`` falls into."""
        step, _ = _split(progress * self.steps, self.steps)
        return float(self.start * self.factor**step)


@dataclass(frozen=True)
class PowerSchedule(Schedule):
    """A power of a line: ``start * (1 + rate * progress) ** power``.

    With ``rate`` the number of epochs, ``power`` 1 grows with the epoch, ½ with its root, and -1 falls with it; with
    ``rate`` -1 it is the polynomial decay to zero.

    Args:
        start: Value at the beginning.
        rate: Slope of the line, -1 or more.
        power: Exponent; not below 0 if ``rate`` is -1.

    Raises:
        ConfigurationError: an option is not a finite number or is outside its range.

    Example:
        >>> PowerSchedule(4.0, rate=3, power=0.5)(1.0)
        8.0
    """

    start: float
    rate: float
    power: float

    def __post_init__(self) -> None:
        _check_finite(self)
        if self.rate < -1:
            raise ConfigurationError(f"PowerSchedule: rate is {self.rate!r}; it must be -1 or more")
        if self.rate == -1 and self.power < 0:
            raise ConfigurationError(
                f"PowerSchedule: power is {self.power!r}, which ends at infinity for rate -1; it must be 0 or more"
            )

    def value_at(self, progress: float) -> float:
        """Return the power."""
        return float(self.start * (1 + self.rate * progress) ** self.power)


def as_schedule(value: float | Schedule) -> Schedule:
    """Return a schedule as it is, and a number as a constant one.

    Args:
        value: A schedule or a finite number.

    Raises:
        ConfigurationError: it is neither.

    Example:
        >>> as_schedule(0.5)
        ConstantSchedule(value=0.5)
    """
    return value if isinstance(value, Schedule) else ConstantSchedule(value)


def _check_finite(schedule: Schedule) -> None:
    for option in fields(schedule):  # type: ignore[arg-type]
        given = getattr(schedule, option.name)
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
            raise ConfigurationError(
                f"{type(schedule).__name__}: {option.name} is {given!r}; it must be a finite number"
            )


def _split(position: float, last: float) -> tuple[int, float]:
    """Return the whole part and the rest, where a position of ``last`` still belongs to the part before it."""
    nearest = round(position)
    if abs(position - nearest) <= TOLERANCE * max(1.0, last):
        position = nearest
    if position >= last and position == int(position):
        return int(position) - 1, 1.0
    whole = math.floor(position)
    return whole, position - whole
