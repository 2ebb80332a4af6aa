"""What a router between a small (base) and a large (global) model learns from, and the weights it gives to both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_fraction
from lightning_efficient.functional._precision import at_least_float32


class AlternationWeights(NamedTuple):
    """Weights of the samples for both models, each of shape ``(N,)``, float32."""

    base: Tensor
    """2 for what the base answers, 1 for the rest."""
    global_model: Tensor
    """2 for what is asked of the global model, 1 for the rest."""


def gain_loss(
    base_logit: Tensor,
    global_logit: Tensor,
    base_correct: Tensor,
    global_correct: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of two predictions: whether the base is right, and whether the global model is.

    The difference of the two probabilities is the gain of asking, whose order of the samples is the best at every
    share of queries. With more models than two, ``global_logit`` and ``global_correct`` have a column for each.

    Args:
        base_logit: Log-odds that the base is right, shape ``(N,)``, any float dtype (computed in float32; float64
            stays).
        global_logit: Log-odds that the global model is right, shape ``(N,)``, or ``(N, A)`` for several.
        base_correct: Whether the base is right, shape ``(N,)``, bool, or a probability in ``[0, 1]``.
        global_correct: Likewise for the global model, the shape of ``global_logit``; its probability of the label is a
            softer choice than right or wrong.
        weight: Weight of each sample, 0 or more, shape ``(N,)``; by default 1. The sum of all is divided out.

    Returns:
        A scalar in nats: the sum over models of the mean over samples.

    Raises:
        ConfigurationError: shapes that do not belong together.

    Example:
        >>> zeros, right = torch.zeros(2), torch.tensor([True, False])
        >>> gain_loss(zeros, zeros, right, right)
        tensor(1.3863)

    Reference:
        Jitkrittum, Gupta, Menon, Narasimhan, Rawat, Kumar. When Does Confidence-Based Cascade Deferral Suffice?
        NeurIPS 2023: the gain.
    """
    losses = _binary_losses("base", base_logit, base_correct)
    others = _binary_losses("global", global_logit, global_correct)
    if base_logit.ndim != 1 or global_logit.ndim not in (1, 2) or len(base_logit) != len(global_logit):
        raise ConfigurationError(
            f"base_logit has shape {tuple(base_logit.shape)} and global_logit {tuple(global_logit.shape)}; give (N,) "
            "for the base and (N,) or (N, A) for the global models."
        )
    return _weighted_mean(losses + (others if others.ndim == 1 else others.sum(1)), weight)


def proxy_loss(
    query_logit: Tensor, base_correct: Tensor, global_correct: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy with the published label: ask where the base is wrong and the global model right.

    Args:
        query_logit: Log-odds of asking, shape ``(N,)``, any float dtype (computed in float32; float64 stays).
        base_correct: Whether the base is right, shape ``(N,)``, bool.
        global_correct: Whether the global model is right, shape ``(N,)``, bool, or a probability in ``[0, 1]``.
        weight: Weight of each sample, 0 or more, shape ``(N,)``; by default 1. The sum of all is divided out.

    Returns:
        A scalar in nats.

    Raises:
        ConfigurationError: shapes that do not belong together.

    Example:
        >>> proxy_loss(torch.zeros(2), torch.tensor([True, False]), torch.tensor([True, True]))
        tensor(0.6931)

    Reference:
        Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. ICLR 2023.
    """
    if base_correct.shape != global_correct.shape:
        raise ConfigurationError(
            f"base_correct has shape {tuple(base_correct.shape)} and global_correct {tuple(global_correct.shape)}; "
            "give both as (N,)."
        )
    label = (1 - at_least_float32(base_correct)) * at_least_float32(global_correct)
    return _weighted_mean(_binary_losses("query", query_logit, label), weight)


def query_rate_penalty(query_probability: Tensor, target_coverage: float, weight: float = 1.0) -> Tensor:
    """A price for asking about more samples than wanted: ``weight · max(0, mean(q) - (1 - c))``.

    Asking about fewer costs nothing. The rate is that of this batch.

    Args:
        query_probability: ``q``, how far each sample is asked about, shape ``(N,)``, in ``[0, 1]``.
        target_coverage: ``c``, the share that the base shall answer at least, in ``[0, 1]``.
        weight: Finite, 0 or more.

    Returns:
        A scalar, 0 for an empty batch.

    Raises:
        ConfigurationError: an option outside its range, or probabilities that are not ``(N,)``.

    Example:
        >>> query_rate_penalty(torch.tensor([1.0, 0.0]), target_coverage=0.75, weight=2.0)
        tensor(0.5000)

    Reference:
        Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. ICLR 2023; the
        poster prints the penalty with the other sign, on coverage above the target.
    """
    check_fraction("target_coverage", target_coverage, zero=True)
    if not 0 <= weight < float("inf"):
        raise ConfigurationError(f"weight={weight!r} must be a finite number, 0 or more.")
    if query_probability.ndim != 1:
        shape = tuple(query_probability.shape)
        raise ConfigurationError(f"query_probability has shape {shape}; give one value per sample, shape (N,).")
    probability = at_least_float32(query_probability)
    rate = probability.sum() / max(len(probability), 1)
    return weight * (rate - (1 - target_coverage)).clamp(min=0)


def alternation_weights(queried: Tensor) -> AlternationWeights:
    """Weights of the samples for base and global model when both learn again after a router.

    Args:
        queried: Which samples the global model is asked about, bool ``(N,)``.

    Returns:
        For the base 2 where it answers and 1 elsewhere, for the global model 2 where it is asked and 1 elsewhere.

    Raises:
        ConfigurationError: anything but bool ``(N,)``.

    Example:
        >>> alternation_weights(torch.tensor([True, False]))
        AlternationWeights(base=tensor([1., 2.]), global_model=tensor([2., 1.]))

    Reference:
        Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. ICLR 2023.
    """
    if queried.dtype != torch.bool or queried.ndim != 1:
        raise ConfigurationError(
            f"queried has dtype {queried.dtype} and shape {tuple(queried.shape)}; give bool of shape (N,)."
        )
    asked = queried.float()
    return AlternationWeights(2 - asked, 1 + asked)


def _binary_losses(whose: str, logit: Tensor, correct: Tensor) -> Tensor:
    if logit.shape != correct.shape:
        raise ConfigurationError(
            f"{whose}_logit has shape {tuple(logit.shape)} and its labels {tuple(correct.shape)}; give both alike."
        )
    logit = at_least_float32(logit)
    return F.binary_cross_entropy_with_logits(logit, correct.to(logit.dtype), reduction="none")


def _weighted_mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    if losses.ndim != 1:
        raise ConfigurationError(f"logits have shape {tuple(losses.shape)}; give one per sample, shape (N,).")
    # a batch in which no sample counts has a loss of 0, not NaN
    if weight is None:
        return losses.sum() / max(len(losses), 1)
    if weight.shape != losses.shape:
        raise ConfigurationError(f"weight has shape {tuple(weight.shape)}; give (N,) for {len(losses)} samples.")
    weight = weight.to(losses.dtype)
    return (losses * weight).sum() / weight.sum().clamp(min=torch.finfo(losses.dtype).tiny)
