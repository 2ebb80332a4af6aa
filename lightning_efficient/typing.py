"""Aliases that the layers share; importing it loads torch and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

Batch: TypeAlias = Any
"""Whatever a data loader yields; our own modules take ``(images, labels)``."""

Predictions: TypeAlias = Callable[[Any, Batch, Any], tuple[Tensor, Tensor]]
"""``(module, batch, step_output) -> (logits, target)``, for modules that return something else."""

InputShape: TypeAlias = tuple[int, ...]
"""Shape of one sample without the batch dimension, such as ``(3, 224, 224)``."""


@dataclass(frozen=True)
class Part:
    """Which part of a sequence a training step sees, for a ``training_step`` that takes ``part``.

    Attributes:
        index: Number of the part, from 0.
        count: How many parts the sequence has.
        start: Its first time step.
        stop: The time step after its last one.
        length: Time steps of the whole sequence.
        counts: For sequences of different lengths: in how many parts each of them has steps, int64 ``(N,)``.
    """

    index: int
    count: int
    start: int
    stop: int
    length: int
    counts: Tensor | None = field(default=None, compare=False)


class SequenceBatch(NamedTuple):
    """A batch of labelled sequences; a tuple like any other, with names.

    Attributes:
        inputs: Float features of shape ``(N, T, F)``.
        target: One label per sequence ``(N,)``, or one per time step ``(N, T)``.
        index: Position of each sample in its data set, shape ``(N,)``, int64.
    """

    inputs: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
