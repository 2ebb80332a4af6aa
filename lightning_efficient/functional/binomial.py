"""How large an error rate may be after some errors were counted: the exact binomial limit."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError


def clopper_pearson_upper(errors: Tensor | int, samples: Tensor | int, delta: float) -> Tensor:
    """Upper confidence limit of an error rate, from the errors among independent samples.

    If each of ``samples`` is wrong with probability ``p``, the limit lies below ``p`` with probability at most
    ``delta``. It is the rate at which as few errors as these would have exactly the probability ``delta``.

    Args:
        errors: How many are wrong, whole numbers, any shape that broadcasts with ``samples``.
        samples: Out of how many, whole numbers.
        delta: In ``(0, 1)``.

    Returns:
        Limits in ``(0, 1]``, float64, the broadcast shape, on the device of the tensors given. 1 where all samples are
        wrong or there are none.

    Raises:
        ConfigurationError: ``delta`` outside ``(0, 1)``, counts that are no whole numbers, or more errors than samples.

    Example:
        >>> clopper_pearson_upper(torch.tensor([0, 1, 10]), 10, delta=0.05)
        tensor([0.2589, 0.3942, 1.0000], dtype=torch.float64)

    Reference:
        Clopper, Pearson. The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial.
        Biometrika 1934.
    """
    from scipy.special import betaincinv

    check_delta(delta)
    wrong, total = torch.broadcast_tensors(
        torch.as_tensor(errors, dtype=torch.float64), torch.as_tensor(samples, dtype=torch.float64)
    )
    whole = (wrong == wrong.round()) & (total == total.round())
    if not (whole & (wrong >= 0) & (wrong <= total)).all():
        raise ConfigurationError("errors and samples must be whole numbers with 0 <= errors <= samples.")
    right = (total - wrong).cpu().numpy()
    # the mirror image of the usual quantile at 1 - delta, which would round a small delta
    limit = 1 - torch.as_tensor(betaincinv(right.clip(1), wrong.cpu().numpy() + 1, delta), dtype=torch.float64)
    return limit.to(wrong.device).where(wrong < total, 1.0)


def largest_allowed_errors(samples: int, risk: float, delta: float) -> int | None:
    """Most errors among ``samples`` whose upper limit does not exceed a target.

    Args:
        samples: How many samples there are.
        risk: Target of the error rate, in ``[0, 1]``.
        delta: Probability with which the limit may be too low, in ``(0, 1)``.

    Returns:
        The count, or ``None`` where the limit exceeds the target even without an error.

    Example:
        >>> largest_allowed_errors(1000, risk=0.01, delta=0.1), largest_allowed_errors(100, risk=0.01, delta=0.1)
        (5, None)
    """
    low, high = -1, samples
    while low < high:
        middle = (low + high + 1) // 2
        if clopper_pearson_upper(middle, samples, delta) <= risk:
            low = middle
        else:
            high = middle - 1
    return None if low < 0 else low


def check_delta(delta: float) -> None:
    """Raise unless ``delta`` is a probability strictly between 0 and 1."""
    if not 0 < delta < 1:
        raise ConfigurationError(f"delta={delta!r} is outside (0, 1); give 0.05 for a confidence of 95 %.")
