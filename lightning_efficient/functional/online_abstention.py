"""Versions of a set of abstaining classifiers, kept on a stream whose labels are shown only after an abstention.

Pure updates with any leading dimensions, so that one call may serve many streams. An expert is a classifier with its
threshold; it answers with a class, or abstains. An expert that was seen to err too often is erased, and the others lose
weight whenever they abstain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional._precision import at_least_float32

ABSTAIN = -1
"""The prediction that stands for no answer."""

Explore: TypeAlias = Literal["sqrt"] | float
"""How often to abstain for the label alone: a constant probability, or ``"sqrt"`` for ``min(1 / sqrt(t), 0.1)``."""

_MOST_EXPLORATION = 0.1


class VersionSpace(NamedTuple):
    """Which experts are left, and what was seen of all; see :func:`observe`."""

    alive: Tensor
    """Bool ``(..., N)``."""
    observed_errors: Tensor
    """Errors seen per expert, int64 ``(..., N)``; those of erased experts go on counting."""
    feedback_count: Tensor
    """Labels that were used, int64 ``(...)``."""
    emptied: Tensor
    """Bool ``(...)``: the label would have erased the last expert, and was ignored."""


class Hindsight(NamedTuple):
    """A run against its experts, once all labels are known; counts of rounds. See :func:`hindsight`."""

    mistakes: int
    """Wrong answers of the run."""
    abstentions: int
    """Rounds without an answer."""
    best_mistakes: int
    """Mistakes of the best expert: fewest mistakes, then fewest abstentions."""
    best_abstentions: int
    """Abstentions of the best expert."""
    mistake_regret: int
    """``mistakes - best_mistakes``."""
    excess_abstentions: int | None
    """Abstentions beyond those of the expert with fewest among those with no more mistakes; None without one."""
    excess_mistakes: int | None
    """Mistakes beyond those of the expert with fewest among those with no more abstentions; None without one."""


def expert_predictions(scores: Tensor, thresholds: Tensor | Sequence[float]) -> Tensor:
    """Return what every pair of a classifier and a threshold says: the best class if its score reaches the threshold.

    Args:
        scores: Scores of ``M`` classifiers, any float dtype: ``(M, K)`` of one sample, or ``(M, K, N)`` of ``N``.
        thresholds: ``T`` thresholds in the units of the scores. They are compared in the dtype of the scores, at least
            float32, so that a float32 score of 0.9 reaches the Python float 0.9.

    Returns:
        Class or -1 for an abstention, int64, ``(M * T,)`` for one sample, else ``(N, M * T)``; all thresholds of the
        first classifier come first.

    Raises:
        ConfigurationError: another number of dimensions, or no thresholds.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
        >>> expert_predictions(scores, [0.5, 0.8]).tolist()
        [0, 0, 1, -1]
    """
    scores = at_least_float32(scores)
    limits = torch.as_tensor(thresholds, dtype=scores.dtype, device=scores.device)
    if scores.ndim not in (2, 3):
        raise ConfigurationError(f"scores has the shape {tuple(scores.shape)}; give (M, K) or (M, K, N).")
    if limits.ndim != 1 or not len(limits):
        raise ConfigurationError(f"thresholds has the shape {tuple(limits.shape)}; give one or more, in one dimension.")
    best = scores.max(dim=1)
    said = torch.where(
        best.values[:, None] >= limits.view(-1, *[1] * (scores.ndim - 2)), best.indices[:, None], ABSTAIN
    )
    return said.flatten(0, 1).movedim(0, -1)


def exploration_rate(round_number: int, explore: Explore) -> float:
    """Return the probability to abstain for the label alone.

    Args:
        round_number: Rounds so far with this one, 1 or more.
        explore: A constant in ``[0, 1]``, or ``"sqrt"`` for ``min(1 / sqrt(round_number), 0.1)``.

    Returns:
        A probability.

    Example:
        >>> exploration_rate(1, "sqrt"), exploration_rate(400, "sqrt"), exploration_rate(400, 0.06)
        (0.1, 0.05, 0.06)
    """
    return min(round_number**-0.5, _MOST_EXPLORATION) if isinstance(explore, str) else float(explore)


def check_exploration(explore: Explore, eta: float | None) -> None:
    """Raise unless ``explore`` is in ``[0, 1]`` or ``"sqrt"``, and the rate of the weights in ``[0, 1)``."""
    if isinstance(explore, str):
        check_choice("explore", explore, ["sqrt"])
    else:
        check_fraction("explore", explore, zero=True)
    if eta is None and explore == 1:
        raise ConfigurationError("explore=1 leaves no rate for the weights; give eta in [0, 1), such as eta=0.05.")
    if eta is not None and not 0 <= eta < 1:
        raise ConfigurationError(f"eta={eta!r} is outside [0, 1).")


def expert_probabilities(log_weights: Tensor, alive: Tensor) -> Tensor:
    """Return the probability to follow each expert.

    Args:
        log_weights: ``(..., N)``, up to a constant of each stream, any float dtype.
        alive: Bool ``(..., N)``, at least one per stream.

    Returns:
        ``(..., N)``, sums to 1, exactly 0 for erased experts.
    """
    return log_weights.masked_fill(~alive, -math.inf).softmax(-1)


def draw_expert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the expert that a uniform number picks.

    Args:
        probabilities: ``(..., N)``; need not sum to 1.
        uniform: ``(...)``, in ``[0, 1)``, same dtype.

    Returns:
        Index, int64 ``(...)``; never one of probability 0.

    Example:
        >>> draw_expert(torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]), torch.tensor(0.6)).item()
        3
    """
    reached = probabilities.cumsum(-1)
    return torch.searchsorted(reached, uniform.unsqueeze(-1) * reached[..., -1:], right=True).squeeze(-1)


