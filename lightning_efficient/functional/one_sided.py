"""One-sided prediction: the costs of each class's own set, and the Lagrangian that trades them."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.distillation import check_class_indices

CostConstants: TypeAlias = Literal["exact", "released"]

_RELEASED_COUNT = 0.1
_RELEASED_PROBABILITY = 1e-8


class OneSidedCosts(NamedTuple):
    """What each class's set gets wrong on a batch, nats, each of shape ``(K,)``, 0 or more."""

    miss: Tensor
    """Mean of ``-log p_k`` over the samples of class ``k``."""
    false_positive: Tensor
    """Mean of ``-log(1 - p_k)`` over the samples of all other classes."""


def one_sided_costs(logits: Tensor, target: Tensor, constants: CostConstants = "exact") -> OneSidedCosts:
    """Cost of missing each class, and of claiming samples that are not of the class.

    ``p`` is the softmax of the logits. A class without samples in the batch misses nothing, and where all samples are
    of one class it has no false positives: these costs are 0. Needs O(N K) time and memory.

    Args:
        logits: Class scores, shape ``(N, K)`` with ``K >= 2``, any float dtype (computed in float32; float64 stays).
        target: Classes, integers of shape ``(N,)``.
        constants: ``exact``, finite also where a probability is 1 within rounding; or ``released``, which adds 0.1 to
            every number of samples and 1e-8 to every probability, as the authors' code does.

    Returns:
        ``miss`` (L in the paper's poster) and ``false_positive`` (C), differentiable in the logits.

    Raises:
        ConfigurationError: a shape that does not fit, soft targets, or other ``constants``.

    Example:
        >>> costs = one_sided_costs(torch.tensor([[0.0, 0.0], [0.0, 100.0]]), torch.tensor([0, 0]))
        >>> costs.miss, costs.false_positive
        (tensor([50.3466,  0.0000]), tensor([ 0.0000, 50.3466]))

    Reference:
        Gangrade, Kag, Saligrama. Selective Classification via One-Sided Prediction. AISTATS 2021, poster and released
        code.
    """
    check_choice("constants", constants, get_args(CostConstants))
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ConfigurationError(
            f"logits have shape {tuple(logits.shape)}; one-sided prediction needs (N, K) with K >= 2 classes."
        )
    check_class_indices(logits, target)
    logits = at_least_float32(logits)
    of_class = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, target.long().unsqueeze(1), True)
    inside = of_class.sum(0).to(logits.dtype)
    outside = len(target) - inside
    if constants == "released":
        probs = logits.softmax(1)
        log_probs, log_others = (probs + _RELEASED_PROBABILITY).log(), (1 - probs + _RELEASED_PROBABILITY).log()
        inside, outside = inside + _RELEASED_COUNT, outside + _RELEASED_COUNT
    else:
        log_probs = logits.log_softmax(1)
        log_others = _log_of_the_others(log_probs)
        inside, outside = inside.clamp(min=1), outside.clamp(min=1)
    # where() and not a product: 0 times an infinite cost would be NaN
    zero = logits.new_zeros(())
    miss = torch.where(of_class, -log_probs, zero).sum(0) / inside
    false_positive = torch.where(of_class, zero, -log_others).sum(0) / outside
    return OneSidedCosts(miss, false_positive)


def one_sided_lagrangian(costs: OneSidedCosts, multipliers: Tensor, allowances: Tensor, price: float) -> Tensor:
    """Lagrangian of one-sided prediction, to be minimised over network and allowances, maximised over multipliers.

    ``Σ_k L_k + λ_k (C_k - φ_k) + μ φ_k``: each class may have false positives up to its allowance ``φ_k``, and the
    allowances are paid for at one price ``μ``. At a saddle inside the bounds ``λ_k = μ`` and ``C_k = φ_k``.

    Args:
        costs: Of a batch, from :func:`one_sided_costs`.
        multipliers: ``λ``, shape ``(K,)``, 0 or more; keep them there by
            :func:`~lightning_efficient.functional.primal_dual.project_`, as a value below 0 counts as 0, without
            gradient.
        allowances: ``φ``, shape ``(K,)``, nats, likewise.
        price: ``μ``, price of a false positive in units of a miss.

    Returns:
        Scalar in nats, differentiable in costs, multipliers and allowances.

    Example:
        >>> costs = OneSidedCosts(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]))
        >>> one_sided_lagrangian(costs, torch.tensor([2.0, 1.0]), torch.tensor([0.25, 0.25]), price=1.0)
        tensor(3.7500)

    Reference:
        Gangrade, Kag, Saligrama. Selective Classification via One-Sided Prediction. AISTATS 2021.
    """
    multipliers, allowances = (at_least_float32(values) for values in (multipliers, allowances))
    # relu() and clamp() have no gradient at 0, and a multiplier that was projected to 0 must be able to rise again
    multipliers, allowances = (torch.where(values < 0, 0.0, values) for values in (multipliers, allowances))
    return (costs.miss + multipliers * (costs.false_positive - allowances) + price * allowances).sum()


def one_sided_released(costs: OneSidedCosts, multipliers: Tensor, allowances: Tensor, price: float) -> Tensor:
    """The objective of the authors' PyTorch release, ``Σ_k L_k + C_k - λ_k⁺ φ_k⁺ + μ φ_k⁺``, for parity only.

    The multipliers do not multiply the costs, so that the network's gradient depends neither on them nor on the price:
    training with another price trains the same network. ``x⁺`` is ``max(x, 0)``; a multiplier below 0 gets no gradient
    and stays there. Use :func:`one_sided_lagrangian` to train.

    Args:
        costs: Of a batch, from :func:`one_sided_costs` with ``constants="released"``.
        multipliers: ``λ``, shape ``(K,)``.
        allowances: ``φ``, shape ``(K,)``, nats.
        price: ``μ``.

    Returns:
        Scalar in nats.

    Example:
        >>> costs = OneSidedCosts(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]))
        >>> one_sided_released(costs, torch.tensor([2.0, -1.0]), torch.tensor([0.25, 0.25]), price=1.0)
        tensor(3.5000)

    Reference:
        Released code of: Gangrade, Kag, Saligrama. Selective Classification via One-Sided Prediction. AISTATS 2021.
    """
    multipliers, allowances = at_least_float32(multipliers).relu(), at_least_float32(allowances).relu()
    return (costs.miss + costs.false_positive - multipliers * allowances + price * allowances).sum()


def _log_of_the_others(log_probs: Tensor) -> Tensor:
    """``log(1 - p)`` from ``log p``, rows that sum to 1, without cancellation.

    Only the largest probability of a row can exceed 1/2: for it the others are summed, elsewhere ``1 - p`` is exact.
    """
    likeliest = log_probs.argmax(1, keepdim=True)
    # masked before log1p too, whose gradient is infinite at p = 1
    rest = log_probs.scatter(1, likeliest, -torch.inf)
    return torch.log1p(-rest.exp()).scatter(1, likeliest, rest.logsumexp(1, keepdim=True))
