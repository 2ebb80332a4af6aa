"""One threshold for one of several models, chosen on held-out samples by the generalized risk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.distillation import check_class_indices
from lightning_efficient.functional.risk_coverage import risk_coverage_summary

ErrorForm: TypeAlias = Literal["exact", "released"]


class GridChoice(NamedTuple):
    """A model and a threshold: answer with the class of the largest score where this is at least ``threshold``."""

    model: int
    """Position of the model among those given."""
    threshold: float
    """Infinity where nothing is to be accepted."""
    coverage: float
    """Share of the samples that are accepted."""
    error: float
    """Share of the samples that are accepted and wrong: the generalized risk."""


class _Candidates(NamedTuple):
    threshold: Tensor
    coverage: Tensor
    error: Tensor


def best_coverage_at_error(
    scores: Tensor | Sequence[Tensor],
    target: Tensor,
    thresholds: Tensor | None = None,
    *,
    risk: float,
    form: ErrorForm = "exact",
) -> GridChoice:
    """Model and threshold of the largest coverage, among those with a generalized risk of at most ``risk``.

    Of equal ones the first is kept, models before thresholds. Costs one sort of N values for each model; memory is
    O(N + T), beside the scores.

    Args:
        scores: Class scores of M models on the same N samples, such as probabilities: shape ``(M, N, K)``, or a
            sequence of ``(N, K)``. Half precision is cast to float32.
        target: Classes, integers of shape ``(N,)``.
        thresholds: Candidates, shape ``(T,)``, tried in this order and compared in the dtype of the scores; default all
            distinct scores of a model's answers, ascending, which no other threshold beats.
        risk: Largest share of the samples that may be accepted and wrong, in ``[0, 1]``.
        form: How the error is computed: ``exact`` as wrong and accepted samples over all; ``released``, for parity,
            as coverage minus the share of right and accepted samples, whose rounding refuses some pairs that meet the
            risk exactly.

    Returns:
        The choice; model 0 with the threshold infinity, which accepts nothing, where no pair accepts a sample at this
        risk.

    Raises:
        ConfigurationError: a risk outside ``[0, 1]``, an unknown form, or samples or thresholds that do not fit.

    Example:
        >>> first, second = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], [[0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]
        >>> choice = best_coverage_at_error(torch.tensor([first, second]), torch.tensor([0, 0, 0]), risk=0.0)
        >>> choice.model, round(choice.threshold, 2), round(choice.coverage, 2)
        (1, 0.7, 0.67)

    Reference:
        Gangrade, Kag, Saligrama. Selective Classification via One-Sided Prediction. AISTATS 2021, released code.
    """
    check_fraction("risk", risk, zero=True)
    best = GridChoice(0, math.inf, 0.0, 0.0)
    for model, candidates in _grid(scores, target, thresholds, form):
        coverage = candidates.coverage.where(candidates.error <= risk, 0.0)
        choice = _read(model, candidates, int(coverage.argmax()))
        if choice.error <= risk and choice.coverage > best.coverage:
            best = choice
    return best


def best_error_at_coverage(
    scores: Tensor | Sequence[Tensor],
    target: Tensor,
    thresholds: Tensor | None = None,
    *,
    coverage: float,
    form: ErrorForm = "exact",
) -> GridChoice:
    """Model and threshold of the smallest generalized risk, among those with a coverage of at least ``coverage``.

    Of equal ones the first is kept, models before thresholds. Costs one sort of N values for each model; memory is
    O(N + T), beside the scores.

    Args:
        scores: See :func:`best_coverage_at_error`.
        target: Classes, integers of shape ``(N,)``.
        thresholds: See :func:`best_coverage_at_error`.
        coverage: Least share of the samples to accept, in ``(0, 1]``.
        form: See :func:`best_coverage_at_error`.

    Returns:
        The choice.

    Raises:
        ConfigurationError: a coverage outside ``(0, 1]`` or one that no threshold reaches, an unknown form, or samples
            or thresholds that do not fit.

    Example:
        >>> first, second = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], [[0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]
        >>> choice = best_error_at_coverage(torch.tensor([first, second]), torch.tensor([0, 0, 0]), coverage=1.0)
        >>> choice.model, round(choice.threshold, 2), round(choice.error, 2)
        (1, 0.6, 0.33)

    Reference:
        Gangrade, Kag, Saligrama. Selective Classification via One-Sided Prediction. AISTATS 2021, released code.
    """
    check_fraction("coverage", coverage, zero=False)
    best, reached = None, 0.0
    for model, candidates in _grid(scores, target, thresholds, form):
        reached = max(reached, float(candidates.coverage.max()))
        error = candidates.error.where(candidates.coverage >= coverage, math.inf)
        choice = _read(model, candidates, int(error.argmin()))
        if choice.coverage >= coverage and (best is None or choice.error < best.error):
            best = choice
    if best is None:
        raise ConfigurationError(
            f"coverage={coverage!r} is reached by no threshold, the largest is {reached:g}; give lower thresholds."
        )
    return best


def _grid(
    scores: Tensor | Sequence[Tensor], target: Tensor, thresholds: Tensor | None, form: ErrorForm
) -> Iterator[tuple[int, _Candidates]]:
    """Yield each model's coverage and error at its candidates, in the order in which they are tried."""
    check_choice("form", form, get_args(ErrorForm))
    if thresholds is not None and (thresholds.ndim != 1 or thresholds.numel() == 0 or thresholds.isnan().any()):
        raise ConfigurationError(
            f"thresholds have shape {tuple(thresholds.shape)}; give one or more numbers, shape (T,), without NaN."
        )
    if len(scores) == 0 or len(target) == 0:
        raise ConfigurationError(f"there are {len(scores)} models and {len(target)} samples; give one of each or more.")
    for model, of_model in enumerate(scores):
        if of_model.ndim != 2:
            raise ConfigurationError(
                f"scores of model {model} have shape {tuple(of_model.shape)}; give (N, K) for each, or (M, N, K)."
            )
        check_class_indices(of_model, target)
        confidence, prediction = at_least_float32(of_model).max(1)
        yield model, _candidates(confidence, prediction != target, thresholds, form)


def _candidates(confidence: Tensor, wrong: Tensor, thresholds: Tensor | None, form: ErrorForm) -> _Candidates:
    summary = risk_coverage_summary(confidence, wrong)
    ascending, coverage, error = summary.thresholds.flip(0), summary.coverages.flip(0), summary.generalized_risks
    if form == "released":
        error = summary.coverages - (summary.counts - summary.losses) / summary.total
    error = error.flip(0)
    if thresholds is None:
        return _Candidates(ascending, coverage, error)
    # an entry for a threshold above all scores, which accepts nothing
    coverage, error = (torch.cat([values, values.new_zeros(1)]) for values in (coverage, error))
    thresholds = thresholds.to(ascending.device)
    position = torch.searchsorted(ascending, thresholds.to(ascending.dtype))
    return _Candidates(thresholds, coverage[position], error[position])


def _read(model: int, candidates: _Candidates, position: int) -> GridChoice:
    return GridChoice(model, *(values[position].item() for values in candidates))
