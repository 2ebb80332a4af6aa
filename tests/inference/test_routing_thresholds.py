"""Calibrated thresholds of a hybrid or cascade: rules, promises, what is measured, and that they survive a file."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.cascade import cascade_choice, published_thresholds
from lightning_efficient.functional.drop_control import DROP_RULES, choose_drop_point
from lightning_efficient.inference.routing_thresholds import (
    ROUTING_RULES,
    CalibratedRouting,
    calibrate_routing,
    threshold_path,
)

INF = math.inf
OPTIONS: dict[str, dict[str, Any]] = {
    "coverage": {"coverage": 0.7},
    "published": {"max_drop": 0.05, "rule": "published"},
    "betting": {"max_drop": 0.05, "confidence_level": 0.9},
    "binomial": {"max_drop": 0.05, "confidence_level": 0.9, "rule": "binomial"},
    "difference": {"max_drop": 0.05, "confidence_level": 0.9, "rule": "difference"},
    "conformal": {"max_drop": 0.05, "rule": "conformal"},
    "empirical": {"max_drop": 0.05},
}
every_rule = pytest.mark.parametrize("rule", ROUTING_RULES)
Samples = tuple[Tensor, Tensor, Tensor]


def make(samples: int = 2000, stages: int = 2, seed: int = 0) -> Samples:
    """Each stage errs more often where its query score is high; later ones err less."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(samples, stages - 1, generator=draw)
    hard = torch.cat([scores, scores[:, -1:]], dim=1)
    wrong = torch.rand(samples, stages, generator=draw) < 0.6 * hard**2 / torch.arange(1, stages + 1)
    target = torch.randint(10, (samples,), generator=draw)
    return scores, torch.where(wrong, (target.unsqueeze(1) + 1) % 10, target.unsqueeze(1)), target


def path_of(stages: int = 2) -> Tensor:
    return threshold_path(make(500, stages, seed=9)[0])


# ---- which rule


@every_rule
def test_the_options_name_the_rule(rule: str) -> None:
    found = calibrate_routing(*make(), **OPTIONS[rule])
    assert found == calibrate_routing(*make(), **(OPTIONS[rule] | {"rule": rule}))
    assert found.rule == rule
    assert found.max_drop == OPTIONS[rule].get("max_drop")
    assert found.coverage_target == OPTIONS[rule].get("coverage")
    assert found.confidence == OPTIONS[rule].get("confidence_level")


@pytest.mark.parametrize("rule", DROP_RULES)
@pytest.mark.parametrize("stages", [2, 4])
def test_thresholds_are_the_point_of_the_path_that_the_rule_chooses(rule: Any, stages: int) -> None:
    scores, predictions, target = make(stages=stages)
    path = path_of(stages)
    found = calibrate_routing(scores, predictions, target, path=path, **OPTIONS[rule])
    answers = [predictions.gather(1, cascade_choice(scores, t).unsqueeze(1)).squeeze(1) for t in path]
    level = OPTIONS[rule].get("confidence_level")
    choice = choose_drop_point(
        torch.stack([answer == target for answer in answers], dim=1),
        predictions[:, -1] == target,
        max_drop=0.05,
        delta=None if level is None else 1 - level,
        rule=rule,
    )
    assert 0 < choice.index < 100
    assert found.thresholds == tuple(path[choice.index].tolist())
    assert (found.drop, found.bound, found.samples) == (pytest.approx(choice.drop), choice.bound, 2000)


@pytest.mark.parametrize("stages", [2, 3])
def test_the_published_rule_is_that_of_confidences_stage_by_stage(stages: int) -> None:
    scores, predictions, target = make(stages=stages)
    correct = predictions == target.unsqueeze(1)
    expected = -published_thresholds(-scores.T, correct.T[:-1], 0.05)
    found = calibrate_routing(scores, predictions, target, **OPTIONS["published"])
    assert found.thresholds == tuple(expected.tolist())


def test_the_published_rule_leaves_out_scores_that_are_not_finite() -> None:
    scores, predictions, target = make()
    expected = calibrate_routing(scores, predictions, target, **OPTIONS["published"]).thresholds
    odd = torch.tensor([[INF], [-INF], [math.nan]])
    wrong = torch.ones(3, 2, dtype=torch.int64)
    mixed = torch.cat([scores, odd]), torch.cat([predictions, wrong]), torch.cat([target, torch.zeros(3).long()])
    assert calibrate_routing(*mixed, **OPTIONS["published"]).thresholds == expected
    assert calibrate_routing(odd, wrong, wrong[:, 0], **OPTIONS["published"]).thresholds == (-INF,)


# ---- what it does on the samples


