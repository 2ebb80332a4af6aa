"""Single points of the risk-coverage curve: what coverage a risk allows, what risk a coverage costs, and thresholds."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional.risk_coverage import RiskCoverage, as_summary
from lightning_efficient.functional.risk_coverage_area import not_a_number

RiskKind: TypeAlias = Literal["selective", "generalized"]
CoverageAtRiskForm: TypeAlias = Literal["achievable", "torch_uncertainty", "first_violation"]
RiskAtCoverageForm: TypeAlias = Literal["expected", "at_least", "torch_uncertainty", "selectivenet", "deep_gamblers"]

RISK_KINDS: tuple[RiskKind, ...] = ("selective", "generalized")
COVERAGE_AT_RISK_FORMS: tuple[CoverageAtRiskForm, ...] = ("achievable", "torch_uncertainty", "first_violation")
RISK_AT_COVERAGE_FORMS: tuple[RiskAtCoverageForm, ...] = (
    "expected",
    "at_least",
    "torch_uncertainty",
    "selectivenet",
    "deep_gamblers",
)

UNSETTLED_RANKS = 200
"""How many of the surest samples ``first_violation`` does not judge."""

# Without the tolerance, 100 samples at coverage 0.55 would be 56, as 0.55 * 100 is 55.00000000000001.
_SLIP = 1e-9


def coverage_at_risk(
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    risk: float,
    kind: RiskKind = "selective",
    form: CoverageAtRiskForm = "achievable",
) -> tuple[Tensor, Tensor]:
    """Largest coverage whose risk does not exceed a target, and the threshold that gives it.

    The selective risk is not monotone in the coverage, so all thresholds are searched. Tied samples are accepted
    together or not at all: the returned threshold really has this coverage and this risk on these samples.

    Two other forms reproduce figures of others. Both may accept a part of a group of ties, of which they take the
    expected loss where the originals depend on the order of the input; their threshold then accepts the whole group.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        weight: See :func:`risk_coverage_summary`.
        risk: Target in ``[0, 1]``, such as 0.05.
        kind: ``"selective"`` (loss per accepted sample) or ``"generalized"`` (loss per sample, the joint risk of
            one-sided prediction).
        form: ``"achievable"`` as above; ``"torch_uncertainty"`` also cuts inside groups of ties, and gives NaN where
            nothing meets the target; ``"first_violation"`` (Galil et al.) goes down from the surest sample and stops
            before the first rank above the target. The first 200 ranks are not judged, unless rank 201 is above the
            target already. The released code of that form divides by n + 1, and gives 0 where no rank is above the
            target; here these are n and 1.

    Returns:
        Coverage (float64 scalar) and threshold (scalar): accept where ``confidence >= threshold``. They are 0 (NaN for
        ``"torch_uncertainty"``) and infinity when nothing meets the target, and NaN with a warning when there are no
        samples.

    Raises:
        ConfigurationError: a target outside ``[0, 1]``, an unknown kind or form, or unusable samples.

    Example:
        >>> coverage_at_risk(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 0, 0]), risk=0.25)
        (tensor(1., dtype=torch.float64), tensor(0.6000))

    Reference:
        Galil, Dabbah, El-Yaniv. What Can We Learn from the Selective Prediction and Uncertainty Estimation Performance
        of 523 ImageNet Classifiers? ICLR 2023.
    """
    check_fraction("risk", risk, zero=True)
    check_choice("kind", kind, RISK_KINDS)
    check_choice("form", form, COVERAGE_AT_RISK_FORMS)
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary), summary.thresholds.new_full((), math.nan)
    risks = summary.selective_risks if kind == "selective" else summary.generalized_risks
    if form == "first_violation":
        accepted = _before_first_violation(summary, risks, risk, kind)
    else:
        allowed = (risks <= risk).nonzero()
        groups = int(allowed[-1, 0]) + 1 if allowed.numel() > 0 else 0
        accepted = summary.counts[groups - 1] if groups > 0 else summary.counts.new_zeros(())
        if form == "torch_uncertainty" and groups < len(risks):
            accepted = _last_rank_within(summary, groups, risk, kind)
    if accepted == 0:
        infeasible = math.nan if form == "torch_uncertainty" else 0.0
        return summary.counts.new_full((), infeasible), summary.thresholds.new_full((), math.inf)
    return accepted / summary.total, summary.thresholds[torch.searchsorted(summary.counts, accepted)]


def risk_at_coverage(
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    coverage: float,
    kind: RiskKind = "selective",
    form: RiskAtCoverageForm = "expected",
    at_least: bool = False,
) -> tuple[Tensor, Tensor]:
    """Risk of the surest samples at a coverage, and the threshold that reaches it.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        weight: See :func:`risk_coverage_summary`.
        coverage: Target in ``(0, 1]``, of n samples.
        kind: ``"selective"`` (loss per accepted sample) or ``"generalized"`` (loss per sample).
        form: Which samples are accepted. ``"expected"``: the ``ceil(coverage * n)`` surest; those missing from a group
            of ties are drawn from it, and the risk is the expected one. ``"at_least"``: the same with the whole group,
            as a threshold would. ``"torch_uncertainty"``: as ``"expected"``, without a guard against float slips in
            the product, so at times one sample more. ``"deep_gamblers"``: the ``round(coverage * n)`` surest, halves
            to the even number. ``"selectivenet"``: those strictly above the linear percentile ``100 (1 - coverage)``
            of the confidences, so never all of them.
        at_least: The same as ``form="at_least"``.

    Returns:
        Risk (float64 scalar) and threshold (scalar): accept where ``confidence >= threshold``. NaN and infinity when
        the form accepts no sample, and NaN with a warning when there are no samples.

    Raises:
        ConfigurationError: a target outside ``(0, 1]``, an unknown kind or form, or unusable samples.

    Example:
        >>> risk_at_coverage(torch.tensor([0.9, 0.8, 0.8, 0.6]), torch.tensor([0, 1, 0, 0]), coverage=0.5)
        (tensor(0.2500, dtype=torch.float64), tensor(0.8000))

    Reference:
        Geifman, El-Yaniv. SelectiveNet: A Deep Neural Network with an Integrated Reject Option. ICML 2019.
        Liu et al. Deep Gamblers: Learning to Abstain with Portfolio Theory. NeurIPS 2019.
    """
    check_fraction("coverage", coverage, zero=False)
    check_choice("kind", kind, RISK_KINDS)
    form = risk_at_coverage_form(form, at_least)
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary), summary.thresholds.new_full((), math.nan)
    accepted = _accepted_at_coverage(summary, coverage, form)
    if accepted == 0:
        return summary.counts.new_full((), math.nan), summary.thresholds.new_full((), math.inf)
    divisor = accepted if kind == "selective" else summary.total
    group = torch.searchsorted(summary.counts, accepted)
    return expected_losses(summary, accepted) / divisor, summary.thresholds[group]


def risk_at_coverage_form(form: RiskAtCoverageForm, at_least: bool) -> RiskAtCoverageForm:
    """Return the form that ``form`` and its older shorthand ``at_least`` ask for together."""
    check_choice("form", form, RISK_AT_COVERAGE_FORMS)
    if at_least and form not in ("expected", "at_least"):
        raise ConfigurationError(f"at_least=True is form='at_least', and form={form!r} was given; leave one out.")
    return "at_least" if at_least else form


def risks_at(summary: RiskCoverage, coverages: Tensor, kind: RiskKind = "selective") -> Tensor:
    """Expected risk at many coverages at once, shape ``(G,)``; each stands for ``coverage * n`` samples, not rounded.

    Args:
        summary: A summary of at least one sample.
        coverages: Each in ``(0, 1]``, shape ``(G,)``, float64.
        kind: ``"selective"`` or ``"generalized"`` risk.
    """
    accepted = (coverages * summary.total).minimum(summary.total)
    return expected_losses(summary, accepted) / (accepted if kind == "selective" else summary.total)


def expected_losses(summary: RiskCoverage, accepted: Tensor) -> Tensor:
    """Summed loss of the surest samples, in expectation over the order of ties.

    Args:
        summary: A summary of at least one sample.
        accepted: How many samples are accepted, each in ``(0, n]``, any shape, float64; need not be whole.

    Returns:
        Summed loss, the shape of ``accepted``, float64.
    """
    group = torch.searchsorted(summary.counts, accepted)
    before = (group - 1).clamp(min=0)
    first = group == 0
    start, start_loss = (values[before].masked_fill(first, 0) for values in (summary.counts, summary.losses))
    share = (accepted - start) / (summary.counts[group] - start)
    return start_loss + share * (summary.losses[group] - start_loss)


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


def _accepted_at_coverage(summary: RiskCoverage, coverage: float, form: RiskAtCoverageForm) -> Tensor:
    """How many samples a form accepts at a coverage; 0 where it accepts none."""
    total = summary.total
    if form == "selectivenet":
        return _above_percentile(summary, coverage)
    if form == "deep_gamblers":
        return torch.round(coverage * total).minimum(total)
    wanted = torch.ceil(coverage * total - (0 if form == "torch_uncertainty" else _SLIP)).clamp(min=1).minimum(total)
    return summary.counts[torch.searchsorted(summary.counts, wanted)] if form == "at_least" else wanted


def _above_percentile(summary: RiskCoverage, coverage: float) -> Tensor:
    """Count the samples strictly above the percentile, computed with the operations of ``numpy.percentile``."""
    position = (summary.total - 1) * ((100 - 100 * coverage) / 100)
    below = position.clamp(min=0).floor()
    ranks = torch.stack([summary.total - below, summary.total - below - 1]).clamp(min=1)
    low, high = summary.thresholds[torch.searchsorted(summary.counts, ranks)].double()
    groups = int((summary.thresholds.double() > torch.lerp(low, high, position - below)).sum())
    return summary.counts[groups - 1] if groups > 0 else summary.counts.new_zeros(())


def _last_rank_within(summary: RiskCoverage, group: int, risk: float, kind: RiskKind) -> Tensor:
    """Largest whole rank of a group of ties whose expected risk meets a target that the end of the group exceeds.

    The loss rises linearly inside the group from one that meets the target, so what is to solve is one equation.
    """
    counts, losses = summary.counts, summary.losses
    start, start_loss = (counts[group - 1], losses[group - 1]) if group > 0 else counts.new_zeros(2)
    slope = (losses[group] - start_loss) / (counts[group] - start)
    if kind == "selective":
        if slope <= risk:  # only rounding put the end above the target
            return start
        last = (start * slope - start_loss) / (slope - risk)
    else:
        last = start + (risk * summary.total - start_loss) / slope
    return torch.floor(last + _SLIP).maximum(start).minimum(counts[group])


def _before_first_violation(summary: RiskCoverage, risks: Tensor, risk: float, kind: RiskKind) -> Tensor:
    """How many samples come before the first rank whose expected risk is above the target."""
    first = 0
    if summary.total > UNSETTLED_RANKS:
        rank = summary.counts.new_tensor(UNSETTLED_RANKS + 1.0).minimum(summary.total)
        settled = expected_losses(summary, rank) / (rank if kind == "selective" else summary.total)
        first = UNSETTLED_RANKS + 1 if settled <= risk else 0
    # Inside a group the risk is monotone: where it is met at the start, it is exceeded at the end or nowhere.
    violated = ((risks > risk) & (summary.counts >= first)).nonzero()
    if violated.numel() == 0:
        return summary.total
    return _last_rank_within(summary, int(violated[0, 0]), risk, kind)
