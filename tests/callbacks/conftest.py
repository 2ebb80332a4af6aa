"""Make the modules beside the tests importable, which pytest's importlib mode does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ``GradualPruning`` says; logging itself depends on what other tests of the process did to it."""
    lines: list[str] = []
    monkeypatch.setattr("lightning_efficient.callbacks.gradual_pruning.rank_zero_info", lines.append)
    return lines
