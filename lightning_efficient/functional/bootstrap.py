"""Bootstrap intervals of anything that is read from a risk-coverage summary, without sorting again.

A resample draws n of the n samples, with replacement. It holds how often each of them was drawn, so the order of the
confidences stays, and its summary is a cumulative sum. Where all losses are 0 or 1, a group of ties is known by how
many of its samples are right and how many wrong; a summary tells both, and only their counts are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.risk_coverage import (
    RiskCoverage,
    are_errors,
    as_summary,
    checked_samples,
    risk_coverage_summary,
    sort_into_groups,
)
from lightning_efficient.functional.risk_coverage_area import not_a_number

# Counts of all resamples are drawn at once where there are this many times fewer cells than samples.
_FEW_CELLS = 16
_ELEMENTS = 4_000_000


def bootstrap_interval(
    statistic: Callable[[RiskCoverage], Tensor],
    scores: RiskCoverage | Tensor,
    loss: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int | torch.Generator = 0,
) -> tuple[Tensor, Tensor]:
    """Percentile interval of a statistic over resamples of the same number of samples.

    Costs one evaluation of the statistic per resample; O(n) memory, and not O(n * resamples).

    Args:
        statistic: Reads a tensor of fixed shape from a summary, such as :func:`aurc`.
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary. A summary is taken to be of losses that
            are 0 or 1 and of samples without weights, binned or not. It cannot tell two losses of 1/2 from a 0 and a 1,
            nor a sample of weight 4 from four samples: where its sums are whole it is taken, and the interval is then a
            wrong one, half as wide for that weight. Give such samples as a confidence, a loss and a weight.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence, and then of any value.
        weight: See :func:`risk_coverage_summary`; a sample is drawn with its weight.
        level: Share of the resamples inside the interval, in ``(0, 1)``.
        resamples: How many to draw; the ends of the interval carry noise of their own that falls with it.
        seed: Seed, or a generator, on whose device the samples are then drawn.

    Returns:
        Low and high end, each of the shape of the statistic, float64. Resamples for which the statistic is NaN are
        left out. NaN with a warning when there are no samples.

    Raises:
        ConfigurationError: a level outside ``(0, 1)``, no resamples, unusable samples, or a summary that does not hold
            whole sums of samples and errors, which is all that can be seen of it.

    Example:
        >>> from lightning_efficient.functional.risk_coverage_area import augrc
        >>> generator = torch.Generator().manual_seed(0)
        >>> confidence = torch.rand(500, generator=generator)
        >>> error = torch.rand(500, generator=generator) > confidence
        >>> low, high = bootstrap_interval(augrc, confidence, error)
        >>> print(f"{low:.3f} to {high:.3f}, measured {augrc(confidence, error):.3f}")
        0.152 to 0.197, measured 0.173

    Reference:
        Efron, Tibshirani. An Introduction to the Bootstrap. Chapman and Hall, 1993.
    """
    if not 0 < level < 1:
        raise ConfigurationError(f"level={level!r} must lie between 0 and 1, such as 0.95.")
    if resamples < 1:
        raise ConfigurationError(f"resamples={resamples!r} must be at least 1, such as 1000.")
    cells = _cells(scores, loss, weight)
    if cells.members.numel() == 0:
        return (nan := not_a_number(risk_coverage_summary(*torch.zeros(2, 0)))), nan
    generator = seed if isinstance(seed, torch.Generator) else _generator(seed, cells.members.device)
    drawn = [statistic(summary) for summary in cells.to(generator.device).resample(resamples, generator)]
    values = torch.stack(drawn).double()
    tail = (1 - level) / 2
    low, high = values.nanquantile(values.new_tensor([tail, 1 - tail]), dim=0)
    return low, high


@dataclass(frozen=True)
class _Cells:
    """What is drawn: cells of samples that no summary tells apart, surest first.

    ``members (C,)`` int64 says how many samples each holds, ``counts`` and ``losses (C,)`` float64 what one of them
    adds; ``ends (M,)`` int64 is the last cell of each group of ties, and ``thresholds (M,)`` its confidence.
    """

    members: Tensor
    counts: Tensor
    losses: Tensor
    ends: Tensor
    thresholds: Tensor

    def to(self, device: torch.device) -> _Cells:
        return _Cells(*(values.to(device) for values in vars(self).values()))

    def resample(self, resamples: int, generator: torch.Generator) -> Iterator[RiskCoverage]:
        few = len(self.members) * _FEW_CELLS <= int(self.members.sum())
        for drawn in (self._draw_counts if few else self._draw_samples)(resamples, generator):
            counts, losses = ((drawn * values).cumsum(0)[self.ends] for values in (self.counts, self.losses))
            filled = counts > torch.cat([counts.new_zeros(1), counts[:-1]])
            yield RiskCoverage(self.thresholds[filled], counts[filled], losses[filled])

    def _draw_samples(self, resamples: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Draw samples and count them by cell: O(n) per resample."""
        cell_of = torch.arange(len(self.members), device=generator.device).repeat_interleave(self.members)
        for _ in range(resamples):
            chosen = torch.randint(len(cell_of), (len(cell_of),), generator=generator, device=generator.device)
            yield torch.bincount(cell_of[chosen], minlength=len(self.members))

    def _draw_counts(self, resamples: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Draw the counts, each from a binomial given those before it: O(C) per resample, whatever n."""
        chunk = max(1, _ELEMENTS // len(self.members))
        for start in range(0, resamples, chunk):
            size = min(chunk, resamples - start)
            left = int(self.members.sum())
            undrawn = torch.full((size,), float(left), dtype=torch.float64, device=generator.device)
            columns = []
            for members in self.members.tolist():
                columns.append(torch.binomial(undrawn, torch.full_like(undrawn, members / left), generator))
                undrawn = undrawn - columns[-1]
                left -= members
            yield from torch.stack(columns, dim=1)


def _cells(scores: RiskCoverage | Tensor, loss: Tensor | None, weight: Tensor | None) -> _Cells:
    if isinstance(scores, RiskCoverage) or loss is None or (weight is None and are_errors(loss)):
        return _cells_of_summary(as_summary(scores, loss, weight))
    confidence, loss, weight = checked_samples(scores, loss, weight)
    order, ends, thresholds = sort_into_groups(confidence)
    counts = torch.ones_like(loss, dtype=torch.float64) if weight is None else weight.double()[order]
    return _Cells(torch.ones_like(order), counts, counts * loss[order], ends, thresholds)


def _cells_of_summary(summary: RiskCoverage) -> _Cells:
    """Two cells for each group of ties, the right ones first; empty ones are left out."""
    zero = summary.counts.new_zeros(1)
    wrong, sizes = summary.losses.diff(prepend=zero), summary.counts.diff(prepend=zero)
    if not (torch.equal(sizes, sizes.round()) and torch.equal(wrong, wrong.round())):
        message = "The summary is not of whole samples and errors; give bootstrap_interval the confidence and the loss."
        raise ConfigurationError(message)
    members = torch.stack([sizes - wrong, wrong], dim=1).flatten().long()
    losses = torch.tensor([0.0, 1.0], dtype=torch.float64, device=members.device).repeat(len(sizes))
    filled = members > 0
    ends = filled.long().cumsum(0)[1::2] - 1
    members, losses = members[filled], losses[filled]
    return _Cells(members, torch.ones_like(losses), losses, ends, summary.thresholds)


def _generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)
