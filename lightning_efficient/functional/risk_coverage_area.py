"""Areas under the risk-coverage curve: AURC and AUGRC, and their excess over a perfect ranking.

Four integration conventions are in use, and the published figures of one are not those of another:

* ``"expected"``: the mean over ``k`` of the risk of the ``k`` surest samples, in expectation over the order of ties.
* ``"torch_uncertainty"``: the trapezoid over ``k/n`` from ``1/n`` to 1, divided by ``1 - 1/n``, as that library does;
  ties are again taken in expectation, where the library depends on the order of the input.
* ``"fd_shifts"``: the trapezoid over the achievable points with a flat start, as the FD-Shifts benchmark does before
  its display factor of 1000.
* ``"fd_shifts_achievable"``: over the lower convex hull of the points (accepted, summed loss), which thresholds reach
  that are drawn by chance; between them the loss rises linearly. FD-Shifts calls it the achievable AURC.
"""

from __future__ import annotations

import warnings
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.risk_coverage import RiskCoverage, as_summary

Form: TypeAlias = Literal["expected", "torch_uncertainty", "fd_shifts", "fd_shifts_achievable"]
Oracle: TypeAlias = Literal["finite", "asymptotic"]

FORMS: tuple[Form, ...] = ("expected", "torch_uncertainty", "fd_shifts", "fd_shifts_achievable")
ORACLES: tuple[Oracle, ...] = ("finite", "asymptotic")


def aurc(
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    form: Form = "expected",
) -> Tensor:
    """Area under the selective risk-coverage curve; lower is better, in ``[0, 1]``.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        weight: See :func:`risk_coverage_summary`.
        form: How to integrate; see the head of this module.

    Returns:
        Scalar, float64; NaN with a warning when there are no samples.

    Raises:
        ConfigurationError: unknown form or unusable samples.

    Example:
        >>> aurc(torch.tensor([0.9, 0.9, 0.9, 0.7, 0.7, 0.5]), torch.tensor([0, 1, 0, 1, 0, 1]))
        tensor(0.3792, dtype=torch.float64)

    Reference:
        Geifman, Uziel, El-Yaniv. Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers. ICLR 2019.
    """
    check_choice("form", form, FORMS)
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary)
    if form == "fd_shifts":
        risks = summary.selective_risks
        flat_start = summary.coverages[0] * risks[0]
        return flat_start + torch.trapezoid(risks, summary.coverages)
    if form == "fd_shifts_achievable":
        return _area_of_hull(summary)
    summed = _summed_risk(summary).sum()
    if form == "torch_uncertainty":
        return _without_half_ends(summary, summed, summary.selective_risks[0], summary.selective_risks[-1])
    return summed / summary.total


def eaurc(
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    oracle: Oracle = "finite",
    form: Form = "expected",
) -> Tensor:
    """Excess AURC over a perfect ranking of the same predictions; lower is better.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence. For losses other than 0 and 1 the perfect
            ranking is that of as many whole errors, a lower bound.
        weight: See :func:`risk_coverage_summary`.
        oracle: ``"finite"`` is the perfect ranking of these n samples, for which the excess is exactly 0;
            ``"asymptotic"`` is ``rho + (1 - rho) log(1 - rho)`` at error rate ``rho``, as first published.
        form: How to integrate the AURC; those other than ``"expected"`` go with the asymptotic oracle, as in
            FD-Shifts, and may then be below 0.

    Returns:
        Scalar, float64; NaN with a warning when there are no samples.

    Raises:
        ConfigurationError: unknown oracle or form, a form that the oracle lacks, or unusable samples.

    Example:
        >>> eaurc(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 1]))
        tensor(0., dtype=torch.float64)

    Reference:
        Geifman, Uziel, El-Yaniv. Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers. ICLR 2019.
    """
    check_oracle(oracle, form)
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary)
    if oracle == "asymptotic":
        risk = summary.selective_risks[-1]
        return aurc(summary, form=form) - (risk + torch.special.xlog1py(1 - risk, -risk))
    # The difference of group to group, and not of two sums, is what makes a perfect ranking come out as 0 exactly.
    return (_summed_risk(summary) - _summed_oracle_risk(summary)).sum() / summary.total


def augrc(
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    form: Form = "expected",
) -> Tensor:
    """Area under the generalized risk-coverage curve; lower is better, in ``[0, 1/2]``.

    It is the expected joint risk of a random coverage, and does not weigh the surest samples as heavily as AURC.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        weight: See :func:`risk_coverage_summary`.
        form: ``"expected"`` and ``"fd_shifts"`` are here the same trapezoid from the origin;
            ``"torch_uncertainty"`` starts at ``1/n``; ``"fd_shifts_achievable"`` follows the convex hull.

    Returns:
        Scalar, float64; NaN with a warning when there are no samples.

    Raises:
        ConfigurationError: unknown form or unusable samples.

    Example:
        >>> augrc(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 1]))
        tensor(0.1250, dtype=torch.float64)

    Reference:
        Traub et al. Overcoming Common Flaws in the Evaluation of Selective Classification Systems. NeurIPS 2024.
    """
    check_choice("form", form, FORMS)
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary)
    if form == "fd_shifts_achievable":
        counts, losses = _lower_hull(summary)
        return torch.trapezoid(losses, counts) / summary.total**2
    area = _double_area(summary)
    if form != "torch_uncertainty":
        return area / (2 * summary.total**2)
    # Over ranks instead of over thresholds, each group of ties has one more half of its loss.
    summed = (area + summary.total_loss) / (2 * summary.total)
    first = summary.selective_risks[0] / summary.total
    return _without_half_ends(summary, summed, first, summary.generalized_risks[-1])


