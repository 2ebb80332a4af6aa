"""Checks of options that several functions share; each raises one sentence that says what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

from lightning_efficient.errors import ConfigurationError, did_you_mean


def check_choice(option: str, given: str, allowed: Iterable[str]) -> None:
    """Raise unless ``given`` is one of ``allowed``."""
    names = list(allowed)
    if given not in names:
        raise ConfigurationError(f"{option}={given!r} is not one of {names}.{did_you_mean(str(given), names)}")


def check_positive(option: str, given: float) -> None:
    """Raise unless ``given`` is a finite number above zero."""
    if not hasattr(given, "__float__") or not 0 < given < float("inf"):
        raise ConfigurationError(f"{option}={given!r} must be a finite number above 0.")


def check_fraction(option: str, given: float, *, zero: bool) -> None:
    """Raise unless ``given`` lies in ``[0, 1]``, or in ``(0, 1]`` where ``zero`` is false."""
    if not (hasattr(given, "__float__") and 0 <= given <= 1 and (zero or given > 0)):
        interval = "[0, 1]" if zero else "(0, 1]"
        raise ConfigurationError(
            f"{option}={given!r} is outside {interval}; give a fraction such as 0.05, not a percent."
        )


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
