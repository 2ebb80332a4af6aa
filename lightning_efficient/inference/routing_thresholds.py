"""Calibrated thresholds of a hybrid or cascade: the numbers, what they do on the samples, and what they promise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional.cascade import as_stages, cascade_choice, published_thresholds
from lightning_efficient.functional.drop_control import (
    DROP_RULES,
    DROP_RULES_WITH_LEVEL,
    DropRule,
    check_max_drop,
    choose_drop_point,
    needed_samples_for_drop,
    too_few_for_drop,
)
from lightning_efficient.functional.threshold_path import query_thresholds
from lightning_efficient.functional.threshold_path import threshold_path as threshold_path
from lightning_efficient.inference._calibrated import (
    COMMON_ENTRIES,
    LARGEST,
    check_calibrated,
    damaged_values,
    is_number,
    is_share,
)
from lightning_efficient.inference._routing_promise import routing_promise

VERSION = 1
"""Of the dictionary that :meth:`CalibratedRouting.to_dict` returns."""

RoutingRule: TypeAlias = Literal["coverage", "published"] | DropRule
ROUTING_RULES: tuple[RoutingRule, ...] = ("coverage", "published", *DROP_RULES)

PILOT_PART, LARGEST_PILOT = 5, 2000
"""Which part of the samples makes the path where none is given, a fifth, and how many at most."""
MOST_STEPS = 1000
"""Of coverage, where all samples make the path."""
SEED = 0
"""Of the samples that make the path, and of the order in which ``betting`` goes through the others."""


@dataclass(frozen=True)
class CalibratedRouting:
    """Thresholds of query scores with the promise that comes with them; made by :func:`calibrate_routing`.

    Attributes:
        thresholds: One for each of the ``M`` models but the last: it answers where its query score is at most this,
            else the next one is asked. Infinity keeps every sample, its negative none.
        rule: How they were chosen.
        max_drop: The drop of accuracy against the last model that was tolerated, a fraction; ``None`` for a coverage.
        coverage_target: The share that each model but the last should answer of what reaches it, or ``None``.
        confidence: Probability with which the promise holds, over the draw of the calibration samples; ``None`` where
            the rule has none.
        samples: How many calibration samples there were, those that made the path left out.
        coverage: Share of them that the first model answers.
        shares: Share of them that each model answers, ``M`` numbers.
        accuracy: Share of them that the cascade gets right.
        full_accuracy: Share of them that the last model gets right.
        base_accuracy: Share of them that the first model gets right.
        drop: ``full_accuracy - accuracy``; below 0 where the cascade is better.
        bound: The upper bound of the drop that met the target, ``None`` where the rule has none.
        kept_disagreement: Among the samples that the last model is not asked about, the share on which it would have
            answered differently; 0 where there are none.
        promise: What holds, in one sentence.
    """

    thresholds: tuple[float, ...]
    rule: RoutingRule
    max_drop: float | None
    coverage_target: float | None
    confidence: float | None
    samples: int
    coverage: float
    shares: tuple[float, ...]
    accuracy: float
    full_accuracy: float
    base_accuracy: float
    drop: float
    bound: float | None
    kept_disagreement: float
    promise: str

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: infinities become ``"inf"`` and ``"-inf"``, and ``version`` is added.

        Example:
            >>> import torch
            >>> scores, target = torch.tensor([0.1, 0.9]), torch.tensor([1, 1])
            >>> found = calibrate_routing(scores, torch.ones(2, 2, dtype=torch.int64), target, coverage=1.0)
            >>> found.to_dict()["thresholds"], CalibratedRouting.from_dict(found.to_dict()) == found
            (['inf'], True)
        """
        thresholds = [value if math.isfinite(value) else str(value) for value in self.thresholds]
        return {"version": VERSION, **asdict(self), "thresholds": thresholds, "shares": list(self.shares)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibratedRouting:
        """Read what :meth:`to_dict` returned.

        Raises:
            ConfigurationError: another version, a name that is missing or unknown, or a value that cannot be.
        """
        given = check_calibrated(values, _WHAT, VERSION, _ENTRIES)
        thresholds, shares = tuple(map(float, given["thresholds"])), tuple(given["shares"])
        if len(shares) != len(thresholds) + 1:
            raise damaged_values(_WHAT, f"it has {len(thresholds)} thresholds and {len(shares)} shares")
        return cls(**{**given, "thresholds": thresholds, "shares": shares})


def calibrate_routing(
    query_scores: Tensor,
    stage_predictions: Tensor,
    target: Tensor,
    *,
    max_drop: float | None = None,
    coverage: float | None = None,
    confidence_level: float | None = None,
    rule: RoutingRule | None = None,
    path: Tensor | None = None,
) -> CalibratedRouting:
    """Choose the thresholds of a hybrid or cascade on samples that no model or router has been trained on.

    Args:
        query_scores: Larger means: ask the next model; shape ``(N,)`` for two models, else ``(N, M - 1)``, any float
            dtype; half precision is compared as float32. A score that is not finite is never kept.
        stage_predictions: The class that each model answers, the last one being the full model, integers of shape
            ``(N, M)``.
        target: True classes, integers of shape ``(N,)``.
        max_drop: Tolerated drop of accuracy against the full model, a fraction in ``(0, 1)``; this or ``coverage``.
        coverage: Share in ``(0, 1]`` that each model but the last shall answer of what reaches it.
        confidence_level: Probability with which the drop shall stay within ``max_drop``, in ``(0, 1)``, such as 0.95.
        rule: ``None`` chooses by what is given: ``"coverage"`` for a coverage, ``"empirical"`` for a drop alone,
            ``"betting"`` for a drop with a confidence level. By name only: ``"binomial"`` and ``"difference"`` with a
            confidence level, ``"conformal"`` for a drop on average, and ``"published"``, which takes ``max_drop`` as
            the tolerance of each model for itself. See :mod:`lightning_efficient.functional.drop_control` and
            :func:`~lightning_efficient.functional.cascade.published_thresholds`.
        path: Thresholds to choose among, from "always ask" to "never ask", shape ``(T, M - 1)``, such as
            :func:`threshold_path` of other samples, fixed before. Without it, a fifth of the samples, at most 2000
            drawn with a fixed seed, makes the path, and plays no further part; ``"empirical"`` promises nothing and
            uses all samples for both, in steps of coverage of at least 0.001.

    Returns:
        The thresholds and their promise. Where none meets the target, they are minus infinity: everything is asked of
        the full model, and the promise says why.

    Raises:
        ConfigurationError: options that do not go together, a target out of range, too few or unusable samples.

    Example:
        >>> import torch
        >>> scores, target = torch.arange(1000) / 1000, torch.zeros(1000, dtype=torch.int64)
        >>> base = (torch.arange(1000) > 700).long()
        >>> stages = torch.stack([base, target], dim=1)
        >>> path = torch.linspace(0, 1, 101).unsqueeze(1)
        >>> found = calibrate_routing(scores, stages, target, max_drop=0.02, confidence_level=0.9, path=path)
        >>> f"{found.thresholds[0]:.2f} {found.rule} {found.coverage:.3f} {found.drop:.3f}"
        '0.71 betting 0.711 0.010'
        >>> print(found.promise)  # doctest: +NORMALIZE_WHITESPACE
        With probability at least 90 % over the draw of the 1,000 calibration samples, accuracy is at most 2 percentage
        points below that of the full model, if new samples come from the same distribution and every query is answered.
    """
    scores, predictions, target = _samples(query_scores, stage_predictions, target)
    rule = _rule(rule, max_drop, coverage, confidence_level)
    if path is not None and rule in ("coverage", "published"):
        raise ConfigurationError(f"rule={rule!r} chooses among all thresholds; leave the path out.")
    delta = None if confidence_level is None else 1 - confidence_level
    bound, pilot = None, 0
    if rule == "coverage":
        assert coverage is not None
        thresholds = query_thresholds(scores, coverage)
    elif rule == "published":
        assert max_drop is not None
        thresholds = _published(scores, predictions == target.unsqueeze(1), max_drop)
    else:
        assert max_drop is not None
        if path is not None:
            path = _checked_path(path, scores.shape[1])
        elif rule == "empirical":
            path = threshold_path(scores, points=min(len(scores), MOST_STEPS) + 1)
        else:
            order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(SEED))
            pilot = _pilot_size(len(scores), rule, max_drop, delta)
            path = threshold_path(scores[order[:pilot]])
            scores, predictions, target = (each[order[pilot:]] for each in (scores, predictions, target))
        choice = choose_drop_point(
            _path_outcomes(scores, predictions, target, path),
            predictions[:, -1] == target,
            max_drop=max_drop,
            delta=delta,
            rule=rule,
            seed=SEED,
        )
        bound = choice.bound
        thresholds = path[choice.index] if choice.index >= 0 else torch.full_like(path[0], -math.inf)
    return _described(
        thresholds,
        scores,
        predictions,
        target,
        pilot=pilot,
        bound=bound,
        rule=rule,
        max_drop=max_drop,
        coverage_target=coverage,
        confidence=confidence_level,
    )


