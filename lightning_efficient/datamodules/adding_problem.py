"""The adding problem: remember two marked numbers of a long sequence."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lightning_efficient.datamodules._generated import Generate, GeneratedDataModule


@dataclass(kw_only=True, eq=False, repr=False)
class AddingProblem(GeneratedDataModule):
    """Sum the two marked numbers of a random sequence; batches are ``(inputs, target)``.

    Inputs have shape ``(N, T, 2)``, float32: numbers from U(0, 1), and marks that are 1 at one step of the first and
    at one step of the second half (the middle of an odd length is never marked) and 0 elsewhere. The target, shape
    ``(N,)``, float32, is the sum of the two marked numbers.

    Args:
        length: Time steps T.

    Example:
        >>> data = AddingProblem(length=50, batch_size=4)
        >>> data.setup("fit")
        >>> inputs, target = next(iter(data.train_dataloader()))
        >>> inputs.shape, torch.allclose((inputs[..., 0] * inputs[..., 1]).sum(1), target)
        (torch.Size([4, 50, 2]), True)

    Reference:
        Hochreiter, Schmidhuber. Long Short-Term Memory. Neural Computation, 1997.
    """

    length: int = field(default=200, kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(2, "length")

    @property
    def input_shape(self) -> tuple[int, int]:
        """``(T, 2)``."""
        return self.length, 2

    @property
    def baseline_loss(self) -> float:
        """Mean squared error of a model that always answers 1: the variance of the sum, 1/6."""
        return 1 / 6

    def recipe(self) -> tuple[int, Generate]:
        """T numbers and two places."""
        return self.length + 2, partial(marked_sums, length=self.length)


def marked_sums(draws: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Mark two of the numbers in each row and add them.

    Args:
        draws: The numbers and two places in [0, 1), shape ``(N, length + 2)``, float32.
        length: Time steps.

    Returns:
        Inputs ``(N, length, 2)`` and sums ``(N,)``.
    """
    values, places = draws[:, :length], draws[:, length:]
    half = length // 2
    # In float32 the product may round up to `half`.
    marked = (places * half).long().clamp_(max=half - 1) + torch.tensor([0, length - half])
    inputs = torch.stack((values, torch.zeros_like(values).scatter_(1, marked, 1.0)), dim=-1)
    return inputs, values.gather(1, marked).sum(1)
