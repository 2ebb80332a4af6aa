"""What the files of torch.export may hold: tensors, and nothing that runs when it is read."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

_TENSORS = ("weight_", "tensor_")


def check_only_tensors(source: Path | BinaryIO) -> list[str]:
    """Raise for a file that ``torch.export.load`` would unpickle: it takes back any object that a file asks for.

    Args:
        source: A ``.pt2`` file, or its content.

    Returns:
        The names of what is in the file.

    Raises:
        ValueError: something in it is pickled that is no tensor, or could be hidden from this look.
        OSError: it cannot be read.
        zipfile.BadZipFile: it is no archive.
    """
    with zipfile.ZipFile(source) as archive:
        names = archive.namelist()
        # torch takes the first of two, whatever the case of their letters, and zipfile the last
        if len({name.lower() for name in names}) < len(names):
            raise ValueError("it has two entries of one name")
        for name in names:
            if name.lower().endswith("_config.json"):
                _check_config(json.loads(archive.read(name)))
            elif name.lower().endswith(".pt"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    return names


def _check_config(config: Any) -> None:
    entries = config.get("config", {}) if isinstance(config, Mapping) else {}
    for entry in entries.values() if isinstance(entries, Mapping) else ():
        if entry.get("use_pickle") or not str(entry.get("path_name")).startswith(_TENSORS):
            raise ValueError("it holds pickled objects")