def _published(scores: Tensor, correct: Tensor, tolerance: float) -> Tensor:
    thresholds = torch.full((scores.shape[1],), -math.inf, dtype=torch.float64)
    for stage, column in enumerate(scores.unbind(1)):
        usable = column.isfinite()
        if usable.any():
            confidence = -column[usable].unsqueeze(0)
            thresholds[stage] = -published_thresholds(confidence, correct[usable, stage].unsqueeze(0), tolerance)[0]
    return thresholds


def _path_outcomes(scores: Tensor, predictions: Tensor, target: Tensor, path: Tensor) -> Tensor:
    """Return whether the cascade is right at each point of a path, boolean, shape ``(N, T)``."""
    correct = predictions == target.unsqueeze(1)
    choices = [cascade_choice(scores, thresholds) for thresholds in path]
    return torch.cat([correct.gather(1, choice.unsqueeze(1)) for choice in choices], dim=1)


def _pilot_size(samples: int, rule: DropRule, max_drop: float, delta: float | None) -> int:
    """Return how many samples make the path, or raise where too few are left for the promise."""
    needed = needed_samples_for_drop(rule, max_drop, delta)
    if samples - _share_of(samples) < needed:
        in_all = next(size for size in count(needed) if size - _share_of(size) >= needed)
        raise ConfigurationError(too_few_for_drop(rule, max_drop, delta, in_all, samples))
    return _share_of(samples)


