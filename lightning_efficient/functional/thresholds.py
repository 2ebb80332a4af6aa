"""Where to set the threshold of an abstaining classifier on samples that it was not trained on.

A sample is accepted where its confidence is at least the threshold. Candidates are the distinct confidences of the
samples, and ties are accepted together. Every rule costs one sort.

What each rule promises for new samples of the same distribution:

- ``coverage``: the coverage, on average over the draw of the samples; nothing about the risk.
- ``empirical``: nothing.
- ``sgr``, ``fixed_sequence``: the selective risk, with probability ``1 - delta`` over the draw, where errors do not
  become rarer as the confidence falls.
- ``rcps``: the generalized risk, with probability ``1 - delta`` over the draw.
- ``conformal``: the generalized risk, on average over the draw.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional.binomial import check_delta, clopper_pearson_upper, largest_allowed_errors
from lightning_efficient.functional.operating_points import RiskKind, coverage_at_risk, risk_at_coverage
from lightning_efficient.functional.risk_coverage import RiskCoverage, as_summary

ThresholdRule: TypeAlias = Literal["coverage", "empirical", "sgr", "fixed_sequence", "rcps", "conformal"]
RULES: tuple[ThresholdRule, ...] = ("coverage", "empirical", "sgr", "fixed_sequence", "rcps", "conformal")
RULES_WITH_LEVEL: tuple[ThresholdRule, ...] = ("sgr", "fixed_sequence", "rcps")
"""Those whose promise holds with a probability."""
RISK_OF_RULE: dict[ThresholdRule, RiskKind] = {
    "sgr": "selective",
    "fixed_sequence": "selective",
    "rcps": "generalized",
    "conformal": "generalized",
}
"""Which risk a rule bounds for new samples; the others bound none."""


class ThresholdChoice(NamedTuple):
    """A threshold and what it does on the samples it was chosen on.

    Attributes:
        threshold: Accept where ``confidence >= threshold``; infinity where nothing meets the target. A float32 score
            has an exact Python float, so the comparison is right for scores of either precision.
        accepted: How many of the samples it accepts.
        errors: Their summed loss.
        samples: How many samples there were.
        bound: The upper bound of the risk that met the target; ``None`` where the rule has none or nothing is accepted.
    """

    threshold: float
    accepted: int
    errors: float
    samples: int
    bound: float | None


def coverage_threshold(
    scores: RiskCoverage | Tensor, loss: Tensor | None = None, *, coverage: float
) -> ThresholdChoice:
    """Largest threshold that accepts at least a share of the samples.

    Let ``k`` be ``ceil(coverage * n)``. A new sample that is exchangeable with the ``n`` is accepted with probability
    ``k / (n + 1)`` where scores do not tie, and at least that where they do: it is accepted whenever it is among the
    ``k`` surest of the ``n + 1``, ties broken at random.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        coverage: Target in ``(0, 1]``.

    Returns:
        The choice, without a bound.

    Raises:
        ConfigurationError: a target out of range, unusable samples or none.

    Example:
        >>> coverage_threshold(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0, 0, 1, 1]), coverage=0.75)
        ThresholdChoice(threshold=2.0, accepted=3, errors=1.0, samples=4, bound=None)
    """
    summary = _samples(scores, loss)
    threshold = risk_at_coverage(summary, coverage=coverage, at_least=True)[1]
    return _choice(summary, _group_of(summary, threshold))


def empirical_threshold(
    scores: RiskCoverage | Tensor, loss: Tensor | None = None, *, risk: float, kind: RiskKind = "selective"
) -> ThresholdChoice:
    """Threshold of the largest coverage whose risk on these samples meets a target.

    It holds on these samples only: the risk of new ones exceeds the target about as often as not.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        risk: Target in ``[0, 1]``.
        kind: ``"selective"`` (loss per accepted sample) or ``"generalized"`` (loss per sample).

    Returns:
        The choice, without a bound.

    Raises:
        ConfigurationError: a target out of range, unusable samples or none.

    Example:
        >>> empirical_threshold(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0, 0, 1, 1]), risk=0.4)
        ThresholdChoice(threshold=2.0, accepted=3, errors=1.0, samples=4, bound=None)
    """
    summary = _samples(scores, loss)
    threshold = coverage_at_risk(summary, risk=risk, kind=kind)[1]
    return _choice(summary, _group_of(summary, threshold))


def sgr_threshold(
    scores: RiskCoverage | Tensor, loss: Tensor | None = None, *, risk: float, delta: float
) -> ThresholdChoice:
    """Selection with guaranteed risk: a bound on the selective risk that holds with probability ``1 - delta``.

    A binary search over the samples, surest first, looks for the largest number of accepted samples whose exact
    binomial limit at ``delta / ceil(log2 n)`` meets the target. Unlike the published search, it leaves out numbers so
    small that they could not meet it even without an error: below them the limit rises again, and a search that probed
    there would turn the wrong way.

    Why it holds, with data-dependent probes and with ties: suppose errors do not become rarer as the confidence falls,
    so that the true selective risk rises with the coverage and crosses the target at one confidence ``t``. Given the
    number of samples at or above ``t``, a search that always knew the truth would take a fixed path. The first probe at
    which the real search leaves it is either too careful, and all later probes are safe, or accepts too much. There,
    each accepted sample is wrong with at least the probability ``risk``, so that the limit is too low with probability
    at most ``delta / ceil(log2 n)``; and the path has ``ceil(log2 n)`` probes. Without that assumption a probe depends
    on those before it, and the sum over the probes is no proof.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: 1 for an error and 0 else, shape ``(N,)``; only with a confidence.
        risk: Target in ``(0, 1]``.
        delta: Probability with which the promise may fail, in ``(0, 1)``.

    Returns:
        The choice, with the limit of the error rate among accepted samples.

    Raises:
        ConfigurationError: a target out of range, unusable samples or too few, or a loss other than 0 and 1.

    Example:
        >>> confidence, error = torch.arange(1000.0), torch.arange(1000) < 100
        >>> sgr_threshold(confidence, error, risk=0.02, delta=0.05)[:3]
        (93.0, 907, 7.0)

    Reference:
        Geifman, El-Yaniv. Selective Classification for Deep Neural Networks. NeurIPS 2017.
    """
    summary = _samples(scores, loss, binary="sgr")
    count = _enough("sgr", summary, risk, delta)
    budget = _probes(count)
    # fewer cannot meet the target; and these leave no more outcomes than the budget can tell apart
    accepted, most, best = max(_without_errors(risk, delta / budget), 2) - 1, count, -1
    while accepted < most:
        probe = (accepted + most + 1) // 2
        group = int(torch.searchsorted(summary.counts, probe))
        if clopper_pearson_upper(summary.losses[group], summary.counts[group], delta / budget) <= risk:
            accepted, best = probe, group
        else:
            most = probe - 1
    choice = _choice(summary, best)
    if best < 0:
        return choice
    bound = clopper_pearson_upper(summary.losses[best], summary.counts[best], delta / budget)
    return choice._replace(bound=float(bound))


def fixed_sequence_threshold(
    scores: RiskCoverage | Tensor, loss: Tensor | None = None, *, risk: float, delta: float, start: float = 0.25
) -> ThresholdChoice:
    """The promise of :func:`sgr_threshold` with more coverage, if the surest samples are good enough to begin with.

    From the surest ``start`` of the samples on, or as many as could meet the target without an error if these are more,
    thresholds are lowered one by one as long as the exact binomial limit at the whole ``delta`` meets the target.

    Why it holds, under the assumption of :func:`sgr_threshold`: going too far takes a limit that is too low at the one
    confidence ``t`` where the true risk crosses the target, or at the first threshold tried if fewer samples lie above
    ``t``. Which of the two, and how many samples are accepted there, is known from the confidences; each of these is
    wrong with at least the probability ``risk``, so that this happens with probability at most ``delta``.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: 1 for an error and 0 else, shape ``(N,)``; only with a confidence.
        risk: Target in ``(0, 1]``.
        delta: Probability with which the promise may fail, in ``(0, 1)``.
        start: Share of the samples in ``[0, 1]``, chosen without a look at them. A smaller one stumbles over single
            errors among the surest samples, a larger one fails where the target needs less coverage.

    Returns:
        The choice, with the limit of the error rate among accepted samples.

    Raises:
        ConfigurationError: a target out of range, unusable samples or too few, or a loss other than 0 and 1.

    Example:
        >>> confidence, error = torch.arange(1000.0), torch.arange(1000) < 100
        >>> fixed_sequence_threshold(confidence, error, risk=0.02, delta=0.05)[:3]
        (89.0, 911, 11.0)

    Reference:
        Angelopoulos, Bates, Candès, Jordan, Lei. Learn then Test: Calibrating Predictive Algorithms to Achieve Risk
        Control. arXiv 2021.
    """
    check_fraction("start", start, zero=True)
    summary = _samples(scores, loss, binary="fixed_sequence")
    count = _enough("fixed_sequence", summary, risk, delta)
    first = int(torch.searchsorted(summary.counts, max(_without_errors(risk, delta), math.ceil(start * count - 1e-9))))
    # with no new error the limit falls, so that only new errors can end the sequence
    losses = summary.losses[first:]
    tried = torch.cat([losses.new_ones(1, dtype=torch.bool), losses.diff() > 0]).nonzero().squeeze(1) + first
    limits = clopper_pearson_upper(summary.losses[tried], summary.counts[tried], delta)
    failed = tried[limits > risk]
    best = int(failed[0]) - 1 if failed.numel() else summary.counts.numel() - 1
    if best < first:
        return _choice(summary, -1)
    bound = clopper_pearson_upper(summary.losses[best], summary.counts[best], delta)
    return _choice(summary, best)._replace(bound=float(bound))


def rcps_threshold(
    scores: RiskCoverage | Tensor, loss: Tensor | None = None, *, risk: float, delta: float
) -> ThresholdChoice:
    """Smallest threshold with a bound on the generalized risk that holds with probability ``1 - delta``.

    The generalized risk, and the errors counted for it, never fall as the threshold falls. Choosing a threshold where
    the true risk exceeds the target therefore takes a limit that is too low at one fixed threshold, the last one where
    the true risk exceeds it. So the exact binomial limit at ``delta`` needs no correction for the many candidates, and
    neither ties nor candidates taken from the samples matter.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: 1 for an error and 0 else, shape ``(N,)``; only with a confidence.
        risk: Target in ``(0, 1]`` for the share of all samples that are accepted and wrong.
        delta: Probability with which the promise may fail, in ``(0, 1)``.

    Returns:
        The choice, with the limit of the generalized risk.

    Raises:
        ConfigurationError: a target out of range, unusable samples or too few, or a loss other than 0 and 1.

    Example:
        >>> confidence, error = torch.arange(1000.0), torch.arange(1000) < 100
        >>> rcps_threshold(confidence, error, risk=0.02, delta=0.05)[:3]
        (88.0, 912, 12.0)

    Reference:
        Bates, Angelopoulos, Lei, Malik, Jordan. Distribution-Free, Risk-Controlling Prediction Sets. Journal of the
        ACM 2021.
    """
    summary = _samples(scores, loss, binary="rcps")
    count = _enough("rcps", summary, risk, delta)
    allowed = largest_allowed_errors(count, risk, delta)
    choice = _choice(summary, _last(summary, allowed))
    if choice.accepted == 0:
        return choice
    return choice._replace(bound=float(clopper_pearson_upper(int(choice.errors), count, delta)))


def conformal_threshold(scores: RiskCoverage | Tensor, loss: Tensor | None = None, *, risk: float) -> ThresholdChoice:
    """Smallest threshold whose generalized risk meets a target on average over the draw of the samples.

    The rule is ``(accepted loss + 1) / (n + 1) <= risk``. Why it holds: the same rule with the true loss of a new
    sample in place of the 1, over all ``n + 1`` samples, is symmetric in them, so its mean loss on the new one is at
    most ``risk`` by exchangeability. Its threshold is at most the one chosen here, as that one is among its candidates.

    Args:
        scores: Confidence of shape ``(N,)``, higher means surer, or a summary made before.
        loss: Loss in ``[0, 1]``, shape ``(N,)``; only with a confidence.
        risk: Target in ``(0, 1]`` for the expected loss of a sample, which is 0 where it is not accepted.

    Returns:
        The choice; its bound is the left side of the rule.

    Raises:
        ConfigurationError: a target out of range, unusable samples or too few.

    Example:
        >>> confidence, error = torch.arange(1000.0), torch.arange(1000) < 100
        >>> conformal_threshold(confidence, error, risk=0.02)[:3]
        (81.0, 919, 19.0)

    Reference:
        Angelopoulos, Bates, Fisch, Lei, Schuster. Conformal Risk Control. ICLR 2024.
    """
    summary = _samples(scores, loss)
    count = _enough("conformal", summary, risk, None)
    within = ((summary.losses + 1) / (count + 1) <= risk).sum()
    choice = _choice(summary, int(within) - 1)
    return choice._replace(bound=(choice.errors + 1) / (count + 1)) if choice.accepted else choice


def needed_samples(rule: ThresholdRule, risk: float, delta: float | None = None) -> int:
    """Smallest number of samples with which a rule could accept any, which takes samples without an error.

    Args:
        rule: A rule that promises a risk; ``"coverage"`` and ``"empirical"`` need one sample.
        risk: Target in ``(0, 1]``.
        delta: Probability with which the promise may fail, in ``(0, 1)``; not for
            ``"conformal"``.

    Returns:
        The number; every larger one could, too.

    Raises:
        ConfigurationError: an unknown rule or a target out of range.

    Example:
        >>> needed_samples("rcps", 0.01, 0.05), needed_samples("sgr", 0.01, 0.05), needed_samples("conformal", 0.01)
        (299, 528, 99)
    """
    check_choice("rule", rule, RULES)
    if rule in ("coverage", "empirical"):
        return 1
    check_fraction("risk", risk, zero=False)
    if rule == "conformal":
        size = max(math.floor(1 / risk) - 1, 1)
        return size if 1 / (size + 1) <= risk else size + 1
    if delta is None:
        raise ConfigurationError(f"rule={rule!r} needs a delta, such as 0.05 for a confidence of 95 %.")
    check_delta(delta)
    if rule in ("rcps", "fixed_sequence"):
        return _without_errors(risk, delta)
    budget = 1
    while True:
        # sizes of 2 ** (budget - 1) + 1 to 2 ** budget take this many probes
        size = max(_without_errors(risk, delta / budget), 2 ** (budget - 1) + 1)
        if size <= 2**budget and _without_errors(risk, delta / (budget + 1)) <= 2**budget + 1:
            return size
        budget += 1


def _without_errors(risk: float, delta: float) -> int:
    """How many samples without an error have a limit at or below the target."""
    if risk == 1:
        return 1
    size = max(math.floor(math.log(delta) / math.log1p(-risk)), 1)
    return size if clopper_pearson_upper(0, size, delta) <= risk else size + 1


def _probes(count: int) -> int:
    return max((count - 1).bit_length(), 1)


def _samples(scores: RiskCoverage | Tensor, loss: Tensor | None, binary: ThresholdRule | None = None) -> RiskCoverage:
    summary = as_summary(scores, loss, None)
    if summary.is_empty:
        raise ConfigurationError("There are no samples to choose a threshold on; give at least one.")
    values = summary.losses if loss is None else loss
    # of a summary only sums are known; they are whole where every loss is 0 or 1
    whole = values == values.round() if loss is None else (values == 0) | (values == 1)
    if binary is not None and not whole.all():
        other = values[~whole][0].item()
        raise ConfigurationError(
            f"rule={binary!r} counts errors, so every loss must be 0 or 1, got {other:g}; use the rule 'conformal' "
            "for losses in between."
        )
    return summary


def _enough(rule: ThresholdRule, summary: RiskCoverage, risk: float, delta: float | None) -> int:
    """Return how many samples there are, or raise where no outcome on them could meet the target."""
    count, needed = int(summary.total), needed_samples(rule, risk, delta)
    if count < needed:
        level = "" if delta is None else f" at a confidence of {1 - delta:.6g}"
        cure = "a larger risk" if delta is None else "a larger risk or a lower confidence"
        raise ConfigurationError(
            f"risk={risk:g}{level} needs at least {needed} samples by the rule {rule!r}, even if none is wrong, and "
            f"{count} were given; use more samples, {cure}."
        )
    return count


def _group_of(summary: RiskCoverage, threshold: Tensor) -> int:
    """Index of the last group at or above a threshold, -1 where there is none."""
    return int((summary.thresholds >= threshold).sum()) - 1


def _last(summary: RiskCoverage, allowed: int | None) -> int:
    """Index of the last group up to which there are no more errors than allowed, -1 where there is none."""
    return -1 if allowed is None else int((summary.losses <= allowed).sum()) - 1


def _choice(summary: RiskCoverage, group: int) -> ThresholdChoice:
    samples = int(summary.total)
    if group < 0:
        return ThresholdChoice(math.inf, 0, 0.0, samples, None)
    accepted, errors = int(summary.counts[group]), float(summary.losses[group])
    return ThresholdChoice(float(summary.thresholds[group]), accepted, errors, samples, None)
