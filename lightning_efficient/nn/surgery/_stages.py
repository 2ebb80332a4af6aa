"""Stages of a network, as timm counts them in names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import is_integer

_STAGE = re.compile(r"(?:^|\.)(?:(?:blocks|stages)\.|layer|features\.denseblock|features_denseblock)(\d+)\.")


def stage_of(name: str) -> int | None:
    """Return the number of the stage inside which a module lies, by its dotted name; None outside of any.

    Example:
        >>> stage_of("blocks.2.0.conv_pw"), stage_of("layer1.0"), stage_of("conv_stem")
        (2, 1, None)
    """
    found = _STAGE.search(name)
    return None if found is None else int(found[1])


def stage_numbers(given: Any) -> list[int] | None:
    """Return numbers of stages as a list; one number is a list of one, and None stays None.

    Raises:
        ConfigurationError: anything else than integers.
    """
    if given is None:
        return None
    if is_integer(given):
        return [given]
    numbers: list[Any] = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [None]
    if not all(map(is_integer, numbers)):
        raise ConfigurationError(f"stages={given!r} must be the number of a stage, or a list of such numbers.")
    return numbers