@every_rule
@pytest.mark.parametrize("stages", [2, 3])
def test_shares_and_accuracies_are_those_of_the_thresholds_on_these_samples(rule: str, stages: int) -> None:
    scores, predictions, target = make(stages=stages)
    path = None if rule in ("coverage", "published") else path_of(stages)
    found = calibrate_routing(scores, predictions, target, path=path, **OPTIONS[rule])
    source = cascade_choice(scores, found.thresholds)
    answer = predictions[torch.arange(2000), source]
    assert found.shares == tuple((source == stage).double().mean().item() for stage in range(stages))
    assert sum(found.shares) == pytest.approx(1)
    assert found.coverage == found.shares[0] > 0
    assert found.accuracy == (answer == target).double().mean().item()
    assert found.full_accuracy == (predictions[:, -1] == target).double().mean().item()
    assert found.base_accuracy == (predictions[:, 0] == target).double().mean().item()
    assert found.drop == pytest.approx(found.full_accuracy - found.accuracy)
    kept = source < stages - 1
    differs = (answer != predictions[:, -1])[kept].double().mean().item()
    assert found.kept_disagreement == pytest.approx(differs)


@given(shift=st.integers(-3, 3), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_a_larger_target_never_asks_the_full_model_more_often(shift: int, seed: int) -> None:
    samples = make(800, seed=seed)
    path = path_of()
    targets = [0.04 + 0.005 * shift, 0.06 + 0.005 * shift]
    for rule in ("binomial", "conformal", "empirical"):
        given = {**OPTIONS[rule], "path": path}
        low, high = (calibrate_routing(*samples, **{**given, "max_drop": target}) for target in targets)
        assert low.coverage <= high.coverage


def test_the_empirical_rule_reaches_every_coverage_that_the_samples_have() -> None:
    scores, predictions, target = make(300)
    found = calibrate_routing(scores, predictions, target, **OPTIONS["empirical"])
    drops = {}
    for threshold in scores.squeeze(1).tolist():
        kept = scores.squeeze(1) <= threshold
        answer = torch.where(kept, predictions[:, 0], predictions[:, 1])
        drop = ((predictions[:, 1] == target).sum() - (answer == target).sum()).item() / 300
        drops[kept.double().mean().item()] = drop
    assert found.coverage == max(coverage for coverage, drop in drops.items() if drop <= 0.05)
    assert found.samples == 300


def test_one_dimension_is_enough_for_a_hybrid() -> None:
    scores, *rest = make()
    one, two = (calibrate_routing(each, *rest, coverage=0.5) for each in (scores.squeeze(1), scores))
    assert one == two


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_at_least_the_coverage(dtype: torch.dtype) -> None:
    scores, *rest = make()
    found = calibrate_routing(scores.to(dtype), *rest, coverage=0.5)
    assert 0.5 <= found.coverage < 0.51
    assert (scores.to(dtype).double() <= found.thresholds[0]).double().mean().item() == found.coverage


# ---- the path


def test_without_a_path_a_fifth_of_the_samples_makes_it_and_is_not_calibrated_on() -> None:
    scores, predictions, target = make(1000)
    found = calibrate_routing(scores, predictions, target, **OPTIONS["betting"])
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    path = threshold_path(scores[order[:200]])
    rest = order[200:]
    same = calibrate_routing(scores[rest], predictions[rest], target[rest], path=path, **OPTIONS["betting"])
    assert found.thresholds == same.thresholds
    assert found.samples == same.samples == 800
    assert "the 800 calibration samples (200 others made the path of thresholds)" in found.promise
    assert "others" not in same.promise


def test_the_pilot_is_no_larger_than_it_needs_to_be() -> None:
    found = calibrate_routing(*make(20_000), **OPTIONS["betting"])
    assert found.samples == 18_000
    with pytest.raises(ConfigurationError, match="needs at least 13512 samples"):
        calibrate_routing(*make(100), max_drop=0.0002, confidence_level=0.9, rule="binomial")


def test_the_empirical_rule_needs_no_table_of_all_samples_at_all_thresholds() -> None:
    found = calibrate_routing(*make(20_000), **OPTIONS["empirical"])
    assert found.drop <= 0.05
    assert found.coverage * 1000 == pytest.approx(round(found.coverage * 1000), abs=1e-9)


@pytest.mark.parametrize("rule", ["betting", "binomial", "difference", "conformal"])
@pytest.mark.parametrize("max_drop", [0.01, 0.03, 0.3])
def test_the_number_in_the_message_is_the_smallest_that_is_enough(rule: str, max_drop: float) -> None:
    given = {**OPTIONS[rule], "max_drop": max_drop}
    with pytest.raises(ConfigurationError, match=rf"max_drop={max_drop}.* needs at least \d+ samples") as caught:
        calibrate_routing(*make(2), **given)
    assert "\n" not in str(caught.value)
    needed = int(str(caught.value).split("at least ")[1].split()[0])
    calibrate_routing(*make(needed), **given)
    with pytest.raises(ConfigurationError, match=f"needs at least {needed} samples .*and {needed - 1} were given"):
        calibrate_routing(*make(needed - 1), **given)


def test_with_a_path_every_sample_counts_towards_the_number_that_is_needed() -> None:
    with pytest.raises(ConfigurationError, match=r"confidence_level=0\.9 needs at least 230 samples by the rule 'bin"):
        calibrate_routing(*make(229), **{**OPTIONS["binomial"], "max_drop": 0.01}, path=path_of())
    assert calibrate_routing(*make(230), **{**OPTIONS["binomial"], "max_drop": 0.01}, path=path_of()).samples == 230


# ---- the promise


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("coverage", ["On average", "at least 69.96 %", "first model", "nothing is promised about the accuracy"]),
        ("published", ["5 percentage points below its best", "nothing is guaranteed"]),
        ("betting", ["With probability at least 90 %", "2,000", "at most 5 percentage points below", "every query is"]),
        ("binomial", ["With probability at least 90 %", "at most 5 percentage points below"]),
        ("difference", ["With probability at least 90 %", "at most 5 percentage points below"]),
        ("conformal", ["On average over the draw", "at most 5 percentage points below", "one draw alone may exceed"]),
        ("empirical", ["On these 2,000", "nothing is guaranteed for new samples"]),
    ],
)
def test_the_promise_says_what_holds(rule: str, words: list[str]) -> None:
    path = None if rule in ("coverage", "published") else path_of()
    found = calibrate_routing(*make(), path=path, **OPTIONS[rule])
    for each in words:
        assert each in found.promise
    assert found.promise.count(".") - found.promise.count("69.96") == 1


