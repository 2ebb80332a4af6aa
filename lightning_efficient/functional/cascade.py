"""Cascades: which of several models answers each sample, what that costs, and two published ways to set thresholds.

Stages are ordered from the cheapest to the most expensive; the last one always answers. A query score is larger where
a later stage should be asked; a confidence is its negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_fraction, check_positive
from lightning_efficient.functional._precision import at_least_float32


def cascade_choice(query_scores: Tensor, thresholds: Tensor | Sequence[float]) -> Tensor:
    """Return which stage answers each sample: the first one whose query score is at most its threshold.

    A query score that is not finite is never kept, whatever the threshold, as it says nothing about the sample. Scores
    are compared in float64, so that a threshold taken from them keeps its own sample.

    Args:
        query_scores: Larger asks a later stage; shape ``(N, M - 1)``, or ``(N,)`` for two stages, any float.
        thresholds: One for each stage but the last, shape ``(M - 1,)``; infinity keeps every sample, its negative none.

    Returns:
        Stages from 0 to ``M - 1``, int64, shape ``(N,)``.

    Raises:
        ConfigurationError: shapes that do not fit, or a threshold that is not a number.

    Example:
        >>> cascade_choice(torch.tensor([[0.1, 0.9], [0.6, 0.2], [0.6, 0.9]]), [0.5, 0.5])
        tensor([0, 1, 2])
    """
    scores = as_stages(query_scores)
    limits = torch.as_tensor(thresholds, dtype=torch.float64, device=scores.device)
    if limits.shape != scores.shape[1:]:
        raise ConfigurationError(
            f"thresholds has shape {tuple(limits.shape)}; give {scores.shape[1]}, one for each column of query_scores."
        )
    if limits.isnan().any():
        raise ConfigurationError("thresholds holds NaN; use inf to keep every sample and -inf to keep none.")
    keeps = scores.isfinite() & (scores.double() <= limits)
    # the last stage keeps what is left
    keeps = torch.cat([keeps, keeps.new_ones(len(keeps), 1)], dim=1)
    return keeps.int().argmax(1)


def expected_cost(choice: Tensor, stage_costs: Sequence[float]) -> float:
    """Mean cost of an answer.

    Args:
        choice: Which stage answered, integers of shape ``(N,)``.
        stage_costs: What an answer of each stage costs in all, those before it included, in any unit; never falling.

    Returns:
        The mean over the samples, in the unit of the costs.

    Raises:
        ConfigurationError: costs that fall or are no finite numbers, a stage without a cost, or no samples.

    Example:
        >>> expected_cost(torch.tensor([0, 0, 0, 1]), [1.0, 21.0])
        6.0
    """
    costs = [float(cost) for cost in stage_costs]
    if not costs or not all(map(math.isfinite, costs)) or costs[0] < 0 or costs != sorted(costs):
        raise ConfigurationError(f"stage_costs={costs} must be cumulative: finite, from 0 on, and never falling.")
    if choice.ndim != 1 or choice.numel() == 0:
        raise ConfigurationError(f"choice has shape {tuple(choice.shape)}; give (N,) with at least one sample.")
    if not 0 <= int(choice.min()) <= int(choice.max()) < len(costs):
        named = f"{int(choice.min())} to {int(choice.max())}"
        raise ConfigurationError(f"choice names the stages {named}, and stage_costs has {len(costs)} costs.")
    counts = choice.long().bincount(minlength=len(costs)).double()
    return float((counts * torch.tensor(costs, dtype=torch.float64, device=counts.device)).sum() / choice.numel())


def published_thresholds(confidences: Tensor, correct: Tensor, tolerance: float) -> Tensor:
    """Thresholds from one tolerated loss of accuracy, stage by stage, as published with cascaded inference.

    For every stage, on *all* samples and not only on those that reach it: the smallest confidence such that the
    accuracy among the samples at or above it is within ``tolerance`` of the best such accuracy at any confidence. Ties
    are taken together. It promises nothing about new samples, and the tolerance is not that of the cascade.

    Args:
        confidences: Of each stage, higher means surer, shape ``(M, N)``, any float dtype: the maximum softmax
            probability, or for top-5 answers the sum of the five largest ones.
        correct: Whether each stage is right, boolean, shape ``(M, N)``.
        tolerance: In ``[0, 1]``.

    Returns:
        Thresholds: a stage answers where its confidence is at least its own; shape ``(M,)``, the dtype of the
        confidences, at least float32. That of the last stage is not needed, as it always answers.

    Raises:
        ConfigurationError: a tolerance out of range, shapes that do not fit, no samples, or a confidence that is not
            finite.

    Example:
        >>> confidences = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
        >>> correct = torch.tensor([[True, True, False, True]])
        >>> published_thresholds(confidences, correct, 0.0), published_thresholds(confidences, correct, 0.25)
        (tensor([0.8000]), tensor([0.6000]))

    Reference:
        Berestizshevsky, Even. Dynamically Sacrificing Accuracy for Reduced Computation: Cascaded Inference Based on
        Softmax Confidence. ICANN 2019.
    """
    check_fraction("tolerance", tolerance, zero=True)
    confidences = _stages_of_samples(confidences)
    if correct.shape != confidences.shape or correct.dtype != torch.bool:
        raise ConfigurationError(
            f"correct has dtype {correct.dtype} and shape {tuple(correct.shape)}; give booleans of shape "
            f"{tuple(confidences.shape)}."
        )
    ordered, order = confidences.sort(dim=1, descending=True, stable=True)
    ranks = torch.arange(1, confidences.shape[1] + 1, dtype=torch.float64, device=confidences.device)
    accuracy = correct.gather(1, order).double().cumsum(1) / ranks
    # a confidence stands for all samples that tie with it: only its last one counts
    last = torch.cat([ordered[:, 1:] != ordered[:, :-1], torch.ones_like(correct[:, :1])], dim=1)
    accuracy = accuracy.where(last, -1.0)
    within = accuracy >= accuracy.amax(1, keepdim=True) - tolerance - 1e-12
    lowest = (within * torch.arange(1, within.shape[1] + 1, device=within.device)).argmax(1)
    return ordered.gather(1, lowest.unsqueeze(1)).squeeze(1)


def budgeted_thresholds(confidences: Tensor, share_parameter: float) -> Tensor:
    """Thresholds that let fixed shares of the samples end at each stage, in a geometric series.

    The shares are proportional to ``p, p², …, p^M``: below 1 most samples end early, above 1 late. Stage by stage, of
    the samples that have not ended yet, the ``floor(N share)`` surest end.

    Args:
        confidences: Of each stage, higher means surer, shape ``(M, N)``, any float dtype.
        share_parameter: ``p``, above 0.

    Returns:
        Thresholds: a stage answers where its confidence is at least its own; shape ``(M,)``, the dtype of the
        confidences, at least float32. Infinity where too few samples are left, and minus infinity for the last stage.

    Raises:
        ConfigurationError: a parameter out of range, a wrong shape, no samples, or a confidence that is not finite.

    Example:
        >>> budgeted_thresholds(torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.5, 0.6, 0.7, 0.8]]), 1.0)
        tensor([0.8000,   -inf])

    Reference:
        Huang, Chen, Li, Wu, van der Maaten, Weinberger. Multi-Scale Dense Networks for Resource Efficient Image
        Classification. ICLR 2018.
    """
    check_positive("share_parameter", share_parameter)
    confidences = _stages_of_samples(confidences)
    stages, samples = confidences.shape
    # relative to the largest, so that no power overflows
    powers = [math.log(share_parameter) * (stage + 1) for stage in range(stages)]
    weights = [math.exp(power - max(powers)) for power in powers]
    thresholds = confidences.new_full((stages,), math.inf)
    thresholds[-1] = -math.inf
    left = torch.ones(samples, dtype=torch.bool, device=confidences.device)
    for stage in range(stages - 1):
        wanted = math.floor(samples * weights[stage] / sum(weights) + 1e-9)
        remaining = confidences[stage][left]
        if 0 < wanted <= len(remaining):
            thresholds[stage] = remaining.sort(descending=True).values[wanted - 1]
            left &= confidences[stage] < thresholds[stage]
    return thresholds


def as_stages(query_scores: Tensor) -> Tensor:
    """Return query scores as ``(N, M - 1)`` in float32 or wider, or raise where they have another shape."""
    scores = query_scores.unsqueeze(1) if query_scores.ndim == 1 else query_scores
    if scores.ndim != 2 or scores.shape[1] == 0 or not scores.is_floating_point():
        raise ConfigurationError(
            f"query_scores has dtype {query_scores.dtype} and shape {tuple(query_scores.shape)}; give floats of shape "
            "(N,) for two stages or (N, stages - 1)."
        )
    return at_least_float32(scores)


def _stages_of_samples(confidences: Tensor) -> Tensor:
    if confidences.ndim != 2 or 0 in confidences.shape or not confidences.is_floating_point():
        raise ConfigurationError(
            f"confidences has dtype {confidences.dtype} and shape {tuple(confidences.shape)}; give floats of shape "
            "(stages, samples), at least one of each."
        )
    if not confidences.isfinite().all():
        raise ConfigurationError("confidences holds a value that is not finite; leave such samples out.")
    return at_least_float32(confidences)
