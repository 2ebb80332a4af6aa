"""How an export comes into its folder: whole or not at all, and over nothing that is not an export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.exported import METADATA, read_metadata

_PARTIAL = ".export-{}.partial"
"""Name of an unfinished export, which a killed process may leave behind."""


def refuse_taken(folder: Path, overwrite: bool) -> None:
    """Raise where a folder holds anything but an earlier export, unless ``overwrite``.

    Raises:
        ConfigurationError: it does, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"folder={str(folder)!r} is a file; give a folder")
    if overwrite or not folder.is_dir():
        return
    held = {path.name for path in folder.iterdir() if not fnmatch(path.name, _PARTIAL.format("*"))}
    if other := sorted(held - _ours(folder)):
        raise ConfigurationError(
            f"folder={str(folder)!r} holds {other[0]!r}, which is no part of an earlier export; give another folder, "
            "or set overwrite"
        )


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Lend an empty folder on the same file system, which is removed afterwards.

    Raises:
        ConfigurationError: it cannot be made.
    """
    # inside a folder that is there, which may be the root of a file system
    parent = folder if folder.is_dir() else folder.parent
    partial = parent / _PARTIAL.format(uuid4().hex)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigurationError(f"folder={str(folder)!r} cannot be written ({error.strerror})") from error
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def install(partial: Path, folder: Path) -> None:
    """Give a finished export its place.

    A new folder appears whole. In one that is there, ``metadata.json`` goes first and comes last: in between it is no
    export. Files of an earlier one are removed, and others stay.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        if not folder.exists():
            partial.rename(folder)
            return
        for name in sorted(_ours(folder), key=lambda name: name != METADATA):
            (folder / name).unlink()
        for path in sorted(partial.iterdir(), key=lambda path: path.name == METADATA):
            path.replace(folder / path.name)
    except OSError as error:
        raise ConfigurationError(f"folder={str(folder)!r} cannot be written ({error.strerror})") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        path.write_text(f"{json.dumps(content, indent=2, allow_nan=False)}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror})") from error


def _ours(folder: Path) -> set[str]:
    """Return the names of the files in a folder that are an export."""
    try:
        parts = read_metadata(folder)["parts"].values()
    except ConfigurationError:
        return set()
    named = {file["name"] for part in parts for files in part["formats"].values() for file in files} | {METADATA}
    return {name for name in named if (folder / name).is_file()}
