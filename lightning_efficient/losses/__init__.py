"""Losses with a memory of their own; the mathematics is in ``functional``."""

from __future__ import annotations

from lightning_efficient.losses.fptt_regularizer import FPTTRegularizer
from lightning_efficient.losses.previous_predictions import PreviousPredictions
from lightning_efficient.losses.wrong_predictions import WrongPredictions

__all__ = ["FPTTRegularizer", "PreviousPredictions", "WrongPredictions"]
