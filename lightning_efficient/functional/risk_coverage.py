"""The risk-coverage curve of an abstaining classifier, as one sorted summary that every number is read from.

A classifier that accepts a sample when its confidence is at least ``t`` has a *coverage*, the share of samples
accepted, and one of two risks: the *selective* risk is the mean loss of the accepted samples, the *generalized* (or
joint) risk is their summed loss over all samples. Samples of equal confidence enter together, so no number depends on
the order of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._precision import at_least_float32


class RiskCoveragePoints(NamedTuple):
    """The achievable points, from the surest sample to all samples; each a tensor of shape ``(M,)``."""

    coverage: Tensor
    selective_risk: Tensor
    generalized_risk: Tensor
    threshold: Tensor


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Cumulative counts and losses at every distinct confidence, surest first.

    Attributes:
        thresholds: Distinct confidences, descending, shape ``(M,)``, the dtype of the scores.
        counts: Samples (or their weight) with confidence at or above the threshold, shape ``(M,)``, float64.
        losses: Summed loss of the same samples, shape ``(M,)``, float64.
    """

    thresholds: Tensor
    counts: Tensor
    losses: Tensor

    @property
    def is_empty(self) -> bool:
        """Whether no sample was seen, in which case every number is NaN."""
        return self.counts.numel() == 0

    @property
    def total(self) -> Tensor:
        """Number of samples, or their total weight; a float64 scalar."""
        return self.counts[-1] if not self.is_empty else self.counts.new_zeros(())

    @property
    def total_loss(self) -> Tensor:
        """Summed loss of all samples; a float64 scalar."""
        return self.losses[-1] if not self.is_empty else self.losses.new_zeros(())

    @property
    def coverages(self) -> Tensor:
        """Share of samples accepted at each threshold, shape ``(M,)``."""
        return self.counts / self.total

    @property
    def selective_risks(self) -> Tensor:
        """Mean loss of the accepted samples at each threshold, shape ``(M,)``."""
        return self.losses / self.counts

    @property
    def generalized_risks(self) -> Tensor:
        """Summed loss of the accepted samples over the number of all samples, shape ``(M,)``."""
        return self.losses / self.total

    @classmethod
    def from_histogram(
        cls,
        counts: Tensor,
        losses: Tensor,
        low: float = 0.0,
        high: float = 1.0,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> RiskCoverage:
        """Make the summary from equal-width bins of the confidence.

        Samples of one bin count as tied, and the threshold that accepts them is the lower edge of the bin, as a number
        of the dtype of the confidences: a float32 score of 0.7 is below the float64 number 0.7.

        Args:
            counts: Samples (or weight) in each bin, ascending confidence, shape ``(B,)``.
            losses: Summed loss in each bin, shape ``(B,)``.
            low: Lower edge of the first bin.
            high: Upper edge of the last bin.
            dtype: Of the confidences that were counted, and so of the thresholds: float32 or float64.

        Example:
            >>> RiskCoverage.from_histogram(torch.tensor([2, 0, 3]), torch.tensor([1.0, 0.0, 0.0]), 0, 3)
            RiskCoverage(points=2, total=5, total_loss=1)
        """
        edges = bin_edges(counts.numel(), low, high, dtype=dtype, device=counts.device)
        surest_first = (counts > 0).nonzero().squeeze(1).flip(0)
        counts, losses = counts.double()[surest_first], losses.double()[surest_first]
        return cls(edges[surest_first], counts.cumsum(0), losses.cumsum(0))

    def __repr__(self) -> str:
        return f"RiskCoverage(points={self.counts.numel()}, total={self.total:g}, total_loss={self.total_loss:g})"


def risk_coverage_summary(confidence: Tensor, loss: Tensor, weight: Tensor | None = None) -> RiskCoverage:
    """Sort the samples once, group ties, and accumulate what all risk-coverage numbers need.

    Costs one sort: O(n log n) time and O(n) memory.

    Args:
        confidence: Higher means surer, shape ``(N,)``. Half precision is cast to float32; float64 stays.
        loss: Loss of each prediction in ``[0, 1]``, such as 1 for an error, shape ``(N,)``; bool, integer or float.
        weight: How many samples each one stands for, at least 0, shape ``(N,)``; default 1. Scale weights so that they
            sum to the number of samples: sums over ranks have no meaning for weights that sum to 1.

    Returns:
        The summary, on the device of ``confidence``.

    Raises:
        ConfigurationError: shapes that differ, a confidence that is not finite, a loss outside ``[0, 1]`` or a
            negative weight.

    Example:
        >>> summary = risk_coverage_summary(torch.tensor([0.9, 0.6, 0.9]), torch.tensor([0, 1, 1]))
        >>> summary.coverages
        tensor([0.6667, 1.0000], dtype=torch.float64)
        >>> summary.selective_risks
        tensor([0.5000, 0.6667], dtype=torch.float64)
    """
    confidence, loss, weight = checked_samples(confidence, loss, weight)
    order, last, thresholds = sort_into_groups(confidence)
    if weight is None:
        losses = loss[order].cumsum(0, dtype=torch.float64)
        return RiskCoverage(thresholds, last.double().add_(1), losses[last])
    weight = weight.double()
    counts, losses = weight[order].cumsum(0)[last], (loss.double() * weight)[order].cumsum(0)[last]
    filled = counts > torch.cat([counts.new_zeros(1), counts[:-1]])
    return RiskCoverage(thresholds[filled], counts[filled], losses[filled])


def risk_coverage_curve(
    scores: RiskCoverage | Tensor, loss: Tensor | None = None, weight: Tensor | None = None
) -> RiskCoveragePoints:
    """Return the achievable points of the risk-coverage curve.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        weight: See :func:`risk_coverage_summary`.

    Returns:
        ``coverage``, ``selective_risk``, ``generalized_risk`` and ``threshold``, surest first.

    Example:
        >>> curve = risk_coverage_curve(torch.tensor([0.9, 0.6, 0.7, 0.8]), torch.tensor([0, 1, 1, 0]))
        >>> curve.generalized_risk
        tensor([0.0000, 0.0000, 0.2500, 0.5000], dtype=torch.float64)
    """
    summary = as_summary(scores, loss, weight)
    return RiskCoveragePoints(summary.coverages, summary.selective_risks, summary.generalized_risks, summary.thresholds)


def as_summary(scores: RiskCoverage | Tensor, loss: Tensor | None, weight: Tensor | None) -> RiskCoverage:
    """Return ``scores`` if it is a summary already, else sort the samples."""
    if isinstance(scores, RiskCoverage):
        if loss is not None or weight is not None:
            raise ConfigurationError("A RiskCoverage summary holds its losses already; pass it alone.")
        return scores
    if loss is None:
        raise ConfigurationError("A confidence needs the loss of each sample; pass both, or a RiskCoverage summary.")
    return risk_coverage_summary(scores, loss, weight)


def sort_into_groups(confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort confidences, surest first, into groups of ties.

    Args:
        confidence: Shape ``(N,)``, float32 or float64, without NaN.

    Returns:
        The order ``(N,)``, the place in it of the last member of each of the M groups ``(M,)``, both int64, and the
        confidence of each group ``(M,)``.
    """
    keys, order = _descending_keys(confidence).sort()
    last = _ends_of_ties(keys)
    return order, last, _key_to_score(~keys[last], confidence.dtype)


def bin_edges(bins: int, low: float, high: float, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the lower edge of each of some equal-width bins, ascending, rounded to a dtype; shape ``(B,)``."""
    return (low + (high - low) * torch.arange(bins, dtype=torch.float64, device=device) / bins).to(dtype)


def bin_indices(confidence: Tensor, edges: Tensor, low: float, high: float) -> Tensor:
    """Return the last bin whose edge each confidence reaches, compared as they are, and 0 where it reaches none.

    Args:
        confidence: Shape ``(N,)``, float32 or float64.
        edges: What :func:`bin_edges` gives for the dtype of the confidence, shape ``(B,)``, with -inf for the first.
        low: See :func:`bin_edges`.
        high: See :func:`bin_edges`.

    Returns:
        Index, int64 ``(N,)``.
    """
    bins = len(edges)
    scale, slip = bins / (high - low), 8 * torch.finfo(edges.dtype).eps * max(abs(low), abs(high))
    if slip * scale > 0.25:  # bins hardly wider than the rounding of their edges
        return torch.bucketize(confidence, edges[1:], right=True)
    # Several times faster than a search: the product, raised by more than all rounding, is right or one too high.
    index = (confidence - (low - slip)).mul_(scale).clamp_(0, bins - 1).long()
    return index.sub_((confidence < edges.index_select(0, index)).long())


def are_errors(loss: Tensor) -> bool:
    """Whether every loss is 0 or 1, so that the counts of a summary say all of them."""
    return not loss.is_floating_point() or bool(((loss == 0) | (loss == 1)).all())


def checked_samples(
    confidence: Tensor, loss: Tensor, weight: Tensor | None, *, within: str = ""
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Raise on shapes or values that would give a wrong number silently, then cast.

    Args:
        confidence: See :func:`risk_coverage_summary`.
        loss: See :func:`risk_coverage_summary`.
        weight: See :func:`risk_coverage_summary`.
        within: What an index in a message counts in, such as ``" of the batch"``.
    """
    if confidence.ndim != 1 or loss.shape != confidence.shape or (weight is not None and weight.shape != loss.shape):
        shapes = [tuple(values.shape) for values in (confidence, loss, weight) if values is not None]
        raise ConfigurationError(f"confidence, loss and weight must share one shape (N,), got {shapes}.")
    if confidence.numel() > 0:
        # A finite sum has finite terms, and takes one pass where isfinite().all() takes two; a sum may also overflow.
        if not math.isfinite(confidence.sum(dtype=torch.promote_types(confidence.dtype, torch.float32))):
            _refuse_not_finite(confidence, within)
        if loss.dtype != torch.bool and not (loss.min() >= 0 and loss.max() <= 1):
            message = f"loss must lie in [0, 1], got values from {loss.min()} to {loss.max()}; rescale it."
            raise ConfigurationError(message)
        if weight is not None and not (weight.min() >= 0 and weight.max() < float("inf")):
            raise ConfigurationError(f"weight must be finite and at least 0, got {weight.min()} to {weight.max()}.")
    return cast_samples(confidence, loss, weight)


def _refuse_not_finite(confidence: Tensor, within: str) -> None:
    indices = (~torch.isfinite(confidence)).nonzero()
    if len(indices) == 0:
        return
    count = "1 value that is" if len(indices) == 1 else f"{len(indices)} values that are"
    where = f"the first at index {int(indices[0])}{within}"
    reason = "NaN and infinity have no rank, so find why the model fails"
    raise ConfigurationError(f"confidence holds {count} not finite, {where}; {reason}.")


def cast_samples(confidence: Tensor, loss: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast half precision, where every rank above 2048 would be rounded, to float32; 0/1 losses take one byte each."""
    if loss.dtype == torch.bool:
        loss = loss.view(torch.uint8)
    elif loss.dtype != torch.uint8:
        loss = at_least_float32(loss)
    return at_least_float32(confidence), loss, None if weight is None else at_least_float32(weight)


def _descending_keys(scores: Tensor) -> Tensor:
    """Integers in the reverse order of the scores: torch sorts integers several times faster than floats on a CPU."""
    integer = torch.int64 if scores.dtype == torch.float64 else torch.int32
    # Adding zero turns -0.0 into 0.0, which is its tie.
    return ~_flip_negative((scores + 0.0).view(integer))


def _key_to_score(keys: Tensor, dtype: torch.dtype) -> Tensor:
    return _flip_negative(keys).view(dtype)


def _flip_negative(bits: Tensor) -> Tensor:
    """Reverse the order of negative floats read as signed integers, which sorts them as floats; its own inverse."""
    limits = torch.iinfo(bits.dtype)
    flipped = bits >> (limits.bits - 1)
    flipped &= limits.max
    flipped ^= bits
    return flipped


def _ends_of_ties(values: Tensor) -> Tensor:
    """Index of the last member of every run of equal values, shape ``(M,)``."""
    ends = torch.ones_like(values, dtype=torch.bool)
    torch.ne(values[1:], values[:-1], out=ends[:-1])
    return ends.nonzero().squeeze(1)
