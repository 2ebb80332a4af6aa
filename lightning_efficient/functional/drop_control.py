"""How far a cascade may be trusted on samples with labels: the cheapest setting whose accuracy drop stays bounded.

A path of settings leads from "always ask the full model" to "cheapest". At each of its ``T`` points, a sample is *lost*
where the full model is right and the system is wrong, and *gained* the other way round. The drop is the accuracy of the
full model minus that of the system, the share lost minus the share gained; so it is at most the share lost.

What each rule promises for new samples of the same distribution, if neither the path nor what it is a path of has seen
the samples:

- ``betting``: the drop, with probability ``1 - delta`` over the draw of the samples. It counts what is gained.
- ``binomial``: the share lost, and so the drop, with probability ``1 - delta``.
- ``difference``: the drop with probability ``1 - delta``, from one limit on either share.
- ``conformal``: the share lost, and so the drop, on average over the draw.
- ``empirical``: nothing.

The first three walk along the path and stop at the first point that fails, so that the whole ``delta`` may be spent at
each point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.binomial import check_delta, clopper_pearson_upper
from lightning_efficient.functional.thresholds import needed_samples

DropRule: TypeAlias = Literal["betting", "binomial", "difference", "conformal", "empirical"]
DROP_RULES: tuple[DropRule, ...] = get_args(DropRule)
DROP_RULES_WITH_LEVEL: tuple[DropRule, ...] = ("betting", "binomial", "difference")
"""Those whose promise holds with a probability."""

_LARGEST_LOSS = 0.95
"""Share of the capital that one bet may lose at most."""
_COLUMNS = 16
"""How many points of the path are looked at together; the walk often stops early."""


@dataclass(frozen=True)
class DropChoice:
    """A point of the path and what it does on the samples it was chosen on.

    Attributes:
        index: The last point that was accepted; -1 where none was, which means: always ask the full model.
        drop: Accuracy of the full model minus that of the system on the samples, a fraction; below 0 where the system
            is better.
        lost: How many samples only the full model gets right.
        gained: How many samples only the system gets right.
        samples: How many samples there were.
        bound: The upper bound that met the target, a fraction; ``None`` for ``betting`` and ``empirical``.
        p_value: Of the hypothesis that the drop is ``max_drop`` or more; ``None`` for all but ``betting``.
    """

    index: int
    drop: float
    lost: int
    gained: int
    samples: int
    bound: float | None
    p_value: float | None


def choose_drop_point(
    system_correct: Tensor,
    full_correct: Tensor,
    *,
    max_drop: float,
    delta: float | None = None,
    rule: DropRule = "betting",
    seed: int = 0,
) -> DropChoice:
    """Choose the cheapest point of a path whose accuracy drop against the full model stays within a target.

    ``betting`` tests at every point that the drop is ``max_drop`` or more. A capital of 1 is staked on the samples, one
    after another, at odds that are fair at best if that is so; then it reaches ``1 / delta`` with probability at most
    ``delta``. The stakes follow the variance seen so far. The samples are put in a random order once.

    ``conformal`` needs a loss that never falls along the path. Where a sample is lost at one point and not at a later
    one, which takes three models, it counts as lost from there on.

    Args:
        system_correct: Whether the system's answer is right at each point, boolean, shape ``(N, T)``; the first point
            is the closest to the full model, the last one the cheapest.
        full_correct: Whether the full model's answer is right, boolean, shape ``(N,)``.
        max_drop: Target, a fraction in ``(0, 1)``.
        delta: Probability with which the promise may fail, in ``(0, 1)``; for ``betting``, ``binomial`` and
            ``difference``.
        rule: Which promise, see the module.
        seed: Of the order of the samples in ``betting``.

    Returns:
        The choice; its index is -1 where no point is accepted.

    Raises:
        ConfigurationError: a target, level or rule out of range, shapes or dtypes that do not fit, or fewer samples
            than :func:`needed_samples_for_drop`.

    Example:
        >>> full = torch.ones(1000, dtype=torch.bool)
        >>> kept = torch.arange(1000).unsqueeze(1) < torch.tensor([0, 200, 400, 600])
        >>> wrong = kept & (torch.arange(1000).unsqueeze(1) % 100 == 99)
        >>> found = choose_drop_point(full.unsqueeze(1) & ~wrong, full, max_drop=0.01, delta=0.1, rule="binomial")
        >>> found.index, found.drop, found.lost, found.gained
        (2, 0.004, 4, 0)

    Reference:
        Waudby-Smith, Ramdas. Estimating Means of Bounded Random Variables by Betting. Journal of the Royal Statistical
        Society, Series B, 2024. Angelopoulos, Bates, Candès, Jordan, Lei. Learn then Test: Calibrating Predictive
        Algorithms to Achieve Risk Control. arXiv 2021. Angelopoulos, Bates, Fisch, Lei, Schuster. Conformal Risk
        Control. ICLR 2024.
    """
    _check_outcomes(system_correct, full_correct)
    check_max_drop(max_drop)
    _check_level(rule, delta)
    samples = len(full_correct)
    needed = needed_samples_for_drop(rule, max_drop, delta)
    if samples < needed:
        raise ConfigurationError(too_few_for_drop(rule, max_drop, delta, needed, samples))
    full = full_correct.unsqueeze(1)
    lost, gained = full & ~system_correct, system_correct & ~full
    losses, gains = lost.sum(0), gained.sum(0)
    bounds: Tensor | None = None
    p_values: Tensor | None = None
    if rule == "empirical":
        within = losses - gains <= _whole(max_drop, samples)
        index = int(within.nonzero()[-1]) if within.any() else -1
    elif rule == "betting":
        assert delta is not None
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).to(lost.device)
        index, p_values = _bet(lost[order], gained[order], max_drop, delta)
    else:
        if rule == "conformal":
            bounds = (lost.cummax(1).values.sum(0).double() + 1) / (samples + 1)
        elif rule == "binomial":
            assert delta is not None
            bounds = clopper_pearson_upper(losses, samples, delta)
        else:
            assert delta is not None
            surely_gained = 1 - clopper_pearson_upper(samples - gains, samples, delta / 2)
            bounds = clopper_pearson_upper(losses, samples, delta / 2) - surely_gained
        index = int((bounds <= max_drop).long().cumprod(0).sum()) - 1
    if index < 0:
        return DropChoice(-1, 0.0, 0, 0, samples, None, None)
    return DropChoice(
        index=index,
        drop=int(losses[index] - gains[index]) / samples,
        lost=int(losses[index]),
        gained=int(gains[index]),
        samples=samples,
        bound=None if bounds is None else float(bounds[index]),
        p_value=None if p_values is None else float(p_values[index]),
    )


def betting_p_values(lost: Tensor, gained: Tensor, max_drop: float, delta: float) -> Tensor:
    """How unlikely the samples are where the true drop is ``max_drop`` or more, by betting against it.

    With ``X_i = (lost - gained + 1) / 2`` and ``m = (1 + max_drop) / 2``, the capital is the product of
    ``1 + λ_i (m - X_i)``, where ``λ_i`` is the smaller of ``sqrt(2 ln(1 / delta) / (n v_{i-1}))`` and
    ``0.95 / (1 - m)``, and ``v`` the running variance, 1/4 at first. The p-value is 1 over the largest capital on the
    way; ``delta`` shapes the stakes, and the p-value is valid for any.

    Args:
        lost: Boolean, shape ``(N, T)``, the samples in random order.
        gained: Boolean, shape ``(N, T)``.
        max_drop: In ``(0, 1)``.
        delta: In ``(0, 1)``.

    Returns:
        p-values in ``(0, 1]``, float64, shape ``(T,)``.

    Example:
        >>> nothing = torch.zeros(600, 1, dtype=torch.bool)
        >>> betting_p_values(nothing, nothing, max_drop=0.01, delta=0.05)
        tensor([0.0043], dtype=torch.float64)

    Reference:
        Waudby-Smith, Ramdas. Estimating Means of Bounded Random Variables by Betting. Journal of the Royal Statistical
        Society, Series B, 2024.
    """
    samples = lost.shape[0]
    values = (lost.double() - gained.double() + 1) / 2
    counts = torch.arange(2, samples + 2, dtype=torch.float64, device=values.device).unsqueeze(1)
    mean = (values.cumsum(0) + 0.5) / counts
    variance = ((values - mean).square().cumsum(0) + 0.25) / counts
    # the stake on a sample may depend on those before it only
    before = torch.cat([torch.full_like(variance[:1], 0.25), variance[:-1]])
    bar = (1 + max_drop) / 2
    stake = (2 * math.log(1 / delta) / (samples * before)).sqrt().clamp(max=_LARGEST_LOSS / (1 - bar))
    log_capital = (stake * (bar - values)).log1p().cumsum(0)
    return (-log_capital.amax(0)).exp().clamp(max=1.0)


def needed_samples_for_drop(rule: DropRule, max_drop: float, delta: float | None = None) -> int:
    """Smallest number of samples with which a rule could accept a point where no sample is lost and none gained.

    Such a point is the one at which the full model answers everything, with which a path begins.

    Args:
        rule: ``"empirical"`` needs one sample.
        max_drop: Target, a fraction in ``(0, 1)``.
        delta: Probability with which the promise may fail, in ``(0, 1)``; for ``betting``, ``binomial`` and
            ``difference``.

    Returns:
        The number; every larger one could, too.

    Raises:
        ConfigurationError: a target, level or rule out of range.

    Example:
        >>> [needed_samples_for_drop(rule, 0.01, 0.1) for rule in ("betting", "binomial", "difference")]
        [258, 230, 299]
        >>> needed_samples_for_drop("conformal", 0.01)
        99
    """
    check_max_drop(max_drop)
    _check_level(rule, delta)
    if rule == "empirical":
        return 1
    if rule == "conformal":
        return needed_samples("conformal", max_drop)
    assert delta is not None
    if rule != "betting":
        return needed_samples("rcps", max_drop, delta if rule == "binomial" else delta / 2)
    # with every X at 1/2 the capital at the end grows with the number of samples
    low, high = 0, 1
    while not _enough_to_bet(high, max_drop, delta):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _enough_to_bet(middle, max_drop, delta) else (middle, high)
    return high


def too_few_for_drop(rule: DropRule, max_drop: float, delta: float | None, needed: int, given: int) -> str:
    """Return the line that says how many samples a target takes, in the words of the options."""
    level = "" if delta is None else f" with confidence_level={1 - delta:.6g}"
    cure = "a larger max_drop" if delta is None else "a larger max_drop or a lower confidence_level"
    return (
        f"max_drop={max_drop:g}{level} needs at least {needed} samples by the rule {rule!r}, even if none is lost, and "
        f"{given} were given; use more samples, {cure}."
    )


def label_free_drop_bound(disagreement_on_kept: int, n: int, delta: float) -> float:
    """Upper limit of the drop without labels: of how often a sample is kept and the full model would differ.

    A sample is lost only where the two answers differ, so that with probability ``1 - delta`` over the draw of the
    samples the drop is at most this limit. It is loose where both models are wrong in different ways.

    Args:
        disagreement_on_kept: How many samples the cheap model answers and the full model would answer differently.
        n: How many samples there were in all, those asked of the full model included. Where only kept samples were
            looked at, give their number and multiply the limit by the coverage.
        delta: Probability with which the limit may be too low, in ``(0, 1)``.

    Returns:
        The limit, a fraction in ``(0, 1]``.

    Raises:
        ConfigurationError: ``delta`` out of range, or counts that do not fit.

    Example:
        >>> round(label_free_drop_bound(3, 1000, 0.05), 4)
        0.0077
    """
    if n < 1:
        raise ConfigurationError(f"n={n!r} must be at least 1.")
    return float(clopper_pearson_upper(disagreement_on_kept, n, delta))


def check_max_drop(max_drop: float) -> None:
    """Raise unless ``max_drop`` is a fraction strictly between 0 and 1."""
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 < max_drop < 1:
        message = f"max_drop={max_drop!r} is outside (0, 1); give a fraction such as 0.01, not a percent."
        raise ConfigurationError(message)


def _enough_to_bet(samples: int, max_drop: float, delta: float) -> bool:
    nothing = torch.zeros(samples, 1, dtype=torch.bool)
    return bool(betting_p_values(nothing, nothing, max_drop, delta) <= delta)


def _bet(lost: Tensor, gained: Tensor, max_drop: float, delta: float) -> tuple[int, Tensor]:
    """Return the last point before the first whose p-value is above ``delta``, and the p-values up to there."""
    found: list[Tensor] = []
    for start in range(0, lost.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        found.append(betting_p_values(lost[:, columns], gained[:, columns], max_drop, delta))
        if (found[-1] > delta).any():
            break
    p_values = torch.cat(found)
    return int((p_values <= delta).long().cumprod(0).sum()) - 1, p_values


def _whole(share: float, samples: int) -> int:
    """Return how many of the samples a share allows; 0.57 of 100 is 57, which a product in floats misses."""
    return math.floor(share * samples + 1e-9)


def _check_level(rule: str, delta: float | None) -> None:
    check_choice("rule", rule, DROP_RULES)
    if rule not in DROP_RULES_WITH_LEVEL:
        if delta is not None:
            raise ConfigurationError(f"rule={rule!r} promises nothing with a probability; leave delta={delta!r} out.")
    elif delta is None:
        raise ConfigurationError(f"rule={rule!r} needs a delta, such as 0.05 for a confidence of 95 %.")
    else:
        check_delta(delta)


def _check_outcomes(system_correct: Tensor, full_correct: Tensor) -> None:
    for name, given in (("system_correct", system_correct), ("full_correct", full_correct)):
        if given.dtype != torch.bool:
            raise ConfigurationError(f"{name} has dtype {given.dtype}; give booleans, true where an answer is right.")
    fits = system_correct.ndim == 2 and full_correct.shape == system_correct.shape[:1]
    if not fits or 0 in system_correct.shape:
        raise ConfigurationError(
            f"system_correct has shape {tuple(system_correct.shape)} and full_correct {tuple(full_correct.shape)}; "
            "give (N, T) and (N,), with at least one sample and one point."
        )
