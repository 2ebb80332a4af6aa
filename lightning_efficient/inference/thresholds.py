"""A calibrated threshold: the number, what it does on the calibration samples, and what it promises for new ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from decimal import ROUND_DOWN, ROUND_UP
from typing import Any

from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice
from lightning_efficient.functional.operating_points import RISK_KINDS, RiskKind
from lightning_efficient.functional.risk_coverage import are_errors
from lightning_efficient.functional.thresholds import (
    RISK_OF_RULE,
    RULES,
    RULES_WITH_LEVEL,
    ThresholdChoice,
    ThresholdRule,
    conformal_threshold,
    coverage_threshold,
    empirical_threshold,
    fixed_sequence_threshold,
    rcps_threshold,
    sgr_threshold,
)
from lightning_efficient.inference._calibrated import (
    COMMON_ENTRIES,
    LARGEST,
    check_calibrated,
    is_number,
    is_share,
    percent,
)

VERSION = 1
"""Of the dictionary that :meth:`CalibratedThreshold.to_dict` returns."""

_WITH_LEVEL = {"sgr": sgr_threshold, "fixed_sequence": fixed_sequence_threshold, "rcps": rcps_threshold}


@dataclass(frozen=True)
class CalibratedThreshold:
    """A threshold with the promise that comes with it; made by :func:`calibrate_threshold`.

    Attributes:
        threshold: Answer where ``confidence >= threshold``; infinity where nothing is answered.
        rule: How it was chosen.
        kind: Which risk ``target``, ``risk`` and ``bound`` mean: ``"selective"`` per answered sample, ``"generalized"``
            per sample.
        target: The risk, or for the rule ``"coverage"`` the coverage, that was asked for.
        confidence: Probability with which the promise holds, over the draw of the calibration samples; ``None`` where
            the rule has none.
        samples: How many calibration samples there were.
        coverage: Share of them that is answered.
        risk: Their risk; 0 where nothing is answered.
        bound: The upper bound of the risk that met the target, ``None`` where the rule has none or nothing is answered.
        promise: What holds, in one sentence.
    """

    threshold: float
    rule: ThresholdRule
    kind: RiskKind
    target: float
    confidence: float | None
    samples: int
    coverage: float
    risk: float
    bound: float | None
    promise: str

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: infinity becomes the string ``"inf"``, and ``version`` is added.

        Example:
            >>> import torch
            >>> found = calibrate_threshold(torch.tensor([0.9, 0.8]), torch.tensor([1, 1]), risk=0.1)
            >>> found.to_dict()["threshold"], CalibratedThreshold.from_dict(found.to_dict()) == found
            ('inf', True)
        """
        values = {"version": VERSION, **asdict(self)}
        return values | {"threshold": "inf"} if self.threshold == math.inf else values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibratedThreshold:
        """Read what :meth:`to_dict` returned.

        Raises:
            ConfigurationError: another version, a name that is missing or unknown, or a value that cannot be.
        """
        given = check_calibrated(values, "threshold", VERSION, _ENTRIES)
        return cls(**{**given, "threshold": float(given["threshold"])})


def calibrate_threshold(
    confidence: Tensor,
    loss: Tensor,
    *,
    risk: float | None = None,
    coverage: float | None = None,
    confidence_level: float | None = None,
    kind: RiskKind = "selective",
    rule: ThresholdRule | None = None,
) -> CalibratedThreshold:
    """Choose the threshold of an abstaining classifier on samples that played no part in its training.

    Args:
        confidence: Higher means surer, shape ``(N,)``, any float dtype; half precision is compared as float32.
        loss: 1 for a wrong prediction and 0 else, shape ``(N,)``; the rules without a confidence level take any values
            in ``[0, 1]``.
        risk: Target of the risk, a fraction; give this or ``coverage``.
        coverage: Target of the share that is answered, a fraction.
        confidence_level: Probability with which the risk shall hold, in ``(0, 1)``, such as 0.95.
        kind: ``"selective"``: the share of wrong answers among the answered; ``"generalized"``: among all samples.
        rule: ``None`` chooses by what is given: ``"coverage"`` for a coverage, ``"empirical"`` for a risk alone,
            ``"sgr"`` for a selective and ``"rcps"`` for a generalized risk with a confidence level. By name only:
            ``"fixed_sequence"``, the promise of ``"sgr"`` with more coverage in general, and ``"conformal"``, a
            generalized risk on average. See :mod:`lightning_efficient.functional.thresholds`.

    Returns:
        The threshold and its promise. Where no threshold meets the target, it is infinite, and the promise says why.

    Raises:
        ConfigurationError: options that do not go together, a target out of range, too few or unusable samples.

    Example:
        >>> import torch
        >>> confidence, wrong = torch.arange(1000) / 1000, torch.arange(1000) < 100
        >>> found = calibrate_threshold(confidence, wrong, risk=0.05, confidence_level=0.95, kind="generalized")
        >>> f"{found.threshold:.3f} {found.rule} {found.coverage:.3f} {found.bound:.4f}"
        '0.062 rcps 0.938 0.0495'
        >>> print(found.promise)  # doctest: +NORMALIZE_WHITESPACE
        With probability at least 95 % over the draw of the 1,000 calibration samples, at most 5 % of all samples are
        answered and wrong, if new samples come from the same distribution.
    """
    if (risk is None) == (coverage is None):
        raise ConfigurationError(
            f"Give either risk or coverage as the target, got risk={risk} and coverage={coverage}."
        )
    check_choice("kind", kind, RISK_KINDS)
    rule = _rule(rule, coverage, confidence_level, kind)
    if rule == "coverage":
        assert coverage is not None
        target, choice = coverage, coverage_threshold(confidence, loss, coverage=coverage)
    else:
        assert risk is not None
        target = risk
        if rule == "empirical":
            choice = empirical_threshold(confidence, loss, risk=risk, kind=kind)
        elif rule == "conformal":
            choice = conformal_threshold(confidence, loss, risk=risk)
        else:
            assert confidence_level is not None
            choice = _WITH_LEVEL[rule](confidence, loss, risk=risk, delta=1 - confidence_level)
    counted = are_errors(loss)
    over = choice.accepted if kind == "selective" else choice.samples
    return CalibratedThreshold(
        threshold=choice.threshold,
        rule=rule,
        kind=kind,
        target=target,
        confidence=confidence_level,
        samples=choice.samples,
        coverage=choice.accepted / choice.samples,
        risk=choice.errors / over if choice.accepted else 0.0,
        bound=choice.bound,
        promise=_promise(rule, kind, target, confidence_level, choice, counted),
    )


