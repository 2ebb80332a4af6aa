"""Which sets of fixtures there are, and whether the installed packages can load an entry."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import runs
import torch

SETS = sorted(path for path in runs.FIXTURES.glob("v*") if (path / "configs").is_dir())


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def needs(package: str) -> None:
    """Skip where an extra is not installed."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def by_newer_torch(folder: Path) -> bool:
    """Tell whether an entry of a set was written with a newer torch than the one that is installed."""
    return _numbers(read(folder / "expected.json")["written_with"]["torch"]) > _numbers(torch.__version__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.partition("+")[0].split(".")[:2])