def eaugrc(scores: RiskCoverage | Tensor, loss: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Excess AUGRC over a perfect ranking of the same predictions; lower is better.

    A perfect ranking at error rate ``rho`` has the AUGRC ``rho^2 / 2``, of any number of samples, so that there is one
    oracle, for which the excess is exactly 0.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence. For losses other than 0 and 1 the perfect
            ranking is that of as many whole errors, a lower bound.
        weight: See :func:`risk_coverage_summary`.

    Returns:
        Scalar, float64; NaN with a warning when there are no samples.

    Raises:
        ConfigurationError: unusable samples.

    Example:
        >>> eaugrc(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 0, 1]))
        tensor(0.0625, dtype=torch.float64)

    Reference:
        Traub et al. Overcoming Common Flaws in the Evaluation of Selective Classification Systems. NeurIPS 2024.
    """
    summary = as_summary(scores, loss, weight)
    if summary.is_empty:
        return not_a_number(summary)
    # Subtracted before the division, of whole numbers, so that a perfect ranking comes out as 0 exactly.
    return (_double_area(summary) - summary.total_loss**2) / (2 * summary.total**2)


def check_oracle(oracle: Oracle, form: Form) -> None:
    """Raise on an unknown oracle or form, and on a form for which the oracle is not defined."""
    check_choice("oracle", oracle, ORACLES)
    check_choice("form", form, FORMS)
    if oracle == "finite" and form != "expected":
        raise ConfigurationError(f"form={form!r} has no finite oracle; use oracle='asymptotic' or form='expected'.")


def not_a_number(summary: RiskCoverage) -> Tensor:
    """Return NaN, the value of every number over no samples, and warn."""
    warnings.warn("No samples were given: every risk-coverage number is NaN.", UserWarning, stacklevel=3)
    return summary.counts.new_full((), float("nan"))


def _double_area(summary: RiskCoverage) -> Tensor:
    """Sum of both ends of each step: twice the area of the trapezoids from the origin, in units of 1 / n^2."""
    sizes = _steps(summary.counts)
    return 2 * torch.dot(sizes, summary.losses) - torch.dot(sizes, _steps(summary.losses))


def _area_of_hull(summary: RiskCoverage) -> Tensor:
    """Integrate the selective risk over the coverage between points from which the loss rises linearly."""
    counts, losses = _lower_hull(summary)
    sizes, gains = counts.diff(), losses.diff()
    offsets = losses[:-1] - counts[:-1] * gains / sizes
    # The risk is (L + (k - K) b) / k; the first piece, from the origin, has a constant one.
    pieces = gains[1:] + offsets[1:] * torch.log(counts[2:] / counts[1:-1])
    return (gains[0] + pieces.sum()) / summary.total


def _lower_hull(summary: RiskCoverage) -> tuple[Tensor, Tensor]:
    """Counts and losses at the corners of the lower convex hull, the origin first."""
    corners = [(0.0, 0.0)]
    for count, loss in zip(summary.counts.tolist(), summary.losses.tolist(), strict=True):
        while len(corners) > 1:
            (count_a, loss_a), (count_b, loss_b) = corners[-2:]
            if (loss_b - loss_a) * (count - count_b) < (loss - loss_b) * (count_b - count_a):
                break
            corners.pop()
        corners.append((count, loss))
    counts, losses = torch.tensor(corners, dtype=torch.float64, device=summary.counts.device).T
    return counts, losses


def _summed_risk(summary: RiskCoverage) -> Tensor:
    """Sum over the members of each group of ties of the expected risk at their rank, shape ``(M,)``."""
    sums = summary.losses / summary.counts
    sizes = _steps(summary.counts)
    tied = (sizes != 1).nonzero().squeeze(1)
    upper, loss = summary.counts[tied], summary.losses[tied]
    sums[tied] = _sum_over_ranks(upper - sizes[tied], upper, loss - _steps(summary.losses)[tied], loss)
    return sums


def _summed_oracle_risk(summary: RiskCoverage) -> Tensor:
    """The same for the ranking that puts all errors last, where k samples have ``max(0, k - correct)`` errors."""
    correct = summary.total - summary.total_loss
    upper = summary.counts.clamp(min=correct)
    sizes = upper - (summary.counts - _steps(summary.counts)).clamp(min=correct)
    sums = (upper - correct) / upper
    several = ((sizes != 0) & (sizes != 1)).nonzero().squeeze(1)
    upper, lower = upper[several], upper[several] - sizes[several]
    sums[several] = _sum_over_ranks(lower, upper, lower - correct, upper - correct)
    return sums


def _sum_over_ranks(lower: Tensor, upper: Tensor, loss_lower: Tensor, loss_upper: Tensor) -> Tensor:
    """Sum the risk over the ranks ``lower < k <= upper``, between which the summed loss rises linearly; elementwise.

    The risk at rank k is ``(L + (k - K) b) / k = b + (L - K b) / k`` with K the lower rank, L its loss and b the slope;
    the sum of 1/k is a difference of harmonic numbers, which ``H(x) = digamma(x + 1) + const`` extends to weights.
    """
    gain = loss_upper - loss_lower
    offset = loss_lower - lower * (gain / (upper - lower))
    return gain + offset * (torch.digamma(upper + 1) - torch.digamma(lower + 1))


def _without_half_ends(summary: RiskCoverage, summed: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Mean of the trapezoids between ranks 1 and n; NaN for a single sample, as in torch-uncertainty."""
    return (summed - (first + last) / 2) / (summary.total - 1)


def _steps(cumulative: Tensor) -> Tensor:
    steps = cumulative.clone()
    steps[1:] -= cumulative[:-1]
    return steps