def _share_of(samples: int) -> int:
    return min(max(samples // PILOT_PART, 1), LARGEST_PILOT)


def _described(
    thresholds: Tensor,
    scores: Tensor,
    predictions: Tensor,
    target: Tensor,
    *,
    pilot: int,
    bound: float | None,
    **asked: Any,
) -> CalibratedRouting:
    choice = cascade_choice(scores, thresholds)
    answers = predictions.gather(1, choice.unsqueeze(1)).squeeze(1)
    samples, stages = predictions.shape
    counts = choice.bincount(minlength=stages).tolist()
    right, full_right = int((answers == target).sum()), int((predictions[:, -1] == target).sum())
    kept = choice < stages - 1
    differs = int((kept & (answers != predictions[:, -1])).sum())
    return CalibratedRouting(
        thresholds=tuple(thresholds.tolist()),
        samples=samples,
        coverage=counts[0] / samples,
        shares=tuple(count / samples for count in counts),
        accuracy=right / samples,
        full_accuracy=full_right / samples,
        base_accuracy=int((predictions[:, 0] == target).sum()) / samples,
        drop=(full_right - right) / samples,
        kept_disagreement=differs / max(int(kept.sum()), 1),
        bound=bound,
        promise=routing_promise(samples=samples, pilot=pilot, first=counts[0], kept=int(kept.sum()), **asked),
        **asked,
    )


def meant_routing_rule(coverage: float | None, level: float | None) -> RoutingRule:
    """Return the rule that ``calibrate_routing`` takes where none is named."""
    if coverage is not None:
        return "coverage"
    return "empirical" if level is None else "betting"


def _rule(rule: RoutingRule | None, max_drop: float | None, coverage: float | None, level: float | None) -> RoutingRule:
    """Return the rule that the options mean, or raise where they do not go together."""
    if (max_drop is None) == (coverage is None):
        raise ConfigurationError(
            f"Give either max_drop or coverage as the target, got max_drop={max_drop} and coverage={coverage}."
        )
    rule = rule or meant_routing_rule(coverage, level)
    check_choice("rule", rule, ROUTING_RULES)
    if (rule == "coverage") != (coverage is not None):
        wanted = "coverage" if rule == "coverage" else "max_drop"
        raise ConfigurationError(f"rule={rule!r} needs {wanted} as its target; give {wanted} or leave the rule out.")
    if level is None and rule in DROP_RULES_WITH_LEVEL:
        raise ConfigurationError(f"rule={rule!r} needs a confidence_level, such as 0.95.")
    if level is not None and rule not in DROP_RULES_WITH_LEVEL:
        message = f"rule={rule!r} promises nothing with a probability; leave confidence_level={level!r} out."
        raise ConfigurationError(message)
    if level is not None and not 0 < level < 1:
        raise ConfigurationError(f"confidence_level={level!r} is outside (0, 1); give a fraction such as 0.95.")
    if coverage is not None:
        check_fraction("coverage", coverage, zero=False)
    elif rule == "published":
        check_fraction("max_drop", max_drop or 0.0, zero=True)
    else:
        check_max_drop(0.0 if max_drop is None else max_drop)
    return rule


def _samples(query_scores: Tensor, stage_predictions: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scores = as_stages(query_scores.detach().cpu())
    samples, stages = len(scores), scores.shape[1] + 1
    if samples == 0:
        raise ConfigurationError("There are no samples to choose a threshold on; give at least one.")
    for name, given, shape in (
        ("stage_predictions", stage_predictions, (samples, stages)),
        ("target", target, (samples,)),
    ):
        if given.shape != shape or given.is_floating_point() or given.dtype == torch.bool:
            raise ConfigurationError(
                f"{name} has dtype {given.dtype} and shape {tuple(given.shape)}; give class indices, integers of shape "
                f"{shape}."
            )
    return scores, stage_predictions.detach().cpu().long(), target.detach().cpu().long()


def _checked_path(path: Tensor, columns: int) -> Tensor:
    path = path.detach().cpu().double()
    if path.ndim != 2 or path.shape[1] != columns or len(path) == 0:
        raise ConfigurationError(f"path has shape {tuple(path.shape)}; give (points, {columns}), at least one point.")
    if path.isnan().any() or (path[1:] < path[:-1]).any():
        raise ConfigurationError("path must never fall from one point to the next, from 'always ask' to 'never ask'.")
    return path


def _is_list(value: object, least: int, allowed: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) >= least and all(map(allowed, value))


_WHAT = "routing"
_ENTRIES: Mapping[str, Callable[[Any], bool]] = {
    "thresholds": lambda value: _is_list(
        value, 1, lambda each: each in ("inf", "-inf") or is_number(each, -LARGEST, LARGEST)
    ),
    "rule": lambda value: value in ROUTING_RULES,
    "max_drop": lambda value: value is None or is_share(value),
    "coverage_target": lambda value: value is None or is_share(value),
    "shares": lambda value: _is_list(value, 2, is_share),
    "accuracy": is_share,
    "full_accuracy": is_share,
    "base_accuracy": is_share,
    "drop": lambda value: is_number(value, -1, 1),
    "bound": lambda value: value is None or is_number(value, -1, 1),
    "kept_disagreement": is_share,
    **COMMON_ENTRIES,
}
