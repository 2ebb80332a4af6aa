"""The few exception classes, and the words that close them. Imports nothing heavy."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class ConfigurationError(ValueError):
    """An option has a value that cannot work. The command line prints it as one line and exits with 2."""


class DataNotFoundError(ConfigurationError, FileNotFoundError):
    """A data set is not where the options say; the message names the command that fetches it."""


class MissingExtraError(ImportError):
    """An optional package is needed and not installed; the message names the extra that brings it."""


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite; the message names the step and the batch."""


def did_you_mean(given: str, allowed: Iterable[str], most: int = 2) -> str:
    """Return ``" Did you mean 'a' or 'b'?"`` for the closest of ``allowed``, or an empty string.

    Example:
        >>> did_you_mean("mobilnet", ["mobilenet", "resnet"])
        " Did you mean 'mobilenet'?"
        >>> did_you_mean("zzz", ["mobilenet"])
        ''
    """
    names = sorted(set(allowed))
    # an abbreviation is no close match by distance
    close = [name for name in names if len(given) > 2 and name.startswith(given)][:most]
    close = close or difflib.get_close_matches(given, names, n=most, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or raise an error that names the extra which installs it.

    Args:
        module: Import path, such as ``"onnxruntime"``.
        extra: Name of the extra in ``pyproject.toml`` that brings it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        message = f"'{module}' is not installed; install it with: pip install 'lightning-efficient[{extra}]'"
        raise MissingExtraError(message) from error
