"""Single points of the risk-coverage curve: what coverage a risk allows, what risk a coverage costs, and thresholds."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional.risk_coverage import RiskCoverage, as_summary
from lightning_efficient.functional.risk_coverage_area import not_a_number

RiskKind: TypeAlias = Literal["selective", "generalized"]
RISK_KINDS: tuple[RiskKind, ...] = ("selective", "generalized")


def coverage_at_risk(
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    risk: float,
    kind: RiskKind = "selective",
) -> tuple[Tensor, Tensor]:
    """Largest achievable coverage whose risk does not exceed a target, and the threshold that gives it.

    The selective risk is not monotone in the coverage, so all thresholds are searched. Tied samples are accepted
    together or not at all: the returned threshold really has this coverage and this risk on these samples.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        weight: See :func:`risk_coverage_summary`.
        risk: Target in ``[0, 1]``, such as 0.05.
        kind: ``"selective"`` (loss per accepted sample) or ``"generalized"`` (loss per sample, the joint risk of
            one-sided prediction).

    Returns:
        Coverage (float64 scalar) and threshold (scalar): accept where ``confidence >= threshold``. They are 0 and
        infinity when no threshold meets the target, and NaN with a warning when there are no samples.

    Raises:
        ConfigurationError: a target outside ``[0, 1]``, an unknown kind or unusable samples.

    Example:
        >>> coverage_at_risk(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 0, 0]), risk=0.25)
        (tensor(1., dtype=torch.float64), tensor(0.6000))
    """
    check_fraction("risk", risk, zero=True)
    check_choice("kind", kind, RISK_KINDS)
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary), summary.thresholds.new_full((), math.nan)
    risks = summary.selective_risks if kind == "selective" else summary.generalized_risks
    allowed = (risks <= risk).nonzero()
    if allowed.numel() == 0:
        return summary.counts.new_zeros(()), summary.thresholds.new_full((), math.inf)
    best = allowed[-1, 0]
    return summary.counts[best] / summary.total, summary.thresholds[best]


def risk_at_coverage(
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    coverage: float,
    kind: RiskKind = "selective",
    at_least: bool = False,
) -> tuple[Tensor, Tensor]:
    """Risk of the surest samples at a coverage, and the threshold that reaches it.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        weight: See :func:`risk_coverage_summary`.
        coverage: Target in ``(0, 1]``: the ``ceil(coverage * n)`` surest samples are accepted.
        kind: ``"selective"`` (loss per accepted sample) or ``"generalized"`` (loss per sample).
        at_least: Where the target falls inside a group of ties, accept the whole group, as a threshold would, and
            report its risk. The default reports the expected risk of drawing the missing samples from the group.

    Returns:
        Risk (float64 scalar) and threshold (scalar): accept where ``confidence >= threshold``. NaN with a warning when
        there are no samples.

    Raises:
        ConfigurationError: a target outside ``(0, 1]``, an unknown kind or unusable samples.

    Example:
        >>> risk_at_coverage(torch.tensor([0.9, 0.8, 0.8, 0.6]), torch.tensor([0, 1, 0, 0]), coverage=0.5)
        (tensor(0.2500, dtype=torch.float64), tensor(0.8000))
    """
    check_fraction("coverage", coverage, zero=False)
    check_choice("kind", kind, RISK_KINDS)
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary), summary.thresholds.new_full((), math.nan)
    # Without the tolerance, 100 samples at coverage 0.55 would be 56, as 0.55 * 100 is 55.00000000000001.
    wanted = torch.ceil(coverage * summary.total - 1e-9).clamp(min=1).minimum(summary.total)
    group = torch.searchsorted(summary.counts, wanted)
    accepted, accepted_loss = summary.counts[group], summary.losses[group]
    if not at_least:
        start = (summary.counts[group - 1], summary.losses[group - 1]) if group > 0 else (0.0, 0.0)
        share = (wanted - start[0]) / (accepted - start[0])
        accepted, accepted_loss = wanted, start[1] + share * (accepted_loss - start[1])
    risk = accepted_loss / (accepted if kind == "selective" else summary.total)
    return risk, summary.thresholds[group]


def selective_accuracy(
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    threshold: float,
) -> Tensor:
    """One minus the mean loss of the samples with confidence at or above a threshold.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        weight: See :func:`risk_coverage_summary`.
        threshold: Compared in the dtype of the confidence. Over bins it acts as the next edge above.

    Returns:
        Scalar, float64; NaN when nothing is accepted, with a warning when there are no samples.

    Example:
        >>> selective_accuracy(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]), threshold=0.8)
        tensor(0.5000, dtype=torch.float64)
    """
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary)
    accepted, accepted_loss = _accepted(summary, threshold)
    return 1 - accepted_loss / accepted


def abstention_rate(
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    threshold: float,
) -> Tensor:
    """Share of the samples with confidence below a threshold.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        weight: See :func:`risk_coverage_summary`.
        threshold: Compared in the dtype of the confidence. Over bins it acts as the next edge above.

    Returns:
        Scalar, float64; NaN with a warning when there are no samples.

    Example:
        >>> abstention_rate(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 0, 0]), threshold=0.8)
        tensor(0.5000, dtype=torch.float64)
    """
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary)
    accepted, _ = _accepted(summary, threshold)
    return 1 - accepted / summary.total


def _accepted(summary: RiskCoverage, threshold: float) -> tuple[Tensor, Tensor]:
    """Count and summed loss of the samples at or above the threshold."""
    # float32 scores must meet a float32 threshold: a score of 0.9 is below the Python float 0.9.
    limit = torch.tensor(threshold, dtype=summary.thresholds.dtype, device=summary.thresholds.device)
    groups = int((summary.thresholds >= limit).sum())
    if groups == 0:
        return summary.counts.new_zeros(()), summary.losses.new_zeros(())
    return summary.counts[groups - 1], summary.losses[groups - 1]
