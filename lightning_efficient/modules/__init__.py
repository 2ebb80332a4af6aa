"""LightningModules: what ``--model`` names."""

from lightning_efficient.modules.image_classifier import ImageClassifier

__all__ = ["ImageClassifier"]
