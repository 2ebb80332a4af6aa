"""Training objectives as objects; the mathematics is in ``functional``."""

from __future__ import annotations

from lightning_efficient.losses._selective_objective import SelectiveObjective
from lightning_efficient.losses.disk import DiSKLoss, DiSKTerms
from lightning_efficient.losses.distillation import (
    CrossEntropyObjective,
    DecoupledDistillation,
    FeatureDistillation,
    KnowledgeDistillation,
    ObjectiveTerms,
)
from lightning_efficient.losses.fptt_regularizer import FPTTRegularizer
from lightning_efficient.losses.gamblers import GamblersLoss
from lightning_efficient.losses.guided import GuidedDistillation, GuidedTerms
from lightning_efficient.losses.objectives import build_objective
from lightning_efficient.losses.one_sided import OneSidedLoss
from lightning_efficient.losses.previous_predictions import PreviousPredictions
from lightning_efficient.losses.selective_cross_entropy import SelectiveCrossEntropy
from lightning_efficient.losses.selective_net import SelectiveNetLoss
from lightning_efficient.losses.selective_objectives import build_selective_objective
from lightning_efficient.losses.self_adaptive import SelfAdaptiveLoss
from lightning_efficient.losses.wrong_predictions import WrongPredictions

__all__ = [
    "CrossEntropyObjective",
    "DecoupledDistillation",
    "DiSKLoss",
    "DiSKTerms",
    "FPTTRegularizer",
    "FeatureDistillation",
    "GamblersLoss",
    "GuidedDistillation",
    "GuidedTerms",
    "KnowledgeDistillation",
    "ObjectiveTerms",
    "OneSidedLoss",
    "PreviousPredictions",
    "SelectiveCrossEntropy",
    "SelectiveNetLoss",
    "SelectiveObjective",
    "SelfAdaptiveLoss",
    "WrongPredictions",
    "build_objective",
    "build_selective_objective",
]