def abstention_step(log_weights: Tensor, abstained: Tensor, eta: float | Tensor) -> Tensor:
    """Return the log-weights after a round: times ``1 - eta`` for those who abstained (the step of Prod).

    Args:
        log_weights: ``(..., N)``, float64 advised.
        abstained: Bool ``(..., N)``.
        eta: Rate in ``[0, 1)``, broadcast against the weights.

    Returns:
        ``(..., N)``.

    Example:
        >>> abstention_step(torch.zeros(2), torch.tensor([True, False]), 0.5).exp()
        tensor([0.5000, 1.0000])

    Reference:
        Cesa-Bianchi, Mansour, Stoltz. Improved second-order bounds for prediction with expert advice. 2007.
    """
    step = torch.as_tensor(-eta, dtype=log_weights.dtype, device=log_weights.device).log1p()
    return log_weights + abstained * step


def allowed_errors(feedback_count: Tensor, tolerance: float) -> Tensor:
    """Return how many observed errors an expert survives, ``θc + sqrt(2θc)``; 0 without tolerance.

    Args:
        feedback_count: Labels used, any shape.
        tolerance: Share of errors θ that is forgiven, in ``[0, 1]``.

    Returns:
        Same shape, float64.

    Example:
        >>> allowed_errors(torch.tensor([0, 50]), 0.01).tolist()
        [0.0, 1.5]
    """
    expected = tolerance * feedback_count.double()
    return expected + (2 * expected).sqrt()


def observe(
    alive: Tensor, observed_errors: Tensor, feedback_count: Tensor, wrong: Tensor, tolerance: float
) -> VersionSpace:
    """Count a label and erase the experts that erred on it and have erred too often.

    A label that would erase all that are left is ignored: nothing changes but ``emptied``.

    Args:
        alive: Bool ``(..., N)``.
        observed_errors: Int64 ``(..., N)``.
        feedback_count: Int64 ``(...)``.
        wrong: Bool ``(..., N)``: answered, and not with the label.
        tolerance: As in :func:`allowed_errors`; 0 erases at the first error.

    Returns:
        The new state.

    Example:
        >>> alive, errors = torch.tensor([True, True]), torch.tensor([0, 0])
        >>> new = observe(alive, errors, torch.tensor(0), wrong=torch.tensor([True, False]), tolerance=0.0)
        >>> new.alive.tolist(), new.observed_errors.tolist(), new.feedback_count.item(), new.emptied.item()
        ([False, True], [1, 0], 1, False)

    Reference:
        Gangrade, Kag, Cutkosky, Saligrama. Online Selective Classification with Limited Feedback. NeurIPS 2021,
        released code.
    """
    count = feedback_count + 1
    errors = observed_errors + wrong
    kept = alive & ~(wrong & (errors > allowed_errors(count, tolerance).unsqueeze(-1)))
    emptied = ~kept.any(-1)
    return VersionSpace(
        alive=torch.where(emptied.unsqueeze(-1), alive, kept),
        observed_errors=torch.where(emptied.unsqueeze(-1), observed_errors, errors),
        feedback_count=torch.where(emptied, feedback_count, count),
        emptied=emptied,
    )


def hindsight(actions: Tensor, predictions: Tensor, labels: Tensor) -> Hindsight:
    """Compare a run with its experts, which needs the labels of all rounds, also of those that were answered.

    Args:
        actions: What was said in each round, int64 ``(T,)``, -1 for an abstention.
        predictions: What the experts said, int64 ``(T, N)``.
        labels: The truth, int64 ``(T,)``.

    Returns:
        Counts; the run may do better than every expert on one of them, so differences may be negative.

    Example:
        >>> experts = torch.tensor([[0, -1], [1, 1], [0, -1]])
        >>> hindsight(torch.tensor([-1, 1, -1]), experts, torch.tensor([0, 1, 1]))
        Hindsight(mistakes=0, abstentions=2, best_mistakes=0, best_abstentions=2, mistake_regret=0, \
excess_abstentions=0, excess_mistakes=0)

    Reference:
        Gangrade, Kag, Cutkosky, Saligrama. Online Selective Classification with Limited Feedback. NeurIPS 2021,
        released code.
    """
    mistakes, abstentions = (int(count) for count in _outcome(actions[:, None], labels))
    errors, silent = (count.tolist() for count in _outcome(predictions, labels))
    pairs = list(zip(errors, silent, strict=True))
    best_mistakes, best_abstentions = min(pairs)
    fewest_abstentions = min((quiet for wrong, quiet in pairs if wrong <= mistakes), default=None)
    fewest_mistakes = min((wrong for wrong, quiet in pairs if quiet <= abstentions), default=None)
    return Hindsight(
        mistakes=mistakes,
        abstentions=abstentions,
        best_mistakes=best_mistakes,
        best_abstentions=best_abstentions,
        mistake_regret=mistakes - best_mistakes,
        excess_abstentions=None if fewest_abstentions is None else abstentions - fewest_abstentions,
        excess_mistakes=None if fewest_mistakes is None else mistakes - fewest_mistakes,
    )


def _outcome(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mistakes and abstentions per column."""
    silent = predictions == ABSTAIN
    return (~silent & (predictions != labels[:, None])).sum(0), silent.sum(0)
