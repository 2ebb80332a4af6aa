"""LightningModules: what ``--model`` names."""

from lightning_efficient.modules.cascade_classifier import CascadeClassifier
from lightning_efficient.modules.distiller import Distiller
from lightning_efficient.modules.early_exit_classifier import EarlyExitClassifier
from lightning_efficient.modules.experts_classifier import ExpertsClassifier
from lightning_efficient.modules.hybrid_classifier import HybridClassifier
from lightning_efficient.modules.image_classifier import ImageClassifier
from lightning_efficient.modules.language_model import LanguageModel
from lightning_efficient.modules.selective_classifier import SelectiveClassifier
from lightning_efficient.modules.sequence_classifier import SequenceClassifier
from lightning_efficient.modules.sequence_regressor import SequenceRegressor

__all__ = [
    "CascadeClassifier",
    "Distiller",
    "EarlyExitClassifier",
    "ExpertsClassifier",
    "HybridClassifier",
    "ImageClassifier",
    "LanguageModel",
    "SelectiveClassifier",
    "SequenceClassifier",
    "SequenceRegressor",
]
