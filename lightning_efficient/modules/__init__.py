"""LightningModules: what ``--model`` names."""

from lightning_efficient.modules.distiller import Distiller
from lightning_efficient.modules.image_classifier import ImageClassifier
from lightning_efficient.modules.language_model import LanguageModel
from lightning_efficient.modules.selective_classifier import SelectiveClassifier
from lightning_efficient.modules.sequence_classifier import SequenceClassifier
from lightning_efficient.modules.sequence_regressor import SequenceRegressor

__all__ = [
    "Distiller",
    "ImageClassifier",
    "LanguageModel",
    "SelectiveClassifier",
    "SequenceClassifier",
    "SequenceRegressor",
]
