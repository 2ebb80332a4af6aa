"""Averages over the values that count, on any number of processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

# torchmetrics' MeanMetric either waits for the device at every update, to look for NaN, or forgets the weights


class CountedAverage(Metric):
    """Mean of all values that count, over all batches and processes; NaN if there was none.

    Example:
        >>> mean = CountedAverage()
        >>> mean.update(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False]))
        >>> mean.compute()
        tensor(2.)
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor, counted: Tensor | None = None) -> None:
        """Add values of any shape, and which of them count; ``None`` counts all."""
        # not in place: after Trainer.validate the states are inference tensors
        if counted is None:
            self.total = self.total + values.sum()
            self.count = self.count + values.numel()
        else:
            self.total = self.total + torch.where(counted, values, 0.0).sum()
            self.count = self.count + counted.sum()

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        return self.total / self.count


class Perplexity(CountedAverage):
    """Exponential of the mean negative log-likelihood in nats."""

    def compute(self) -> Tensor:
        """Return the perplexity, a scalar."""
        return super().compute().exp()


class BitsPerCharacter(CountedAverage):
    """Mean negative log-likelihood, given in nats, in bits."""

    def compute(self) -> Tensor:
        """Return bits, a scalar."""
        return super().compute() / math.log(2)
