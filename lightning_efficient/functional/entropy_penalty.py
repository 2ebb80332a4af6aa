"""The entropy of a classifier's answer as a term of its loss."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.part_losses import log_probabilities

EntropyForm: TypeAlias = Literal["true", "released"]


def entropy_penalty(logits: Tensor, form: EntropyForm = "true") -> Tensor:
    """Mean entropy of the class probabilities; added to a loss it asks for sure answers.

    The released code has logits in the place of log-probabilities: entropy minus the mean logsumexp. That changes with
    a common shift of the logits and has no lower bound, so it is there for comparison with published runs only.

    Args:
        logits: Class scores without an abstention logit, shape ``(N, K)``, any float dtype (computed in float32;
            float64 stays).
        form: ``true`` entropy, or ``released``.

    Returns:
        A scalar in nats; the true entropy lies in ``[0, log K]``.

    Raises:
        ConfigurationError: another form, or logits of another shape.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 1.0]])
        >>> entropy_penalty(logits), entropy_penalty(logits, "released")
        (tensor(0.6931), tensor(-1.))

    Reference:
        Feng, Ahmed, Hajimirsadeghi, Abdi. Towards Better Selective Classification. ICLR 2023.
    """
    check_choice("form", form, get_args(EntropyForm))
    if logits.ndim != 2:
        raise ConfigurationError(f"logits has shape {tuple(logits.shape)}; give class scores of shape (N, K).")
    log_probs = log_probabilities(logits)
    # a class that is ruled out by -inf has p = 0, and 0 * -inf would be NaN
    scores = (log_probs if form == "true" else logits.to(log_probs.dtype)).masked_fill(log_probs == -float("inf"), 0.0)
    return -(log_probs.exp() * scores).sum(-1).mean()
