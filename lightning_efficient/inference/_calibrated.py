"""What calibrated thresholds of every kind share: words, checks, and how their files are written and read."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

from lightning_efficient._files import replacing
from lightning_efficient._version import __version__
from lightning_efficient.errors import ConfigurationError

LARGEST = sys.float_info.max


def percent(share: float, rounding: str) -> str:
    """Return six digits of a share, rounded to the side on which the promise still holds."""
    # from the shortest decimal, as 100 * 0.57 is a little below 57
    digits = Context(prec=6, rounding=rounding).plus(100 * Decimal(repr(float(share))))
    return f"{digits.normalize():f} %"


def is_number(value: object, low: float, high: float) -> bool:
    """Tell whether a value is a number within limits, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_share(value: object) -> bool:
    """Tell whether a value is a number in ``[0, 1]``."""
    return is_number(value, 0, 1)


def is_name(value: object) -> bool:
    """Tell whether a value is a word or None."""
    return value is None or (isinstance(value, str) and value != "")


def is_hash(value: object) -> bool:
    """Tell whether a value is a SHA-256 in hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def short(value: object) -> str:
    """Return a value for a message, on one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= 60 else f"{text[:59]}…"


COMMON_ENTRIES: Mapping[str, Callable[[Any], bool]] = {
    "confidence": lambda value: value is None or (is_share(value) and 0 < value < 1),
    "samples": lambda value: is_number(value, 1, LARGEST) and isinstance(value, int),
    "coverage": is_share,
    "promise": lambda value: isinstance(value, str) and value != "",
}
"""What thresholds of every kind have, and what it must be."""


def check_calibrated(
    values: object, what: str, version: int, entries: Mapping[str, Callable[[Any], bool]]
) -> Mapping[str, Any]:
    """Return what ``to_dict`` of calibrated thresholds gave, without its version.

    Raises:
        ConfigurationError: another version, a name that is missing or unknown, or a value that cannot be.
    """
    if not isinstance(values, Mapping):
        raise damaged_values(what, f"it holds a {type(values).__name__}, not a mapping")
    if values.get("version") != version:
        raise damaged_values(what, f"its version is {short(values.get('version'))}, and this release reads {version}")
    names = {"version", *entries}
    if different := sorted(names ^ set(values), key=str):
        raise damaged_values(what, f"{different[0]!r} is {'missing' if different[0] in names else 'unknown'}")
    for name, allowed in entries.items():
        if not allowed(values[name]):
            raise damaged_values(what, f"{name} is {short(values[name])}")
    return {name: values[name] for name in entries}


def damaged_values(what: str, reason: str) -> ConfigurationError:
    """Return the error of values that are no calibrated ``what``."""
    return ConfigurationError(f"This is not a calibrated {what}: {reason}; calibrate again.")


def place_of(ckpt_path: str | Path, ending: str) -> Path:
    """Return where a file of a checkpoint lies, beside it or beside the file that a link leads to."""
    places = [beside(path, ending) for path in (Path(ckpt_path), Path(ckpt_path).resolve())]
    return next((place for place in places if place.is_file()), places[0])


def beside(ckpt_path: str | Path, ending: str) -> Path:
    """Return the place of a file beside its checkpoint, under the checkpoint's name."""
    path = Path(ckpt_path)
    return path.with_name(f"{path.stem}{ending}")


def write_whole(path: str | Path, content: Mapping[str, Any], kind: str) -> None:
    """Write strict JSON whole or not at all: to a file beside it first, which then takes its name.

    Raises:
        ConfigurationError: it cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as partial:
            partial.write_text(f"{json.dumps(content, indent=2, allow_nan=False)}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"the {kind} file {path} cannot be written ({error.strerror})") from error


def read_mapping(path: Path, kind: str, schema: int) -> Mapping[str, Any]:
    """Read a mapping that :func:`write_whole` has written.

    Raises:
        ConfigurationError: no such file, a damaged one, or one of a newer version of this package.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"the {kind} file {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise damaged_file(path, kind, "it is no JSON") from error
    if not isinstance(content, Mapping):
        raise damaged_file(path, kind, "it holds no mapping")
    given = content.get("schema")
    if isinstance(given, int) and given > schema:
        raise ConfigurationError(
            f"the {kind} file {path} is of version {content.get('version')} of lightning-efficient, and this is "
            f"{__version__}; calibrate again, or install that version"
        )
    return content


def check_entries(path: Path, kind: str, content: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Raise unless a mapping has every entry, each of the kind that its check allows.

    Raises:
        ConfigurationError: an entry is missing or cannot be.
    """
    for name, fits in entries.items():
        if name not in content:
            raise damaged_file(path, kind, f"it has no {name!r}")
        if not fits(content[name]):
            raise damaged_file(path, kind, f"{name!r} is {short(content[name])}")


def damaged_file(path: Path, kind: str, reason: str) -> ConfigurationError:
    """Return the error of a file that cannot be what it should be."""
    return ConfigurationError(f"the {kind} file {path} is damaged: {reason}; calibrate again, or remove it")
