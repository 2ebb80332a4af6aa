"""Checks of the types of options, which come from YAML too; each raises one sentence that says what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

from lightning_efficient.errors import ConfigurationError


def check_flag(option: str, given: object, *, none: bool = False) -> None:
    """Raise unless ``given`` is True or False, or None where ``none``: the text "no" counts as true in Python."""
    if not isinstance(given, bool) and not (none and given is None):
        raise ConfigurationError(f"{option}={given!r} must be {'True, False or None' if none else 'True or False'}.")


def check_count(option: str, given: object) -> None:
    """Raise unless ``given`` is an integer of at least 1."""
    if not is_integer(given) or given < 1:
        raise ConfigurationError(f"{option}={given!r} must be an integer of at least 1.")


def check_number(option: str, given: object) -> None:
    """Raise unless ``given`` is an integer or a float."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ConfigurationError(f"{option}={given!r} must be a number.")


def is_integer(given: object) -> TypeGuard[int]:
    """Tell whether ``given`` is an integer, which True and False are not here."""
    return isinstance(given, int) and not isinstance(given, bool)


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
