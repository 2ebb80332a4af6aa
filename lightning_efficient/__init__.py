"""Callbacks, modules and metrics for models that must cost less to train and to run.

Importing this package loads neither torch nor Lightning: public names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_efficient._lazy import lazy_names
from lightning_efficient._version import __version__

if TYPE_CHECKING:
    from lightning_efficient.callbacks import (
        FPTT,
        ChunkedBackprop,
        Constraint,
        DiSK,
        EnergyMeter,
        ExactResume,
        FiniteLoss,
        GradualPruning,
        GuideSchedule,
        LatencyProfiler,
        QuantizationAware,
        SelectiveCoverage,
    )
    from lightning_efficient.datamodules import (
        AddingProblem,
        CopyMemory,
        Digits,
        GaussianModes,
        HumanActivity,
        ImageFolderImages,
        PennTreebank,
        SequentialImages,
        SpokenCommands,
        TorchvisionImages,
        WikiText,
    )
    from lightning_efficient.modules import (
        CascadeClassifier,
        Distiller,
        EarlyExitClassifier,
        ExpertsClassifier,
        HybridClassifier,
        ImageClassifier,
        LanguageModel,
        SelectiveClassifier,
        SequenceClassifier,
        SequenceRegressor,
    )
    from lightning_efficient.nn import GlobalLayer, IncrementalRNN, SpatialInterpolation, TimeAdaptiveRNN

_HOMES = {
    "ChunkedBackprop": "callbacks",
    "Constraint": "callbacks",
    "DiSK": "callbacks",
    "EnergyMeter": "callbacks",
    "ExactResume": "callbacks",
    "FPTT": "callbacks",
    "FiniteLoss": "callbacks",
    "GradualPruning": "callbacks",
    "GuideSchedule": "callbacks",
    "LatencyProfiler": "callbacks",
    "QuantizationAware": "callbacks",
    "SelectiveCoverage": "callbacks",
    "AddingProblem": "datamodules",
    "CopyMemory": "datamodules",
    "Digits": "datamodules",
    "GaussianModes": "datamodules",
    "HumanActivity": "datamodules",
    "ImageFolderImages": "datamodules",
    "PennTreebank": "datamodules",
    "SequentialImages": "datamodules",
    "SpokenCommands": "datamodules",
    "TorchvisionImages": "datamodules",
    "WikiText": "datamodules",
    "CascadeClassifier": "modules",
    "Distiller": "modules",
    "EarlyExitClassifier": "modules",
    "ExpertsClassifier": "modules",
    "HybridClassifier": "modules",
    "ImageClassifier": "modules",
    "LanguageModel": "modules",
    "SelectiveClassifier": "modules",
    "SequenceClassifier": "modules",
    "SequenceRegressor": "modules",
    "GlobalLayer": "nn",
    "IncrementalRNN": "nn",
    "SpatialInterpolation": "nn",
    "TimeAdaptiveRNN": "nn",
}

__all__ = [
    "FPTT",
    "AddingProblem",
    "CascadeClassifier",
    "ChunkedBackprop",
    "Constraint",
    "CopyMemory",
    "DiSK",
    "Digits",
    "Distiller",
    "EarlyExitClassifier",
    "EnergyMeter",
    "ExactResume",
    "ExpertsClassifier",
    "FiniteLoss",
    "GaussianModes",
    "GlobalLayer",
    "GradualPruning",
    "GuideSchedule",
    "HumanActivity",
    "HybridClassifier",
    "ImageClassifier",
    "ImageFolderImages",
    "IncrementalRNN",
    "LanguageModel",
    "LatencyProfiler",
    "PennTreebank",
    "QuantizationAware",
    "SelectiveClassifier",
    "SelectiveCoverage",
    "SequenceClassifier",
    "SequenceRegressor",
    "SequentialImages",
    "SpatialInterpolation",
    "SpokenCommands",
    "TimeAdaptiveRNN",
    "TorchvisionImages",
    "WikiText",
    "__version__",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, "__version__")
