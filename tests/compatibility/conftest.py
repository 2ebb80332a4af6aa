"""Make the modules beside the tests importable, which pytest's importlib mode does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns where a process has arguments of its own, as pytest has."""
    monkeypatch.setattr(sys, "argv", ["lightning-efficient"])
