"""Thresholds from query scores alone, without labels: for a coverage, and a whole path of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_fraction
from lightning_efficient.functional.cascade import as_stages
from lightning_efficient.functional.routing import number_kept


def threshold_path(query_scores: Tensor, points: int = 101) -> Tensor:
    """Return thresholds that lead from "always ask the next model" to "never ask", in equal steps of coverage.

    At every point each model but the last would keep the same share of all samples. All but the ends are scores of the
    samples themselves, so that a threshold is exact in the precision of the scores.

    Args:
        query_scores: Shape ``(N,)`` for two models, else ``(N, M - 1)``, any float dtype; of samples that are not used
            to calibrate. A score that is not finite counts as never kept.
        points: How many, at least 2.

    Returns:
        Shape ``(points, M - 1)``, float64; minus infinity in the first row and infinity in the last.

    Raises:
        ConfigurationError: a wrong shape, no samples, or fewer points.

    Example:
        >>> threshold_path(torch.tensor([0.25, 0.75, 0.5, 1.0]), points=5).squeeze(1).tolist()
        [-inf, 0.25, 0.5, 0.75, inf]
    """
    scores = _some(query_scores)
    if points < 2:
        raise ConfigurationError(f"points={points!r} must be at least 2.")
    ordered = _never_kept(scores).sort(0).values
    kept = [max(number_kept(index / (points - 1), len(scores)), 1) for index in range(1, points - 1)]
    ranks = torch.tensor(kept, dtype=torch.long)
    ends = ordered.new_full((1, ordered.shape[1]), math.inf)
    return torch.cat([-ends, ordered[ranks - 1], ends])


def query_thresholds(query_scores: Tensor, coverage: float) -> Tensor:
    """Smallest thresholds at which each model but the last answers at least a share of the samples that reach it.

    The share ``coverage`` of ``n`` samples is ``ceil(coverage * n)`` of them, and ties are kept together.

    Args:
        query_scores: Shape ``(N,)`` for two models, else ``(N, M - 1)``, any float dtype. A score that is not finite
            counts as never kept.
        coverage: In ``(0, 1]``; 1 keeps every finite score, also those of samples to come.

    Returns:
        Shape ``(M - 1,)``, float64; infinity where nothing smaller keeps enough, or nothing is left.

    Raises:
        ConfigurationError: a coverage out of range, a wrong shape, or no samples.

    Example:
        >>> query_thresholds(torch.tensor([[0.1, 0.5], [0.2, 0.9], [0.3, 0.4], [0.4, 0.6]]), 0.5)
        tensor([0.2000, 0.4000], dtype=torch.float64)
    """
    check_fraction("coverage", coverage, zero=False)
    scores = _never_kept(_some(query_scores))
    thresholds = torch.full((scores.shape[1],), math.inf, dtype=torch.float64)
    if coverage == 1:
        return thresholds
    left = torch.ones(len(scores), dtype=torch.bool)
    for stage, column in enumerate(scores.unbind(1)):
        if not left.any():
            break
        reached = column[left].sort().values
        thresholds[stage] = reached[max(number_kept(coverage, len(reached)), 1) - 1]
        left &= (column > thresholds[stage]) | column.isinf()
    return thresholds


def _some(query_scores: Tensor) -> Tensor:
    scores = as_stages(query_scores).detach().cpu().double()
    if len(scores) == 0:
        raise ConfigurationError("query_scores holds no samples; give at least one.")
    return scores


def _never_kept(scores: Tensor) -> Tensor:
    """Return scores with infinity for those that are not finite, which no threshold keeps."""
    return scores.where(scores.isfinite(), math.inf)
