"""Which of two networks a training step is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice

Phase = Literal["student", "guide", "joint"]
Unit = Literal["step", "epoch"]


@dataclass(frozen=True)
class Alternation:
    """Train a student and its guide in turns: first the guide alone, then so many units of each.

    Args:
        student: Steps (or epochs) of the student in a cycle.
        guide: Steps (or epochs) of the guide that follow them.
        warmup: Steps (or epochs) of the guide before the first cycle.
        unit: ``step``: optimiser steps; ``epoch``: whole passes over the data, as in the released code, where one of
            its epochs is 3 + 3 passes after a warm-up of 5.

    Raises:
        ConfigurationError: a number below 1, or below 0 for ``warmup``.

    Example:
        >>> turns = Alternation(student=2, guide=1, warmup=1)
        >>> [turns.phase(count) for count in range(5)]
        ['guide', 'student', 'student', 'guide', 'student']

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """

    student: int = 3
    guide: int = 3
    warmup: int = 0
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        for name, least in (("student", 1), ("guide", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"phases.{name} is {getattr(self, name)}; it must be at least {least}")
        check_choice("phases.unit", self.unit, get_args(Unit))

    @property
    def length(self) -> int:
        """Units in a cycle."""
        return self.student + self.guide

    def phase(self, count: int) -> Phase:
        """Return whose turn it is after ``count`` units."""
        return "student" if count >= self.warmup and (count - self.warmup) % self.length < self.student else "guide"

    def progress(self, count: int, total: int) -> float:
        """Return the share of the cycles that are complete after ``count`` of ``total`` units: 0 in the warm-up.

        Example:
            >>> [Alternation(2, 2, warmup=2).progress(count, total=10) for count in (1, 3, 5, 6)]
            [0.0, 0.0, 0.0, 0.5]
        """
        cycles = max(1, -(-(total - self.warmup) // self.length))
        return min(1.0, max(0, count - self.warmup) // self.length / cycles)