def meant_rule(coverage: float | None, level: float | None, kind: RiskKind) -> ThresholdRule:
    """Return the rule that ``calibrate_threshold`` takes where none is named."""
    if coverage is not None:
        return "coverage"
    if level is None:
        return "empirical"
    return "sgr" if kind == "selective" else "rcps"


def _rule(rule: ThresholdRule | None, coverage: float | None, level: float | None, kind: RiskKind) -> ThresholdRule:
    """Return the rule that the options mean, or raise where they do not go together."""
    rule = rule or meant_rule(coverage, level, kind)
    check_choice("rule", rule, RULES)
    if (rule == "coverage") != (coverage is not None):
        wanted = "coverage" if rule == "coverage" else "risk"
        raise ConfigurationError(f"rule={rule!r} needs a {wanted} as its target; give {wanted} or leave the rule out.")
    if kind != RISK_OF_RULE.get(rule, kind):
        raise ConfigurationError(f"rule={rule!r} bounds the {RISK_OF_RULE[rule]} risk, got kind={kind!r}.")
    if level is None and rule in RULES_WITH_LEVEL:
        raise ConfigurationError(f"rule={rule!r} needs a confidence_level, such as 0.95.")
    if level is not None and rule not in RULES_WITH_LEVEL:
        message = f"rule={rule!r} promises nothing with a probability; leave confidence_level={level!r} out."
        raise ConfigurationError(message)
    if level is not None and not 0 < level < 1:
        raise ConfigurationError(f"confidence_level={level!r} is outside (0, 1); give a fraction such as 0.95.")
    return rule


def _promise(
    rule: ThresholdRule, kind: RiskKind, target: float, level: float | None, choice: ThresholdChoice, counted: bool
) -> str:
    share, samples = percent(target, ROUND_UP), f"{choice.samples:,} calibration samples"
    if rule == "coverage":
        wanted = max(math.ceil(target * choice.samples - 1e-9), 1)
        # rounded down, as it is a lower bound
        expected = math.floor(10_000 * wanted / (choice.samples + 1)) / 100
        return (
            f"On average over the draw of the {samples}, at least {expected:g} % of new samples are answered, "
            "if they come from the same distribution; nothing is promised about their risk."
        )
    if counted:
        what = f"{share} of " + ("the answered samples are wrong" if kind == "selective" else _JOINT)
    else:
        what = f"{share} is the mean loss of " + ("the answered samples" if kind == "selective" else _JOINT_LOSS)
    if choice.accepted == 0:
        return f"Nothing is answered: on these {samples}, {_WHY_NOTHING[rule]} at most {share}."
    if rule == "empirical":
        return f"On these {samples}, at most {what}; nothing is guaranteed for new samples."
    when = "if new samples come from the same distribution"
    if rule == "conformal":
        return f"On average over the draw of the {samples}, at most {what}, {when}; one draw alone may exceed it."
    assert level is not None
    if kind == "selective":
        when += " and errors do not become rarer as confidence falls"
    probability = percent(level, ROUND_DOWN)
    return f"With probability at least {probability} over the draw of the {samples}, at most {what}, {when}."


_JOINT = "all samples are answered and wrong"
_JOINT_LOSS = "all samples, those not answered counting 0"
_WHY_NOTHING = {
    "empirical": "no threshold has a risk of",
    "sgr": "no threshold that the search tried has an upper bound of the risk of",
    "fixed_sequence": "no threshold that was tried has an upper bound of the risk of",
    "rcps": "no threshold has an upper bound of the risk of",
    "conformal": "no threshold has a corrected risk, (loss + 1) / (samples + 1), of",
}


_ENTRIES: Mapping[str, Callable[[Any], bool]] = {
    "threshold": lambda value: value == "inf" or is_number(value, -LARGEST, LARGEST),
    "rule": lambda value: value in RULES,
    "kind": lambda value: value in RISK_KINDS,
    "target": is_share,
    "risk": is_share,
    "bound": lambda value: value is None or is_share(value),
    **COMMON_ENTRIES,
}
