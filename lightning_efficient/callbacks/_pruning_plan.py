"""When a run prunes and how far, and which layers have a sparsity of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import (
    check_choice,
    check_count,
    check_flag,
    check_fraction,
    check_number,
    is_integer,
)
from lightning_efficient.functional.pruning import SALIENCIES, SCOPES, cubic_sparsity, sparsity_after_round

Structure = Literal["unstructured", "channels"]
Saliency = Literal["magnitude", "first_order", "random"]
Scope = Literal["global", "layer"]
PruningSchedule = Literal["cubic", "iterative", "one_shot"]


@dataclass(frozen=True)
class PruningPlan:
    """The rounds of a run.

    Args:
        schedule: How the sparsity grows over the rounds.
        begin: Share of training after which the first round may come.
        end: Share of training by which the last one comes.
        rounds: How many.
        regrowth: Share of what is kept that moves in each round.

    Raises:
        ConfigurationError: a value outside its range.

    Example:
        >>> plan = PruningPlan("cubic", begin=0.0, end=0.5, rounds=2)
        >>> plan.steps(40), plan.share(1, 0.8), plan.share(2, 0.8)
        ([10, 20], 0.7000000000000001, 0.8)
    """

    schedule: PruningSchedule = "cubic"
    begin: float = 0.0
    end: float = 0.75
    rounds: int = 10
    regrowth: float = 0.0

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, get_args(PruningSchedule))
        for option in ("begin", "end", "regrowth"):
            check_number(option, getattr(self, option))
            check_fraction(option, getattr(self, option), zero=True)
        check_count("rounds", self.rounds)
        if self.begin > self.end:
            raise ConfigurationError(f"begin={self.begin!r} is after end={self.end!r}; give shares of the training.")

    @property
    def length(self) -> int:
        """How many rounds there really are: one shot is one, unless weights regrow."""
        return 1 if self.schedule == "one_shot" and not self.regrowth else self.rounds

    def steps(self, total: int) -> list[int]:
        """Return the number of optimiser steps after which each round comes, in ``[1, total]``."""
        positions = [self._position(number) for number in range(1, self.length + 1)]
        return [min(total, max(1, round(total * position))) for position in positions]

    def share(self, number: int, final: float) -> float:
        """Return the sparsity after a round, for the one at the end."""
        if self.schedule == "cubic":
            return cubic_sparsity(number / self.rounds, final)
        return final if self.schedule == "one_shot" else sparsity_after_round(final, number, self.rounds)

    def _position(self, number: int) -> float:
        # the cubic curve starts at zero, so that its first point would remove nothing
        done = number / self.length if self.schedule == "cubic" else (number - 1) / max(1, self.length - 1)
        return self.begin + (self.end - self.begin) * done


def check_pruning_options(
    sparsity: float,
    structure: str,
    saliency: str,
    scope: str,
    layers: Mapping[str, float] | None,
    regrowth: float,
    max_layer_sparsity: float,
    measure: bool,
    seed: int,
) -> None:
    """Raise unless the options of pruning fit each other.

    Raises:
        ConfigurationError: one line that names the option.
    """
    check_choice("structure", structure, get_args(Structure))
    check_choice("saliency", saliency, SALIENCIES)
    check_choice("scope", scope, SCOPES)
    check_number("max_layer_sparsity", max_layer_sparsity)
    check_fraction("max_layer_sparsity", max_layer_sparsity, zero=False)
    check_flag("measure", measure)
    if not is_integer(seed):
        raise ConfigurationError(f"seed={seed!r} must be an integer.")
    for option, value in {
        "sparsity": sparsity,
        **{f"layers[{key!r}]": each for key, each in (layers or {}).items()},
    }.items():
        check_number(option, value)
        if not (math.isfinite(value) and 0 <= value < 1):
            raise ConfigurationError(
                f"{option}={value!r} is outside [0, 1); give the share that is removed, such as 0.8, not a percent."
            )
    if regrowth and structure == "channels":
        raise ConfigurationError(
            f"regrowth={regrowth!r} brings single weights back and structure='channels' removes whole channels; leave "
            "regrowth out, or prune unstructured"
        )


def shares_of(layers: Mapping[str, float] | None, aliases: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Return the sparsities that patterns give.

    Args:
        layers: Regular expressions, searched for in the names, and sparsities; the first that fits counts.
        aliases: For each of what can be pruned the names under which it is found.

    Raises:
        ConfigurationError: no regular expression, or one that fits nothing.

    Example:
        >>> shares_of({"^stem": 0.0, "conv": 0.9}, {"stem.conv": ["stem.conv"], "conv2": ["conv2"], "fc": ["fc"]})
        {'stem.conv': 0.0, 'conv2': 0.9}
    """
    names = {unit: list(each) for unit, each in aliases.items()}
    found: dict[str, float] = {}
    for pattern, share in (layers or {}).items():
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ConfigurationError(f"layers: {pattern!r} is no regular expression: {error}.") from error
        matching = [unit for unit, each in names.items() if any(expression.search(name) for name in each)]
        if not matching:
            known = [name for each in names.values() for name in each]
            raise ConfigurationError(
                f"layers: {pattern!r} fits none of the {len(known)} layers that can be pruned, such as {known[:3]}."
                f"{did_you_mean(pattern, known)}"
            )
        found = {**dict.fromkeys(matching, share), **found}
    return {unit: found[unit] for unit in names if unit in found}
