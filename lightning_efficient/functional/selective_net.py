"""The loss of a classifier and a selector that are trained together for a wanted coverage."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional._precision import at_least_float32

SelectiveRiskForm: TypeAlias = Literal["paper", "released"]


def selective_risk_loss(
    losses: Tensor, selection: Tensor, coverage: float, penalty: float = 32.0, form: SelectiveRiskForm = "paper"
) -> Tensor:
    """Risk on what a soft selection accepts, and a price for accepting too little.

    With the accepted share ``φ = mean(g)`` and the wanted one ``c``: ``mean(l · g) / φ + λ max(0, c - φ)²``. The
    released code does not divide by ``φ``; then accepting less always lowers the first term, and only the penalty
    keeps the coverage up. ``φ`` is the share in this batch: where a batch is split over processes or over accumulated
    steps, each part has its own.

    Args:
        losses: Loss of each sample ``l``, shape ``(N,)``, any float dtype (computed in float32; float64 stays).
        selection: How far each sample is accepted ``g``, shape ``(N,)``, in ``[0, 1]``.
        coverage: ``c``, in ``(0, 1]``.
        penalty: ``λ``, 0 or more.
        form: ``paper``, or ``released``.

    Returns:
        A scalar in the unit of the losses. Where every ``g`` is 0 the risk is 0 and the gradient finite.

    Raises:
        ConfigurationError: an option outside its range, or shapes that differ.

    Example:
        >>> losses, selection = torch.tensor([1.0, 3.0]), torch.tensor([0.75, 0.25])
        >>> selective_risk_loss(losses, selection, coverage=0.5)
        tensor(1.5000)
        >>> selective_risk_loss(losses, selection, coverage=0.5, form="released")
        tensor(0.7500)

    Reference:
        Geifman, El-Yaniv. SelectiveNet: A Deep Neural Network with an Integrated Reject Option. ICML 2019.
    """
    check_fraction("coverage", coverage, zero=False)
    if not 0 <= penalty < float("inf"):
        raise ConfigurationError(f"penalty={penalty!r} must be a finite number, 0 or more.")
    check_choice("form", form, get_args(SelectiveRiskForm))
    if losses.ndim != 1 or losses.shape != selection.shape:
        raise ConfigurationError(
            f"losses has shape {tuple(losses.shape)} and selection {tuple(selection.shape)}; give one value per sample "
            "in both, shape (N,)."
        )
    losses, selection = at_least_float32(losses), at_least_float32(selection)
    accepted = selection.mean()
    risk = (losses * selection).mean()
    if form == "paper":
        # half of the exponents stay free, so that the gradient of 1 / φ cannot overflow to inf, and inf * 0 to NaN
        risk = risk / accepted.clamp(min=torch.finfo(accepted.dtype).tiny ** 0.5)
    return risk + penalty * (coverage - accepted).clamp(min=0).square()
