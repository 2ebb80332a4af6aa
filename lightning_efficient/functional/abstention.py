"""Losses and score of a classifier with one more output, which says: no answer.

With class logits ``z_1 .. z_K`` and the abstention logit ``z_{K+1}``, ``q`` is the softmax over all ``K + 1`` and ``p``
the one over the classes alone. The losses return one value per sample, so that one mean closes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_fraction
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.distillation import check_class_indices
from lightning_efficient.functional.part_losses import log_probabilities


def abstention_log_probabilities(logits: Tensor, abstain_logit: Tensor) -> Tensor:
    """Log-probabilities ``log q`` of all classes and, in the last column, of no answer.

    Args:
        logits: Class scores, shape ``(N, K)``, any float dtype (computed in float32; float64 stays).
        abstain_logit: Logit of no answer, shape ``(N,)``.

    Returns:
        Shape ``(N, K + 1)``.

    Raises:
        ConfigurationError: shapes that do not belong together.

    Example:
        >>> abstention_log_probabilities(torch.zeros(1, 2), torch.tensor([0.0])).exp()
        tensor([[0.3333, 0.3333, 0.3333]])
    """
    _check_shapes(logits, abstain_logit)
    both = at_least_float32(logits), at_least_float32(abstain_logit).unsqueeze(1)
    return log_probabilities(torch.cat(both, 1))


def answer_score(logits: Tensor, abstain_logit: Tensor) -> Tensor:
    """Confidence ``-q_{K+1}``: the less is put on no answer, the surer; in ``[-1, 0]``.

    Near 0, where most answers of a trained network lie, it keeps the resolution of the number format, which
    ``1 - q_{K+1}`` would lose to ties.

    Args:
        logits: Class scores, shape ``(N, K)``, any float dtype (computed in float32; float64 stays).
        abstain_logit: Logit of no answer, shape ``(N,)``.

    Returns:
        Shape ``(N,)``, higher for surer.

    Raises:
        ConfigurationError: shapes that do not belong together.

    Example:
        >>> answer_score(torch.zeros(2, 2), torch.tensor([0.0, -20.0]))
        tensor([-3.3333e-01, -1.0306e-09])
    """
    _check_shapes(logits, abstain_logit)
    return -torch.sigmoid(at_least_float32(abstain_logit) - at_least_float32(logits).logsumexp(-1))


def gamblers_loss(logits: Tensor, abstain_logit: Tensor, target: Tensor, payoff: float) -> Tensor:
    """Loss of a gambler who bets on classes or keeps the stake: ``-log(q_y + q_{K+1} / o)``.

    A bet on the right class pays ``o`` times, what is kept pays once. A payoff near 1 makes keeping attractive; at
    ``o = K`` it is worth no more than an even bet on all classes. The paper's ``-log(o q_y + q_{K+1})`` is this minus
    ``log o``.

    Args:
        logits: Class scores, shape ``(N, K)``, any float dtype (computed in float32; float64 stays).
        abstain_logit: Logit of no answer, shape ``(N,)``.
        target: Classes, integers of shape ``(N,)``.
        payoff: ``o``, above 1 and at most ``K``.

    Returns:
        Values of 0 or more in nats, shape ``(N,)``.

    Raises:
        ConfigurationError: a payoff outside its range, or shapes that do not belong together.

    Example:
        >>> gamblers_loss(torch.zeros(1, 2), torch.tensor([0.0]), torch.tensor([0]), payoff=2.0)
        tensor([0.6931])

    Reference:
        Liu, Wang, Liang, Salakhutdinov, Morency, Ueda. Deep Gamblers: Learning to Abstain with Portfolio Theory.
        NeurIPS 2019.
    """
    check_payoff(payoff, logits.shape[-1])
    check_class_indices(logits, target)
    log_probs = abstention_log_probabilities(logits, abstain_logit)
    right, kept = _of_target(log_probs, target), log_probs[:, -1]
    # a logarithm of the sum would be -inf where both probabilities underflow
    return -torch.logaddexp(right, kept - math.log(payoff))


def self_adaptive_loss(logits: Tensor, abstain_logit: Tensor, target: Tensor, belief: Tensor) -> Tensor:
    """Cross-entropy that asks for no answer as far as the label is not believed.

    ``-(t log q_y + (1 - t) log q_{K+1})``, where ``t`` is the running probability that the network itself gave to the
    label; see :func:`updated_belief`.

    Args:
        logits: Class scores, shape ``(N, K)``, any float dtype (computed in float32; float64 stays).
        abstain_logit: Logit of no answer, shape ``(N,)``.
        target: Classes, integers of shape ``(N,)``.
        belief: ``t``, shape ``(N,)``, in ``[0, 1]``; 1 asks for the label alone.

    Returns:
        Values of 0 or more in nats, shape ``(N,)``.

    Raises:
        ConfigurationError: shapes that do not belong together.

    Example:
        >>> logits, no_answer, target = torch.zeros(1, 2), torch.tensor([2.0]), torch.tensor([0])
        >>> self_adaptive_loss(logits, no_answer, target, torch.tensor([1.0]))
        tensor([2.2395])
        >>> self_adaptive_loss(logits, no_answer, target, torch.tensor([0.0]))
        tensor([0.2395])

    Reference:
        Huang, Zhang, Zhang. Self-Adaptive Training: beyond Empirical Risk Minimization. NeurIPS 2020.
    """
    check_class_indices(logits, target)
    _check_one_per_sample("belief", belief, logits)
    log_probs = abstention_log_probabilities(logits, abstain_logit)
    belief = belief.to(log_probs.dtype)
    return -(belief * _of_target(log_probs, target) + (1 - belief) * log_probs[:, -1])


def updated_belief(belief: Tensor, logits: Tensor, target: Tensor, momentum: float) -> Tensor:
    """Move the belief in each label towards the probability that the network gives it now: ``m t + (1 - m) p_y``.

    ``p`` is the softmax over the classes, without the abstention logit. There is no gradient.

    Args:
        belief: ``t`` of the last visit, shape ``(N,)``; 1 for a sample that was not seen yet.
        logits: Class scores, shape ``(N, K)``, any float dtype (computed in float32; float64 stays).
        target: Classes, integers of shape ``(N,)``.
        momentum: ``m``, in ``[0, 1]``.

    Returns:
        Shape ``(N,)``, in ``[0, 1]``.

    Raises:
        ConfigurationError: a momentum outside its range, or shapes that do not belong together.

    Example:
        >>> updated_belief(torch.tensor([1.0]), torch.zeros(1, 2), torch.tensor([0]), momentum=0.9)
        tensor([0.9500])

    Reference:
        Huang, Zhang, Zhang. Self-Adaptive Training: beyond Empirical Risk Minimization. NeurIPS 2020.
    """
    check_fraction("momentum", momentum, zero=True)
    check_class_indices(logits, target)
    _check_one_per_sample("belief", belief, logits)
    given = _of_target(log_probabilities(logits.detach()), target).exp()
    return momentum * belief.detach().to(given.dtype) + (1 - momentum) * given


def check_payoff(payoff: float, num_classes: int) -> None:
    """Raise ``ConfigurationError`` unless a payoff is above 1 and at most the number of classes."""
    if not 1 < payoff <= num_classes:
        raise ConfigurationError(
            f"payoff={payoff!r} must be above 1 and at most {num_classes}, the number of classes; a smaller one makes "
            "the network abstain more."
        )


def _of_target(log_probs: Tensor, target: Tensor) -> Tensor:
    return log_probs.gather(1, target.long().unsqueeze(1)).squeeze(1)


def _check_shapes(logits: Tensor, abstain_logit: Tensor) -> None:
    if logits.ndim != 2:
        raise ConfigurationError(f"logits has shape {tuple(logits.shape)}; give class scores of shape (N, K).")
    _check_one_per_sample("abstain_logit", abstain_logit, logits)


def _check_one_per_sample(name: str, values: Tensor, logits: Tensor) -> None:
    if values.shape != logits.shape[:1]:
        raise ConfigurationError(
            f"{name} has shape {tuple(values.shape)}; give one value per sample, shape {tuple(logits.shape[:1])}."
        )