def test_one_percent_is_one_point() -> None:
    found = calibrate_routing(*make(), max_drop=0.01, confidence_level=0.9, path=path_of())
    assert "at most 1 percentage point below" in found.promise


@pytest.mark.parametrize("rule", DROP_RULES)
def test_where_nothing_meets_the_target_everything_is_asked_of_the_full_model(rule: str) -> None:
    scores, predictions, target = make()
    predictions[:, 0], predictions[:, 1] = target + 1, target
    found = calibrate_routing(scores, predictions, target, path=torch.tensor([[0.5], [0.9]]), **OPTIONS[rule])
    assert found.thresholds == (-INF,)
    assert (found.coverage, found.drop, found.accuracy, found.bound) == (0.0, 0.0, 1.0, None)
    assert found.kept_disagreement == 0.0
    assert found.promise.startswith("Everything is asked of the full model: on these 2,000 calibration samples, no")


def test_scores_that_no_threshold_keeps_promise_no_more_coverage_than_there_is() -> None:
    scores, *rest = make(100)
    scores[50:] = math.nan
    found = calibrate_routing(scores, *rest, coverage=0.9)
    assert (found.thresholds, found.coverage) == ((INF,), 0.5)
    assert "at least 49.5 % of new samples" in found.promise


# ---- a file


@every_rule
@pytest.mark.parametrize("stages", [2, 3])
def test_what_json_holds_comes_back(rule: str, stages: int) -> None:
    found = calibrate_routing(*make(stages=stages), **OPTIONS[rule])
    assert CalibratedRouting.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


@pytest.mark.parametrize(("coverage", "value"), [(1.0, "inf"), (None, "-inf")])
def test_infinite_thresholds_are_words(coverage: float | None, value: str) -> None:
    scores, predictions, target = make(stages=3)
    predictions[:, :2], predictions[:, 2] = (target + 1).unsqueeze(1), target
    wanted = {"coverage": coverage} if coverage else {"max_drop": 1e-6}
    found = calibrate_routing(scores, predictions, target, **wanted)
    assert found.to_dict()["thresholds"] == [value, value]
    assert CalibratedRouting.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "its version is 2, and this release reads 1"),
        ({"thresholds": []}, r"thresholds is \[\]"),
        ({"thresholds": ["nan"]}, r"thresholds is \['nan'\]"),
        ({"thresholds": [True]}, r"thresholds is \[True\]"),
        ({"thresholds": 0.5}, "thresholds is 0.5"),
        ({"thresholds": [0.1, 0.2]}, "it has 2 thresholds and 2 shares"),
        ({"rule": "sgr"}, "rule is 'sgr'"),
        ({"rule": []}, r"rule is \[\]"),
        ({"max_drop": 5}, "max_drop is 5"),
        ({"coverage_target": "half"}, "coverage_target is 'half'"),
        ({"confidence": 1}, "confidence is 1"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": 10.5}, "samples is 10.5"),
        ({"coverage": -0.1}, "coverage is -0.1"),
        ({"shares": [0.5, 2]}, r"shares is \[0.5, 2\]"),
        ({"accuracy": None}, "accuracy is None"),
        ({"drop": -2}, "drop is -2"),
        ({"bound": math.nan}, "bound is nan"),
        ({"kept_disagreement": 1.5}, "kept_disagreement is 1.5"),
        ({"promise": ""}, "promise is ''"),
        ({"more": 1}, "'more' is unknown"),
    ],
)
def test_a_value_that_cannot_be_is_named(change: dict[str, Any], match: str) -> None:
    values = calibrate_routing(*make(), coverage=0.5).to_dict() | change
    with pytest.raises(ConfigurationError, match=f"This is not a calibrated routing: {match}; calibrate again"):
        CalibratedRouting.from_dict(values)


