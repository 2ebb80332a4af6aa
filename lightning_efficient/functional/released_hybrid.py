"""Losses and threshold sweeps of the released code for hybrid models, for parity and comparison.

Three generations of the code differ: the *first* and the *second* train the gate and both models in turn, the *joint*
one trains base and routers together beside a frozen global model. A gate has two outputs, index 0 to ask and 1 to keep.

Reference:
    Released code of: Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. ICLR
    2023.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction, check_positive
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional._released_joint import JointLoss as JointLoss
from lightning_efficient.functional._released_joint import joint_head_loss as joint_head_loss
from lightning_efficient.functional.distillation import check_class_indices
from lightning_efficient.functional.routing import check_outcomes, proxy_label

GateLabel: TypeAlias = Literal["base_correct", "proxy"]
Generation: TypeAlias = Literal["first", "second"]
GATE_LABELS: tuple[GateLabel, ...] = get_args(GateLabel)
GENERATIONS: tuple[Generation, ...] = get_args(Generation)

_RATE_CLAMP = 0.1
_RATE_WEIGHT = 100.0
_STEP_WEIGHTS = {"first": 1.5, "second": 10.0}


def keep_label(base_correct: Tensor, global_correct: Tensor, label: GateLabel = "proxy") -> Tensor:
    """What a released gate learns to keep.

    Args:
        base_correct: Whether the base is right, bool ``(N,)``.
        global_correct: Whether the global model is right, bool ``(N,)``.
        label: ``base_correct``, the default of the released code (its strategy 1), or ``proxy``: the base is right or
            the global model wrong (strategy 2, and the paper).

    Returns:
        Bool, shape ``(N,)``.

    Raises:
        ConfigurationError: another ``label``, or tensors that are not both bool ``(N,)``.

    Example:
        >>> base, both_wrong = torch.tensor([True, False]), torch.tensor([False, False])
        >>> keep_label(base, both_wrong), keep_label(base, both_wrong, "base_correct")
        (tensor([True, True]), tensor([ True, False]))
    """
    check_choice("label", label, GATE_LABELS)
    if label == "proxy":
        return ~proxy_label(base_correct, global_correct)
    check_outcomes(base_correct, global_correct)
    return base_correct.clone()


def released_gate_loss(
    gate: Tensor,
    base_correct: Tensor,
    global_correct: Tensor,
    *,
    generation: Generation = "first",
    label: GateLabel = "base_correct",
    max_query_rate: float = 0.45,
    max_keep_rate: float = 0.65,
    query_divisor: float = 0.4,
) -> Tensor:
    """Loss of the gate in the first two generations of the released code.

    ``first``: the mean of a cross-entropy in which the rarer label counts more, asked-for samples ``query_divisor``
    times less, samples on the wrong side of a gate that is sure up to 1.4 times more, and those that nobody gets right
    a tenth. ``second``: half the *sum* of a focal loss in which what is to be kept counts twice. Both add 100 times the
    excess of a clamped query rate, ``mean(clip(g_0 - g_1, 0, 0.1)) / 0.1``, over a tenth of its limit; the second does
    so for the keep rate too.

    Args:
        gate: Logits of asking and of keeping, shape ``(N, 2)``, any float dtype (computed in float32; float64 stays).
        base_correct: Whether the base is right, bool ``(N,)``.
        global_correct: Whether the global model is right, bool ``(N,)``.
        generation: ``first`` or ``second``.
        label: What the gate learns to keep; see :func:`keep_label`.
        max_query_rate: Largest share of queries that costs nothing, in ``[0, 1]``.
        max_keep_rate: Largest share of kept samples that costs nothing, in ``[0, 1]``; ``second`` only.
        query_divisor: What the weight of samples to ask about is divided by, above 0; ``first`` only.

    Returns:
        A scalar. Where a label is missing in the batch its weight is finite, where the released code divides by 0.

    Raises:
        ConfigurationError: an option outside its range, or shapes that do not belong together.

    Example:
        >>> gate, right = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([True, False])
        >>> released_gate_loss(gate, right, ~right, query_divisor=1.0)
        tensor(0.8133)
    """
    check_choice("generation", generation, GENERATIONS)
    check_fraction("max_query_rate", max_query_rate, zero=True)
    check_fraction("max_keep_rate", max_keep_rate, zero=True)
    check_positive("query_divisor", query_divisor)
    keep = keep_label(base_correct, global_correct, label)
    if gate.shape != (len(keep), 2):
        raise ConfigurationError(f"gate has shape {tuple(gate.shape)}; give two logits per sample, ({len(keep)}, 2).")
    gate = at_least_float32(gate)
    asks = gate[:, 0] - gate[:, 1]
    penalty = _rate_excess(asks, max_query_rate)
    if generation == "second":
        return _focal(gate, keep) + penalty + _rate_excess(-asks, max_keep_rate)
    kept = keep.sum()
    most = torch.maximum(kept, len(keep) - kept).to(gate.dtype)
    if_keep, if_ask = most / kept.clamp(min=1), most / (query_divisor * (len(keep) - kept).clamp(min=1))
    sureness = asks.detach()
    hopeless = torch.where(global_correct, 1.0, 0.1).to(gate.dtype)
    weight = torch.where(
        keep,
        if_keep * (1 + (sureness + 0.1).clamp(0, 0.4)),
        if_ask * (1 + (-sureness - 0.1).clamp(0, 0.4)) * hopeless * ~base_correct,
    )
    return (weight * F.cross_entropy(gate, keep.long(), reduction="none")).mean() + penalty


def released_base_loss(logits: Tensor, target: Tensor, gate: Tensor, generation: Generation = "first") -> Tensor:
    """Loss of the base in its own step: cross-entropy in which what the gate keeps counts 1.5 times, or 10 times.

    Args:
        logits: Class scores of the base, shape ``(N, C)``, any float dtype (computed in float32; float64 stays).
        target: Classes, integers of shape ``(N,)``.
        gate: Logits of asking and of keeping, shape ``(N, 2)``; no gradient flows into it.
        generation: ``first`` (1.5) or ``second`` (10).

    Returns:
        A scalar in nats: the mean over samples, not over weights.

    Raises:
        ConfigurationError: another generation, or shapes that do not belong together.

    Example:
        >>> logits, target = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> released_base_loss(logits, target, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor(0.8664)
    """
    check_choice("generation", generation, GENERATIONS)
    return _step_loss(logits, target, gate, keeps=True, weight=_STEP_WEIGHTS[generation])


def released_global_loss(logits: Tensor, target: Tensor, gate: Tensor) -> Tensor:
    """Loss of the global model in its own step: cross-entropy in which what the gate asks about counts 1.5 times.

    Args:
        logits: Class scores of the global model, shape ``(N, C)``, any float dtype (computed in float32; float64
            stays).
        target: Classes, integers of shape ``(N,)``.
        gate: Logits of asking and of keeping, shape ``(N, 2)``; no gradient flows into it.

    Returns:
        A scalar in nats: the mean over samples, not over weights.

    Raises:
        ConfigurationError: shapes that do not belong together.
    """
    return _step_loss(logits, target, gate, keeps=False, weight=1.5)


class SweepPoint(NamedTuple):
    """One row of a released threshold sweep."""

    target: float
    """Wanted coverage."""
    threshold: float
    """Of the gate's probability of keeping (keep at or above), or of the entropy (keep at or below)."""
    coverage: float
    """Share that the base answers."""
    accuracy: float
    """Of the hybrid."""
    base_accuracy: float
    """Of the base on what it keeps."""
    global_accuracy: float
    """Of the global model on what it is asked; NaN where it is asked nothing."""


def released_gate_sweep(keep_probability: Tensor, base_correct: Tensor, global_correct: Tensor) -> list[SweepPoint]:
    """The released search for a threshold of a gate: 2000 values from -4 to 4, for coverages 0.1, 0.2, ... 0.9.

    It takes the smallest coverage of at least the target, at most 0.99, and of equals the largest threshold. A step of
    the grid is 0.004 of a probability: use :func:`~lightning_efficient.functional.routing.query_threshold`, which
    is exact, for anything but parity.

    Args:
        keep_probability: Of the gate, shape ``(N,)``.
        base_correct: Whether the base is right, bool ``(N,)``.
        global_correct: Whether the global model is right, bool ``(N,)``.

    Raises:
        ConfigurationError: shapes that do not belong together, or a target that no threshold of the grid meets.
    """
    points = _sweep("keep_probability", -keep_probability, (-4.0, 4.0, 2000), base_correct, global_correct)
    return [point._replace(threshold=-point.threshold) for point in points]


def released_entropy_sweep(entropy: Tensor, base_correct: Tensor, global_correct: Tensor) -> list[SweepPoint]:
    """The released search for a threshold of the entropy: 500 values from 0 to 5; see :func:`released_gate_sweep`.

    Args:
        entropy: Of the base's softmax, nats, shape ``(N,)``.
        base_correct: Whether the base is right, bool ``(N,)``.
        global_correct: Whether the global model is right, bool ``(N,)``.

    Raises:
        ConfigurationError: shapes that do not belong together, or a target that no threshold of the grid meets.
    """
    return _sweep("entropy", entropy, (0.0, 5.0, 500), base_correct, global_correct)


def _rate_excess(asks: Tensor, limit: float) -> Tensor:
    return _RATE_WEIGHT * (asks.clamp(0, _RATE_CLAMP).mean() - _RATE_CLAMP * limit).clamp(min=0)


def _focal(gate: Tensor, keep: Tensor) -> Tensor:
    right = gate.softmax(1).gather(1, keep.long().unsqueeze(1)).squeeze(1).clamp(1e-7, 1 - 1e-7)
    return 0.5 * ((1 + keep.long()) * (1 - right).square() * -right.log()).sum()


def _step_loss(logits: Tensor, target: Tensor, gate: Tensor, *, keeps: bool, weight: float) -> Tensor:
    check_class_indices(logits, target)
    if gate.shape != (len(logits), 2):
        raise ConfigurationError(f"gate has shape {tuple(gate.shape)}; give two logits per sample, ({len(logits)}, 2).")
    losses = F.cross_entropy(at_least_float32(logits), target.long(), reduction="none")
    counted = (gate[:, 1] > gate[:, 0]) == keeps  # equal logits ask, as the first maximum does
    return torch.where(counted, weight * losses, losses).mean()


def _sweep(
    name: str, score: Tensor, grid: tuple[float, float, int], base_correct: Tensor, global_correct: Tensor
) -> list[SweepPoint]:
    """Keep at or below each value of the grid; the values are symmetric where the score is a negative."""
    check_outcomes(base_correct, global_correct)
    if score.shape != base_correct.shape or not len(score):
        raise ConfigurationError(
            f"{name} has shape {tuple(score.shape)} for {len(base_correct)} samples; give one value per sample, shape "
            "(N,), of at least one sample."
        )
    low, high, count = grid
    # one product and one sum, as in the released code: another formula gives other last digits
    thresholds = low + torch.arange(count, dtype=torch.float64, device=score.device) * ((high - low) / (count - 1))
    kept_counts = torch.searchsorted(score.double().sort().values, thresholds, right=True)
    points = []
    for tenth in range(1, 10):
        enough = (10 * kept_counts >= tenth * len(score)) & (kept_counts <= 0.99 * len(score))
        if not enough.any():
            raise ConfigurationError(
                f"{name} has no threshold on the grid of {count} values from {low:g} to {high:g} with a coverage from "
                f"{tenth / 10} to 0.99; use query_threshold, which is exact."
            )
        fewest = kept_counts[enough].min()
        of_equals = thresholds[enough & (kept_counts == fewest)]
        threshold = of_equals.min() if name == "keep_probability" else of_equals.max()
        kept = score.double() <= threshold
        right = torch.where(kept, base_correct, global_correct)
        parts = (kept, right, base_correct[kept], global_correct[~kept])
        points.append(SweepPoint(tenth / 10, float(threshold), *(float(part.double().mean()) for part in parts)))
    return points
