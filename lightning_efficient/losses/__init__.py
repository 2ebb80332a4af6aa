"""Training objectives as objects; the mathematics is in ``functional``."""

from __future__ import annotations

from lightning_efficient.losses.disk import DiSKLoss, DiSKTerms
from lightning_efficient.losses.distillation import (
    CrossEntropyObjective,
    DecoupledDistillation,
    FeatureDistillation,
    KnowledgeDistillation,
    ObjectiveTerms,
)
from lightning_efficient.losses.fptt_regularizer import FPTTRegularizer
from lightning_efficient.losses.guided import GuidedDistillation, GuidedTerms
from lightning_efficient.losses.objectives import build_objective
from lightning_efficient.losses.previous_predictions import PreviousPredictions
from lightning_efficient.losses.wrong_predictions import WrongPredictions

__all__ = [
    "CrossEntropyObjective",
    "DecoupledDistillation",
    "DiSKLoss",
    "DiSKTerms",
    "FPTTRegularizer",
    "FeatureDistillation",
    "GuidedDistillation",
    "GuidedTerms",
    "KnowledgeDistillation",
    "ObjectiveTerms",
    "PreviousPredictions",
    "WrongPredictions",
    "build_objective",
]
