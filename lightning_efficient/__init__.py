"""Callbacks, modules and metrics for models that must cost less to train and to run.

Importing this package loads neither torch nor Lightning: public names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_efficient._version import __version__

if TYPE_CHECKING:
    from lightning_efficient.callbacks import ExactResume, FiniteLoss, LatencyProfiler, SelectiveCoverage
    from lightning_efficient.datamodules import Digits, ImageFolderImages, TorchvisionImages
    from lightning_efficient.modules import ImageClassifier

_HOMES = {
    "ExactResume": "callbacks",
    "FiniteLoss": "callbacks",
    "LatencyProfiler": "callbacks",
    "SelectiveCoverage": "callbacks",
    "Digits": "datamodules",
    "ImageFolderImages": "datamodules",
    "TorchvisionImages": "datamodules",
    "ImageClassifier": "modules",
}

__all__ = [
    "Digits",
    "ExactResume",
    "FiniteLoss",
    "ImageClassifier",
    "ImageFolderImages",
    "LatencyProfiler",
    "SelectiveCoverage",
    "TorchvisionImages",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
