"""Whose turn it is in a training that goes through stages, and how far that turn is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import is_integer


@dataclass(frozen=True)
class Stage:
    """A number of epochs in which one part of a system learns.

    Attributes:
        name: Which part.
        epochs: How many.
        start: Epoch of the run in which it begins.
        number: Position among the stages, from 0.
    """

    name: str
    epochs: int
    start: int
    number: int

    def progress(self, epoch: int, batch: int, batches: float) -> float:
        """Return the share of the stage that is done, in ``[0, 1]``."""
        within = batch / batches if 0 < batches < float("inf") else 0.0
        return min(max((epoch - self.start + within) / self.epochs, 0.0), 1.0)


class StagePlan:
    """Stages one after the other; the last one lasts as long as the run.

    Args:
        given: Mappings of one entry each, a stage's name and its epochs, such as ``[{"base": 15}, {"router": 10}]``.
        allowed: Names of stages.
        option: Begins every error.

    Raises:
        ConfigurationError: no stage, an unknown one, or a number of epochs below 1.

    Example:
        >>> plan = StagePlan([{"base": 2}, {"router": 1}], ("base", "router"), "model.stages")
        >>> [plan.at(epoch).name for epoch in range(4)], plan.epochs
        (['base', 'base', 'router', 'router'], 3)
    """

    def __init__(self, given: Sequence[Mapping[str, int]], allowed: Sequence[str], option: str) -> None:
        self.stages: list[Stage] = []
        self.option = option
        for place, entry in enumerate(given):
            name, epochs = _entry(entry, f"{option}[{place}]", allowed)
            self.stages.append(Stage(name, epochs, self.epochs, place))
        if not self.stages:
            raise ConfigurationError(f"{option} is empty; give at least one of {', '.join(allowed)}")

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def names(self) -> set[str]:
        """Names of the stages."""
        return {stage.name for stage in self.stages}

    def at(self, epoch: int) -> Stage:
        """Return the stage of an epoch, counted from 0."""
        return next((stage for stage in reversed(self.stages) if stage.start <= epoch), self.stages[0])

    def check_length(self, max_epochs: int | None) -> None:
        """Raise where a run is too short for its stages.

        Raises:
            ConfigurationError: ``max_epochs`` is fewer than the epochs of the stages.
        """
        if max_epochs is not None and 0 <= max_epochs < self.epochs:
            each = ", ".join(f"{stage.name} {stage.epochs}" for stage in self.stages)
            raise ConfigurationError(
                f"trainer.max_epochs is {max_epochs}, and {self.option} take {self.epochs} ({each}); set it to "
                f"{self.epochs}, or shorten the stages"
            )


def _entry(entry: Any, option: str, allowed: Sequence[str]) -> tuple[str, int]:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigurationError(f"{option} is {entry!r}; it must be one name with its epochs, such as {{base: 15}}")
    name, epochs = next(iter(entry.items()))
    if name not in allowed:
        raise ConfigurationError(
            f"{option} has the unknown stage {name!r}.{did_you_mean(str(name), allowed)} It must be one of "
            f"{', '.join(allowed)}"
        )
    if not is_integer(epochs) or epochs < 1:
        raise ConfigurationError(f"{option} has {epochs!r} epochs for {name}; it must be 1 or more")
    return name, epochs
