"""Options of an optimiser for some of its parameters, checked as its own are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from lightning_efficient.errors import ConfigurationError, did_you_mean


def check_group_options(optimizer: Optimizer, options: Mapping[str, Any], name: str) -> None:
    """Raise for what an optimiser takes for a group without a look: torch checks the values of its defaults only.

    Args:
        optimizer: Has the group already.
        options: What was given for the group, such as ``{"lr": 0.02}``.
        name: The option that gave them; begins every error.

    Raises:
        ConfigurationError: the optimiser has no such option, or a number is none or negative.
    """
    for option, value in options.items():
        if option not in optimizer.defaults:
            raise ConfigurationError(
                f"{name}: {type(optimizer).__name__} has no option {option!r}; it has "
                f"{', '.join(optimizer.defaults)}.{did_you_mean(option, optimizer.defaults)}"
            )
        default = optimizer.defaults[option]
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        if is_number and not (isinstance(value, int | float) and value >= 0):
            raise ConfigurationError(f"{name}.{option} is {value!r}; it must be a number, 0 or more")
