"""Checks that objectives share: the names of their options, and two ranges of numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

from lightning_efficient.errors import ConfigurationError, did_you_mean


def check_option_names(
    objective: str, options: Iterable[str], build: Callable[..., Any], given: Collection[str]
) -> None:
    """Raise for an option that an objective does not have.

    Args:
        objective: Its name, for the message.
        options: Names of the options.
        build: What is called with them.
        given: Parameters of ``build`` that are no options, as they follow from the networks.

    Raises:
        ConfigurationError: an unknown option; it says which there are.
    """
    allowed = [name for name in inspect.signature(build).parameters if name not in given]
    for name in options:
        if name not in allowed:
            raise ConfigurationError(
                f"model.objective_kwargs: {objective!r} has no option {name!r}; it has {', '.join(allowed)}."
                f"{did_you_mean(name, allowed)}"
            )


def check_weight(option: str, given: float) -> None:
    """Raise ``ConfigurationError`` unless a weight is a finite number, 0 or more."""
    if not 0 <= given < float("inf"):
        raise ConfigurationError(f"{option}={given!r} must be a finite number, 0 or more.")


def check_below_one(option: str, given: float) -> None:
    """Raise ``ConfigurationError`` unless a share lies in ``[0, 1)``."""
    if not 0 <= given < 1:
        raise ConfigurationError(f"{option}={given!r} is outside [0, 1).")
