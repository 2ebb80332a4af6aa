"""How many inputs of a batch may be sent to the global model, and which."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import is_integer


def check_budget(budget: object) -> None:
    """Raise unless a budget is a number of inputs, a share of the batch, or None."""
    whole = is_integer(budget) and budget >= 0
    if not (budget is None or whole or (isinstance(budget, float) and 0 < budget <= 1)):
        raise ConfigurationError(
            f"budget={budget!r} must be an integer of at least 0, a share of the batch in (0, 1], or None."
        )


def most_sent(budget: int | float | None, inputs: int) -> int:
    """Return how many of a batch may be sent; a share is rounded down, but a batch of one can always be sent.

    Example:
        >>> most_sent(None, 8), most_sent(3, 8), most_sent(0.3, 8), most_sent(0.3, 1)
        (8, 3, 2, 1)
    """
    if budget is None:
        return inputs
    return int(budget) if is_integer(budget) else max(1, math.floor(budget * inputs + 1e-9))


def most_urgent(rows: Tensor, urgency: Tensor, limit: int) -> Tensor:
    """Return the rows of the largest urgency, upward; among equal ones the first.

    Args:
        rows: Int64 ``(m,)``.
        urgency: Of each of them, ``(m,)``.
        limit: How many.

    Example:
        >>> most_urgent(torch.tensor([0, 3, 5]), torch.tensor([0.5, 0.5, 0.9]), 2)
        tensor([0, 5])
    """
    return rows[urgency.argsort(descending=True, stable=True)[:limit]].sort().values


def drawn(rows: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Return a random subset of at most ``limit`` rows, upward, so that each place is as likely as the others.

    Example:
        >>> drawn(torch.tensor([2, 4, 7]), 3, torch.Generator())
        tensor([2, 4, 7])
    """
    if len(rows) <= limit:
        return rows
    chosen = torch.randperm(len(rows), generator=generator)[:limit].sort().values
    return rows[chosen.to(rows.device)]
