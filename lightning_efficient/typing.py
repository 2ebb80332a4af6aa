"""Protocols and aliases that the layers share; importing it loads torch and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

Batch: TypeAlias = Any
"""Whatever a data loader yields; our own modules take ``(images, labels)``."""

StepOutput: TypeAlias = Mapping[str, Tensor]
"""What our steps return: ``{"loss", "logits", "target"}`` and method-specific keys."""

Predictions: TypeAlias = Callable[[Any, Batch, Any], tuple[Tensor, Tensor]]
"""``(module, batch, step_output) -> (logits, target)``, for modules that return something else."""

InputShape: TypeAlias = tuple[int, ...]
"""Shape of one sample without the batch dimension, such as ``(3, 224, 224)``."""


@runtime_checkable
class SupportsDataConfig(Protocol):
    """A module that knows how its inputs want to be prepared, in the words of ``timm.data.resolve_data_config``."""

    data_config: dict[str, Any]
