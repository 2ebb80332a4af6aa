"""The command line: a light dispatcher, LightningCLI with better manners, and the verbs around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_efficient.cli.efficient_cli import EfficientCLI

__all__ = ["EfficientCLI"]


def __getattr__(name: str) -> Any:
    # the dispatcher lives here too, and answers without torch
    if name != "EfficientCLI":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_efficient.cli.efficient_cli import EfficientCLI

    return EfficientCLI