def test_every_value_is_needed() -> None:
    values = calibrate_routing(*make(), coverage=0.5).to_dict()
    for name in set(values) - {"version"}:
        rest = {key: value for key, value in values.items() if key != name}
        with pytest.raises(ConfigurationError, match=f"'{name}' is missing"):
            CalibratedRouting.from_dict(rest)
    with pytest.raises(ConfigurationError, match="it holds a list, not a mapping"):
        CalibratedRouting.from_dict([])


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "Give either max_drop or coverage as the target, got max_drop=None and coverage=None"),
        ({"max_drop": 0.1, "coverage": 0.5}, "got max_drop=0.1 and coverage=0.5"),
        ({"max_drop": 0.1, "rule": "bettng"}, r"rule='bettng' is not one of .*Did you mean 'betting'\?"),
        ({"max_drop": 0.1, "rule": "coverage"}, "rule='coverage' needs coverage as its target"),
        ({"coverage": 0.5, "rule": "betting"}, "rule='betting' needs max_drop as its target"),
        ({"max_drop": 0.1, "rule": "betting"}, "rule='betting' needs a confidence_level, such as 0.95"),
        ({"coverage": 0.5, "confidence_level": 0.9}, "rule='coverage' promises nothing with a probability"),
        ({"max_drop": 0.1, "confidence_level": 0.9, "rule": "conformal"}, "rule='conformal' promises nothing with"),
        ({"max_drop": 0.1, "confidence_level": 95}, r"confidence_level=95 is outside \(0, 1\)"),
        ({"max_drop": 1.0, "confidence_level": 0.9}, r"max_drop=1.0 is outside \(0, 1\)"),
        ({"max_drop": 0.0}, r"max_drop=0.0 is outside \(0, 1\)"),
        ({"max_drop": -0.01}, r"max_drop=-0.01 is outside \(0, 1\)"),
        ({"max_drop": 1.5, "rule": "published"}, r"max_drop=1.5 is outside \[0, 1\]"),
        ({"coverage": 0.0}, r"coverage=0.0 is outside \(0, 1\]"),
        ({"max_drop": 0.1, "path": torch.zeros(3)}, r"path has shape \(3,\); give \(points, 1\)"),
        ({"max_drop": 0.1, "path": torch.zeros(0, 1)}, "at least one point"),
        ({"max_drop": 0.1, "path": torch.tensor([[1.0], [0.0]])}, "path must never fall"),
        ({"max_drop": 0.1, "path": torch.tensor([[math.nan]])}, "path must never fall"),
        ({"coverage": 0.5, "path": torch.zeros(3, 1)}, "rule='coverage' chooses among all thresholds; leave the path"),
        ({"max_drop": 0.1, "rule": "published", "path": torch.zeros(3, 1)}, "rule='published' chooses among all"),
    ],
)
def test_options_that_do_not_go_together_are_named_in_one_line(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as caught:
        calibrate_routing(*make(), **options)
    assert "\n" not in str(caught.value)


def test_the_published_rule_takes_no_tolerance_at_all() -> None:
    assert calibrate_routing(*make(), max_drop=0.0, rule="published").max_drop == 0.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({0: torch.rand(2000, 2)}, r"stage_predictions has dtype torch.int64 and shape \(2000, 2\); .*\(2000, 3\)"),
        ({0: torch.rand(0)}, "There are no samples"),
        ({0: torch.zeros(2000).long()}, "query_scores has dtype torch.int64"),
        ({1: torch.rand(2000, 2)}, "stage_predictions has dtype torch.float32"),
        ({1: torch.ones(2000, 2).bool()}, "stage_predictions has dtype torch.bool"),
        ({2: torch.zeros(1999).long()}, r"target has dtype torch.int64 and shape \(1999,\)"),
        ({2: torch.zeros(2000)}, "target has dtype torch.float32"),
    ],
)
def test_samples_that_do_not_fit_are_named(change: dict[int, Tensor], match: str) -> None:
    samples = [change.get(place, each) for place, each in enumerate(make())]
    with pytest.raises(ConfigurationError, match=match):
        calibrate_routing(*samples, coverage=0.5)
