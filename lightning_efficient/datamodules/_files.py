"""Find and read data files, plain or compressed by xz, and say in one line what is wrong with them."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_efficient.errors import ConfigurationError

_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What readers raise on files that are cut short or are something else."""


def damaged(path: Path, error: BaseException | str) -> ConfigurationError:
    """Return the error for a file that is there and cannot be used."""
    return ConfigurationError(f"'{path}' is incomplete or damaged ({one_line(error)}); replace it by the original")


def one_line(error: BaseException | str) -> str:
    """Return what a reader says of a file on one line, or its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def plain_or_xz(path: Path) -> Path | None:
    """Return ``path``, or ``path`` with ``.xz`` after its name, or ``None`` where neither is a file."""
    compressed = path.with_name(f"{path.name}.xz")
    return next((each for each in (path, compressed) if each.is_file()), None)


def read_bytes(path: Path) -> bytes:
    """Read a file, unpacking it in memory where its name ends in ``.xz``.

    Raises:
        ConfigurationError: it cannot be unpacked.
    """
    try:
        content = path.read_bytes()
        return lzma.decompress(content) if path.suffix == ".xz" else content
    except _UNREADABLE as error:
        raise damaged(path, error) from error


def find_npz(root: Path) -> Path | None:
    """Return ``root`` if it is a file, the only ``.npz`` or ``.npz.xz`` in it if it is a folder, or ``None``.

    Raises:
        ConfigurationError: the folder has several.
    """
    if root.is_file():
        return root
    found = sorted(each for each in root.glob("*.npz*") if each.name.endswith((".npz", ".npz.xz")))
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise ConfigurationError(f"'{root}' has several archives ({names}); point --data.root at one of the files")
    return found[0] if found else None


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read arrays of an ``.npz`` or ``.npz.xz`` file; nothing in it is executed.

    Raises:
        ConfigurationError: it is damaged, or an array is missing.
    """
    content = read_bytes(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except _UNREADABLE as error:
        raise damaged(path, error) from error
