"""A check that objectives by name share."""

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
