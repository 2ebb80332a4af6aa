"""Whether a stream still behaves like the samples that something was calibrated on: rates, and whole distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_count
from lightning_efficient.functional.binomial import check_delta, clopper_pearson_upper

_LARGEST_BET = 0.9
"""Share of the wealth that is at stake at most."""


def clopper_pearson_lower(errors: int, samples: int, delta: float) -> float:
    """Lower confidence limit of a rate; the mirror image of ``clopper_pearson_upper``.

    Args:
        errors: How often it happened.
        samples: Out of how many independent samples.
        delta: Probability with which the limit may lie above the rate, in ``(0, 1)``.

    Example:
        >>> f"{clopper_pearson_lower(10, 100, 0.05):.4f}", clopper_pearson_lower(0, 100, 0.05)
        ('0.0553', 0.0)
    """
    return 1.0 - float(clopper_pearson_upper(samples - errors, samples, delta))


def rate_change_p_value(reference_hits: int, reference_samples: int, hits: int, samples: int) -> float:
    """P-value of the hypothesis that two groups of independent samples have the same rate, two-sided and exact.

    Both rates count as estimates: it is twice the smaller tail of the hypergeometric distribution of the hits, given
    the hits of both groups together. Takes time and memory in proportion to the smaller number of samples.

    Args:
        reference_hits: Hits of the first group.
        reference_samples: Its size, at least 1.
        hits: Hits of the second group.
        samples: Its size, at least 1.

    Raises:
        ConfigurationError: counts that are no integers, or more hits than samples.

    Example:
        >>> f"{rate_change_p_value(300, 1000, 30, 100):.2f} {rate_change_p_value(300, 1000, 50, 100):.5f}"
        '1.00 0.00011'

    Reference:
        Fisher. The Logic of Inductive Inference. Journal of the Royal Statistical Society 1935.
    """
    _check_hits("reference_hits", reference_hits, reference_samples)
    _check_hits("hits", hits, samples)
    low, high = _tails(reference_hits, reference_samples, hits, samples)
    return min(1.0, 2 * min(low, high))


def rate_band(reference_hits: int, reference_samples: int, samples: int, delta: float) -> tuple[float, float]:
    """Rates of new samples at which ``rate_change_p_value`` exceeds ``delta``.

    As long as the rate is what it was, new samples leave the band with probability at most ``delta``, over the draw of
    both groups. It holds for one look; for many looks at one stream see :func:`bet_against`.

    Args:
        reference_hits: Hits among the calibration samples.
        reference_samples: How many of these there were.
        samples: How many new ones there are.
        delta: In ``(0, 1)``.

    Returns:
        Lowest and highest rate within the band.

    Example:
        >>> rate_band(300, 1000, 100, delta=0.01)
        (0.18, 0.43)
    """
    check_delta(delta)
    _check_hits("reference_hits", reference_hits, reference_samples)
    check_count("samples", samples)
    lowest = _first(samples, lambda hits: _tails(reference_hits, reference_samples, hits, samples)[0] > delta / 2)
    above = _first(samples, lambda hits: _tails(reference_hits, reference_samples, hits, samples)[1] <= delta / 2)
    return lowest / samples, (above - 1) / samples


def bet_against(log_wealth: float, step: int, hits: int, samples: int, *, limit: float, guess: float) -> float:
    """Bet once more against the hypothesis that a rate is at most ``limit``; :func:`e_value` says what came of it.

    Before every step a further part of the wealth, ``1 / (step (step + 1))`` of it, comes into play, so that bets lost
    while the hypothesis was true do not hide that it later becomes false. Each sample multiplies what is in play by
    ``1 + λ (hit - limit)``, which is 1 on average or less while the hypothesis is true; ``λ`` is the best one if the
    rate is ``guess``, and 0 if that is not above the limit. To test a rate from below, give misses for hits.

    Args:
        log_wealth: What is in play, natural logarithm; ``-inf`` at first.
        step: From 1.
        hits: Among the samples of this step.
        samples: How many there are.
        limit: In ``[0, 1]``.
        guess: A guess of the rate that does not know this step's samples.

    Returns:
        The new ``log_wealth``.

    Example:
        >>> log_wealth = -math.inf
        >>> for step in range(1, 6):
        ...     log_wealth = bet_against(log_wealth, step, hits=60, samples=100, limit=0.4, guess=0.55)
        >>> e_value(log_wealth, step=5) > 1000
        True

    Reference:
        Waudby-Smith, Ramdas. Estimating Means of Bounded Random Variables by Betting. JRSS B 2024. Shin, Ramdas,
        Rinaldo. E-detectors: A Nonparametric Framework for Sequential Change Detection. NEJSDS 2024: restarts.
    """
    in_play = _log_sum(log_wealth, -math.log(step * (step + 1)))
    if not 0 < limit < 1 or guess <= limit:
        return in_play
    bet = min((guess - limit) / (limit * (1 - limit)), _LARGEST_BET / limit)
    return in_play + hits * math.log1p(bet * (1 - limit)) + (samples - hits) * math.log1p(-bet * limit)


def e_value(log_wealth: float, step: int) -> float:
    """Return the whole wealth after a step: what is in play, and ``1 / (step + 1)`` that never was.

    While the hypothesis of :func:`bet_against` is true, the probability that it ever reaches ``1 / delta`` is at most
    ``delta``, however many steps there are.

    Example:
        >>> e_value(-math.inf, step=0)
        1.0
    """
    return math.exp(min(log_wealth, 700.0)) + 1 / (step + 1)


def population_stability(reference: Tensor, counts: Tensor) -> float:
    """Population stability index between two histograms over the same bins, nats; 0 where the shares are equal.

    ``Σ (q - p) ln(q / p)`` of the shares, with half a sample more in each bin. It has a bias of about
    ``bins (1 / n + 1 / m)`` and no error level; compare it with its own past.

    Args:
        reference: Counts, shape ``(bins,)``.
        counts: Likewise.

    Raises:
        ConfigurationError: shapes that differ.

    Example:
        >>> round(population_stability(torch.tensor([50, 50]), torch.tensor([80, 20])), 3)
        0.406
    """
    if reference.shape != counts.shape or reference.ndim != 1:
        raise ConfigurationError(
            f"reference has shape {tuple(reference.shape)} and counts {tuple(counts.shape)}; both must be (bins,)."
        )
    before, after = (values.double().cpu() + 0.5 for values in (reference, counts))
    before, after = before / before.sum(), after / after.sum()
    return float(((after - before) * (after / before).log()).sum())


def ks_distance(reference: Tensor, values: Tensor) -> float:
    """Largest distance between two empirical distribution functions, Kolmogorov and Smirnov; in ``[0, 1]``.

    Args:
        reference: Values, shape ``(n,)``, at least one; sorting takes most of the time.
        values: Likewise ``(m,)``.

    Raises:
        ConfigurationError: other shapes, no values, or NaN.

    Example:
        >>> ks_distance(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([3.0, 4.0]))
        0.5
    """
    for name, each in (("reference", reference), ("values", values)):
        if each.ndim != 1 or not len(each) or each.isnan().any():
            raise ConfigurationError(f"{name} must be numbers of shape (N,), at least one and no NaN.")
    first, second = (each.double().cpu().sort().values for each in (reference, values))
    points = torch.cat([first, second])
    below = [torch.searchsorted(each, points, right=True).double() / len(each) for each in (first, second)]
    return float((below[0] - below[1]).abs().max())


def ks_limit(reference_samples: int, samples: int, delta: float) -> float:
    """Distance that :func:`ks_distance` of the same distribution exceeds with probability at most ``delta``.

    Example:
        >>> f"{ks_limit(1000, 1000, delta=0.01):.3f}"
        '0.109'

    Reference:
        Massart. The Tight Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality. Annals of Probability 1990.
    """
    check_delta(delta)
    check_count("reference_samples", reference_samples)
    check_count("samples", samples)
    half = math.log(4 / delta) / 2
    return min(1.0, math.sqrt(half / reference_samples) + math.sqrt(half / samples))


def _check_hits(option: str, hits: int, samples: int) -> None:
    check_count("samples", samples)
    if hits != int(hits) or not 0 <= hits <= samples:
        raise ConfigurationError(f"{option}={hits!r} must be an integer from 0 to the {samples} samples.")


def _tails(reference_hits: int, reference_samples: int, hits: int, samples: int) -> tuple[float, float]:
    """Return the probabilities of at most, and of at least, these hits given the hits of both groups together."""
    together = reference_hits + hits
    possible = torch.arange(max(0, together - reference_samples), min(samples, together) + 1, dtype=torch.float64)
    log = _log_choose(samples, possible) + _log_choose(reference_samples, together - possible)
    shares = (log - log.logsumexp(0)).exp()
    return float(shares[possible <= hits].sum()), float(shares[possible >= hits].sum())


def _log_choose(size: int, chosen: Tensor) -> Tensor:
    return math.lgamma(size + 1) - (chosen + 1).lgamma() - (size - chosen + 1).lgamma()


def _first(samples: int, holds: Callable[[int], bool]) -> int:
    """Return the smallest count for which a condition holds that never ceases to hold; one more than all if none."""
    low, high = 0, samples + 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _log_sum(first: float, second: float) -> float:
    high, low = max(first, second), min(first, second)
    return high + math.log1p(math.exp(low - high))
