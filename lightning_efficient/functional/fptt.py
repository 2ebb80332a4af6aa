"""The regulariser of forward propagation through time, in closed form and in place.

Symbols of the paper: parameters ``W``, running mean ``W̄``, running estimate of the part's gradient ``λ`` (here: dual).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def fptt_gradient_(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    means: Sequence[Tensor],
    duals: Sequence[Tensor],
    *,
    alpha: float,
    proximal_weight: float = 1.0,
    dual_weight: float = 1.0,
) -> list[Tensor]:
    """Add the gradient of the regulariser, ``proximal_weight α (W - W̄) - dual_weight λ``, to ``grads`` in place.

    Call it between ``backward`` and gradient clipping. Costs a copy of the parameters for the length of the call and no
    autograd graph; whole lists go through ``torch._foreach`` operations.

    Args:
        grads: Gradients of the data loss, one per parameter, any float dtype.
        params: Parameters before the step, any float dtype.
        means: Running means, same shapes; float32 for parameters of lower precision.
        duals: Running gradient estimates, shapes and dtypes of ``means``.
        alpha: Strength of the regulariser, above 0.
        proximal_weight: Weight of the quadratic term; 1 for the released image models, 2 for the released language
            models.
        dual_weight: Weight of the linear term; 1 in the released code, ½ in the formula that the paper prints.

    Returns:
        The gradients of the regulariser that were added, in the dtype of ``means``.

    Example:
        >>> grads, params = [torch.zeros(2)], [torch.tensor([1.0, 3.0])]
        >>> _ = fptt_gradient_(grads, params, means=[torch.ones(2)], duals=[torch.full((2,), 0.5)], alpha=0.1)
        >>> grads[0].tolist()
        [-0.5, -0.30000001192092896]

    Reference:
        Kag, Saligrama. Training Recurrent Neural Networks via Forward Propagation Through Time. ICML 2021. The printed
        formula shifts W by λ/(2α); the released code, whose form this is, by λ/α.
    """
    # W̄ - W first: where W has a lower precision, the result takes that of W̄
    added = list(torch._foreach_sub(list(means), list(params)))
    torch._foreach_mul_(added, -alpha * proximal_weight)
    torch._foreach_add_(added, list(duals), alpha=-dual_weight)
    torch._foreach_add_(list(grads), added)
    return added


@torch.no_grad()
def fptt_update_(
    params: Sequence[Tensor],
    means: Sequence[Tensor],
    duals: Sequence[Tensor],
    *,
    alpha: float,
    beta: float = 0.5,
) -> None:
    """Move the running mean and the dual after an optimiser step, in place.

    ``λ ← λ - α (W - W̄)``, then ``W̄ ← (1 - β) W̄ + β W - (β / α) λ``. With ``β = ½`` the result is ``W`` minus the old
    dual over ``2α``: not an average of past weights, but the present ones shifted.

    Args:
        params: Parameters after the step.
        means: Running means, changed in place.
        duals: Running gradient estimates, changed in place.
        alpha: Strength of the regulariser, above 0.
        beta: Share of the new parameters in the mean, in ``(0, 1)``; ½ in the paper.

    Example:
        >>> means, duals = [torch.zeros(1)], [torch.zeros(1)]
        >>> fptt_update_([torch.ones(1)], means, duals, alpha=0.5)
        >>> means[0].item(), duals[0].item()
        (1.0, -0.5)

    Reference:
        Kag, Saligrama. Training Recurrent Neural Networks via Forward Propagation Through Time. ICML 2021.
    """
    means, duals = list(means), list(duals)
    behind = list(torch._foreach_sub(means, list(params)))
    torch._foreach_add_(duals, behind, alpha=alpha)
    torch._foreach_add_(means, behind, alpha=-beta)
    torch._foreach_add_(means, duals, alpha=-beta / alpha)


@torch.no_grad()
def fptt_restart_(
    params: Sequence[Tensor], means: Sequence[Tensor], duals: Sequence[Tensor], *, keep_duals: bool = False
) -> None:
    """Continue from the running mean, ``W ← W̄``, and forget the dual, ``λ ← 0``, in place.

    The released code does this at the end of every epoch, before it evaluates; the algorithm in the paper never does.

    Args:
        params: Parameters, overwritten.
        means: Running means; where parameters have a lower precision, rounded to it, so that both agree.
        duals: Running gradient estimates.
        keep_duals: Whether the duals stay, as in two of the released language models.

    Example:
        >>> params, duals = [torch.ones(1)], [torch.ones(1)]
        >>> fptt_restart_(params, [torch.full((1,), 0.25)], duals)
        >>> params[0].item(), duals[0].item()
        (0.25, 0.0)
    """
    params, means = list(params), list(means)
    torch._foreach_copy_(params, means)
    torch._foreach_copy_(means, params)
    if not keep_duals:
        torch._foreach_zero_(list(duals))


def fptt_penalty(
    params: Sequence[Tensor],
    means: Sequence[Tensor],
    duals: Sequence[Tensor],
    *,
    alpha: float,
    proximal_weight: float = 1.0,
    dual_weight: float = 1.0,
) -> Tensor:
    """Return the value of the regulariser, differentiable in the parameters.

    ``proximal_weight (α/2) ‖W - W̄‖² - dual_weight ⟨W, λ⟩``, summed over all parameters. Training needs only its
    gradient, which :func:`fptt_gradient_` adds without autograd; this is for those who watch or check it.

    Args:
        params: Parameters.
        means: Running means.
        duals: Running gradient estimates.
        alpha: Strength of the regulariser.
        proximal_weight: Weight of the quadratic term.
        dual_weight: Weight of the linear term.

    Returns:
        Scalar tensor, in the units of the loss. It may be negative.

    Example:
        >>> one = [torch.ones(2)]
        >>> fptt_penalty([torch.full((2,), 3.0)], one, one, alpha=0.5).item()
        -4.0
    """
    terms = [
        0.5 * alpha * proximal_weight * (param - mean).square().sum() - dual_weight * (param * dual).sum()
        for param, mean, dual in zip(params, means, duals, strict=True)
    ]
    return torch.stack(terms).sum()
