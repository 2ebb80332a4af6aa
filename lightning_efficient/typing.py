"""Aliases that the layers share; importing it loads torch and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

Batch: TypeAlias = Any
"""Whatever a data loader yields; our own modules take ``(images, labels)``."""

Predictions: TypeAlias = Callable[[Any, Batch, Any], tuple[Tensor, Tensor]]
"""``(module, batch, step_output) -> (logits, target)``, for modules that return something else."""

InputShape: TypeAlias = tuple[int, ...]
"""Shape of one sample without the batch dimension, such as ``(3, 224, 224)``."""
