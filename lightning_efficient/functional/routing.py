"""Which inputs a small model passes on to a large one, and what the pair achieves at every share that it keeps.

A *query score* has one number per sample, larger to ask the large (global) model. The small (base) model answers where
``query_score <= threshold``; a score that is not finite is always asked about. The *coverage* is the share kept.
Samples of equal score are kept together, so that no number depends on the order of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.confidence import confidence

QueryScoreName: TypeAlias = Literal[
    "msp", "margin", "logit_margin", "entropy", "gini", "energy", "energy_softmax", "max_logit"
]
QueryScore: TypeAlias = QueryScoreName | Callable[[Tensor], Tensor]
"""A score by name, or a function from ``(N, C)`` to a *confidence* ``(N,)``, of which the negative is taken."""

# a coverage times a number of samples may land a little above a whole number
_SLIP = 1e-9


class HybridCurve(NamedTuple):
    """What a pair of models achieves at every coverage that a threshold can give; ``K`` points, coverage upward.

    Attributes:
        coverage: Share of samples that the base answers, from 0 to 1, float64 ``(K,)``.
        accuracy: Share that is answered right by whoever answers, float64 ``(K,)``.
        threshold: The base answers where ``query_score <= threshold``, float64 ``(K,)``; ``-inf`` at coverage 0.
        samples: Number of samples.
    """

    coverage: Tensor
    accuracy: Tensor
    threshold: Tensor
    samples: int


def query_score(logits: Tensor, score: QueryScore = "msp", temperature: float = 1.0) -> Tensor:
    """How much a classifier's own logits ask for a larger model: the negative of a confidence.

    With ``p`` the softmax: ``msp`` is the negative of the largest probability, ``margin`` that of the difference
    between the two largest, ``logit_margin`` the same of logits, ``entropy`` the Shannon entropy in nats, ``gini``
    ``-Σ p²``, ``energy`` the free energy ``-T logsumexp(z / T)``, ``energy_softmax`` ``-logsumexp(p)``, which ranks
    much like ``gini``, and ``max_logit`` the negative of the largest logit.

    Args:
        logits: Class scores, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        score: A name, or a function that takes ``logits / temperature`` and returns a confidence ``(N,)``, higher for
            surer.
        temperature: Divides the logits.

    Returns:
        Shape ``(N,)``, float32 or wider, larger to ask the larger model.

    Raises:
        ConfigurationError: unknown score, temperature not above 0, or a tensor of the wrong shape.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.5, 0.0]])
        >>> query_score(logits, "logit_margin")
        tensor([-2.0000, -0.5000])
        >>> query_score(logits, "entropy")
        tensor([0.3653, 0.6628])

    Reference:
        Akbari, Banitalebi-Dehkordi, Zhang. EBJR: Energy-Based Joint Reasoning for Adaptive Inference. BMVC 2021:
        ``energy``, published for logits; ``energy_softmax`` is that of probabilities.
    """
    if callable(score):
        return -confidence(logits, score, temperature)
    check_choice("score", score, QUERY_SCORES)
    if score in _OF_SCALED_LOGITS:
        return -confidence(logits, _OF_SCALED_LOGITS[score], temperature)
    return -confidence(logits, score, temperature)  # type: ignore[arg-type]


def _logit_margin(logits: Tensor) -> Tensor:
    if logits.shape[1] < 2:
        raise ConfigurationError(f"score='logit_margin' needs (N, C) with C >= 2 classes, got {tuple(logits.shape)}.")
    first, second = logits.topk(2).values.unbind(-1)
    return first - second


_OF_SCALED_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit_margin": _logit_margin,
    "gini": lambda logits: logits.softmax(-1).square().sum(-1),
    "energy_softmax": lambda logits: logits.softmax(-1).logsumexp(-1),
}
QUERY_SCORES: tuple[QueryScoreName, ...] = (
    "msp",
    "margin",
    "logit_margin",
    "entropy",
    "gini",
    "energy",
    "energy_softmax",
    "max_logit",
)


def proxy_label(base_correct: Tensor, global_correct: Tensor) -> Tensor:
    """Which samples the published router learns to ask about: base wrong, global model right.

    Args:
        base_correct: Whether the base is right, bool ``(N,)``.
        global_correct: Whether the global model is right, bool ``(N,)``.

    Returns:
        Bool, shape ``(N,)``; false where both are wrong, as asking helps nobody.

    Raises:
        ConfigurationError: tensors that are not both bool ``(N,)``.

    Example:
        >>> proxy_label(torch.tensor([True, False, False]), torch.tensor([True, True, False]))
        tensor([False,  True, False])

    Reference:
        Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. ICLR 2023.
    """
    check_outcomes(base_correct, global_correct)
    return ~base_correct & global_correct


def hybrid_curve(query_score: Tensor, base_correct: Tensor, global_correct: Tensor) -> HybridCurve:
    """Accuracy of a pair of models over the share of samples that the base answers.

    Costs one sort: O(n log n) time and O(n) memory.

    Args:
        query_score: Larger to ask the global model, shape ``(N,)``, any float dtype. What is not finite comes last, as
            if it were infinite.
        base_correct: Whether the base is right, bool ``(N,)``.
        global_correct: Whether the global model is right, bool ``(N,)``.

    Returns:
        One point for coverage 0, where the accuracy is the global model's, and one for each distinct score, up to
        coverage 1, where it is the base's.

    Raises:
        ConfigurationError: no sample, or tensors of the wrong shape or dtype.

    Example:
        >>> curve = hybrid_curve(
        ...     torch.tensor([0.9, 0.1, 0.5]), torch.tensor([False, True, False]), torch.tensor([True, True, True])
        ... )
        >>> curve.coverage, curve.accuracy
        (tensor([0.0000, 0.3333, 0.6667, 1.0000], dtype=torch.float64), \
tensor([1.0000, 1.0000, 0.6667, 0.3333], dtype=torch.float64))
    """
    check_outcomes(base_correct, global_correct)
    if query_score.shape != base_correct.shape or not len(query_score):
        raise ConfigurationError(
            f"query_score has shape {tuple(query_score.shape)} for {len(base_correct)} samples; give one score per "
            "sample, shape (N,), of at least one sample."
        )
    scores = query_score.detach().double()
    ordered, order = torch.where(scores.isfinite(), scores, torch.inf).sort()
    ends = torch.ones_like(ordered, dtype=torch.bool)
    ends[:-1] = ordered[1:] != ordered[:-1]
    samples = len(ordered)
    gained = (base_correct.long() - global_correct.long())[order].cumsum(0)[ends]
    kept = ends.nonzero().squeeze(1) + 1
    start = kept.new_zeros(1)
    right = int(global_correct.sum()) + torch.cat([start, gained])
    return HybridCurve(
        torch.cat([start, kept]).double() / samples,
        right.double() / samples,
        torch.cat([ordered.new_full((1,), -torch.inf), ordered[ends]]),
        samples,
    )


def oracle_curve(base_correct: Tensor, global_correct: Tensor) -> HybridCurve:
    """The curve of the best order of these samples: those that the global model spoils first, those it mends last.

    No score of the same samples has a higher accuracy at any coverage. Its thresholds are of the gain: 1 where the
    global model is right and the base wrong, -1 where it is the other way round, else 0.

    Args:
        base_correct: Whether the base is right, bool ``(N,)``.
        global_correct: Whether the global model is right, bool ``(N,)``.

    Returns:
        At most four points.

    Raises:
        ConfigurationError: no sample, or tensors that are not both bool ``(N,)``.

    Example:
        >>> oracle_curve(torch.tensor([True, False, True]), torch.tensor([True, True, False])).accuracy
        tensor([0.6667, 1.0000, 1.0000, 0.6667], dtype=torch.float64)
    """
    check_outcomes(base_correct, global_correct)
    return hybrid_curve(global_correct.double() - base_correct.double(), base_correct, global_correct)


def accuracy_at_coverage(curve: HybridCurve, coverage: float) -> float:
    """Accuracy where the base answers the ``ceil(coverage * n)`` samples of the smallest query scores.

    Where that number falls among samples of equal score, it is the expected accuracy of drawing those that are missing
    among them.

    Args:
        curve: From :func:`hybrid_curve` or :func:`oracle_curve`.
        coverage: Share of samples that the base answers, in ``[0, 1]``.

    Raises:
        ConfigurationError: a coverage outside ``[0, 1]``.

    Example:
        >>> right, wrong = torch.tensor([True, True]), torch.tensor([False, False])
        >>> accuracy_at_coverage(hybrid_curve(torch.zeros(2), wrong, right), 0.5)
        0.5
    """
    check_fraction("coverage", coverage, zero=True)
    wanted = number_kept(coverage, curve.samples) / curve.samples
    after = min(max(int((curve.coverage < wanted).sum()), 1), len(curve.coverage) - 1)
    (low, high), (start, end) = curve.coverage[after - 1 : after + 1].tolist(), curve.accuracy[after - 1 : after + 1]
    return float(start + (end - start) * (wanted - low) / (high - low))


def hybrid_area(curve: HybridCurve) -> float:
    """Area under accuracy over coverage from 0 to 1: the mean accuracy over all coverages.

    Args:
        curve: From :func:`hybrid_curve` or :func:`oracle_curve`.

    Example:
        >>> right, wrong = torch.tensor([True, True]), torch.tensor([False, False])
        >>> hybrid_area(hybrid_curve(torch.zeros(2), wrong, right))
        0.5
    """
    return float(torch.trapezoid(curve.accuracy, curve.coverage))


def gap_to_oracle(curve: HybridCurve, oracle: HybridCurve) -> float:
    """How much area a curve lacks to the best order of the same samples; 0 or more.

    Args:
        curve: From :func:`hybrid_curve`.
        oracle: From :func:`oracle_curve` of the same samples.
    """
    return hybrid_area(oracle) - hybrid_area(curve)


def query_threshold(query_scores: Tensor, coverage: float) -> float:
    """Smallest threshold at which the base answers at least ``ceil(coverage * n)`` of these samples.

    Args:
        query_scores: Shape ``(N,)``, any float dtype. What is not finite is never kept.
        coverage: Wanted share, in ``[0, 1]``.

    Returns:
        One of the scores; ``-inf`` where nothing has to be kept, ``inf`` where too few scores are finite.

    Raises:
        ConfigurationError: a coverage outside ``[0, 1]``, or scores that are not ``(N,)`` of at least one sample.

    Example:
        >>> query_threshold(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.5)
        2.0
    """
    check_fraction("coverage", coverage, zero=True)
    if query_scores.ndim != 1 or not len(query_scores):
        raise ConfigurationError(
            f"query_scores has shape {tuple(query_scores.shape)}; give one score per sample, shape (N,), of at least "
            "one sample."
        )
    kept = number_kept(coverage, len(query_scores))
    finite = query_scores.detach()[query_scores.isfinite()]
    if kept == 0:
        return -math.inf
    return float(at_least_float32(finite).kthvalue(kept).values) if kept <= len(finite) else math.inf


def check_outcomes(base_correct: Tensor, global_correct: Tensor) -> None:
    """Raise ``ConfigurationError`` unless both are bool of the same shape ``(N,)``."""
    given = [(each.dtype, tuple(each.shape)) for each in (base_correct, global_correct)]
    if given[0] != given[1] or base_correct.dtype != torch.bool or base_correct.ndim != 1:
        raise ConfigurationError(
            f"base_correct has dtype {given[0][0]} and shape {given[0][1]}, global_correct {given[1][0]} and "
            f"{given[1][1]}; give both as bool of shape (N,)."
        )


def number_kept(coverage: float, samples: int) -> int:
    """Return how many of so many samples a coverage keeps: ``ceil(coverage * samples)``, rounding errors aside."""
    return math.ceil(coverage * samples - _SLIP)
