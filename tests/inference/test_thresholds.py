"""A calibrated threshold: which rule is chosen, what its promise says, and that it survives a file."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional import coverage_at_risk
from lightning_efficient.functional.thresholds import RULES, rcps_threshold, sgr_threshold
from lightning_efficient.inference.thresholds import CalibratedThreshold, calibrate_threshold

OPTIONS = {
    "coverage": {"coverage": 0.8},
    "empirical": {"risk": 0.05},
    "sgr": {"risk": 0.05, "confidence_level": 0.95},
    "fixed_sequence": {"risk": 0.05, "confidence_level": 0.95, "rule": "fixed_sequence"},
    "rcps": {"risk": 0.05, "confidence_level": 0.95, "kind": "generalized"},
    "conformal": {"risk": 0.05, "kind": "generalized", "rule": "conformal"},
}
SAME = "new samples come from the same distribution"
every_rule = pytest.mark.parametrize("rule", RULES)


def make(samples=5000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(samples, generator=generator)
    return confidence, torch.rand(samples, generator=generator) < 0.4 * (1 - confidence) ** 3


@every_rule
def test_the_options_name_the_rule(rule):
    confidence, wrong = make()
    found = calibrate_threshold(confidence, wrong, **OPTIONS[rule])
    named = calibrate_threshold(confidence, wrong, **{**OPTIONS[rule], "rule": rule})
    assert found == named
    assert found.rule == rule
    assert found.target == OPTIONS[rule].get("risk", 0.8)
    assert found.confidence == OPTIONS[rule].get("confidence_level")


@every_rule
def test_coverage_and_risk_are_those_of_the_threshold_on_these_samples(rule):
    confidence, wrong = make()
    found = calibrate_threshold(confidence, wrong, **OPTIONS[rule])
    accepted = confidence >= found.threshold
    assert found.coverage == pytest.approx(accepted.double().mean().item(), rel=1e-12)
    over = accepted.sum() if found.kind == "selective" else len(wrong)
    assert found.risk == pytest.approx((wrong[accepted].sum() / over).item(), rel=1e-6)
    assert found.samples == 5000


def test_bounds_are_those_of_the_rules_and_lie_between_risk_and_target():
    confidence, wrong = make()
    sgr, rcps, conformal = (calibrate_threshold(confidence, wrong, **OPTIONS[r]) for r in ("sgr", "rcps", "conformal"))
    delta = 1 - 0.95
    assert sgr.bound == sgr_threshold(confidence, wrong, risk=0.05, delta=delta).bound
    assert rcps.bound == rcps_threshold(confidence, wrong, risk=0.05, delta=delta).bound
    for found in (sgr, rcps, conformal):
        assert found.risk < found.bound <= found.target


def test_the_empirical_rule_is_coverage_at_risk():
    confidence, wrong = make()
    for kind in ("selective", "generalized"):
        found = calibrate_threshold(confidence, wrong, risk=0.03, kind=kind)
        coverage, threshold = coverage_at_risk(confidence, wrong, risk=0.03, kind=kind)
        assert (found.coverage, found.threshold, found.bound) == (coverage.item(), threshold.item(), None)


@pytest.mark.parametrize(
    ("rule", "promise"),
    [
        (
            "coverage",
            "On average over the draw of the 5,000 calibration samples, at least 79.98 % of new samples are answered, "
            "if they come from the same distribution; nothing is promised about their risk.",
        ),
        (
            "empirical",
            "On these 5,000 calibration samples, at most 5 % of the answered samples are wrong; nothing is guaranteed "
            "for new samples.",
        ),
        (
            "sgr",
            "With probability at least 95 % over the draw of the 5,000 calibration samples, at most 5 % of the "
            f"answered samples are wrong, if {SAME} and errors do not become rarer as confidence falls.",
        ),
        (
            "fixed_sequence",
            "With probability at least 95 % over the draw of the 5,000 calibration samples, at most 5 % of the "
            f"answered samples are wrong, if {SAME} and errors do not become rarer as confidence falls.",
        ),
        (
            "rcps",
            "With probability at least 95 % over the draw of the 5,000 calibration samples, at most 5 % of all samples "
            f"are answered and wrong, if {SAME}.",
        ),
        (
            "conformal",
            "On average over the draw of the 5,000 calibration samples, at most 5 % of all samples are answered and "
            f"wrong, if {SAME}; one draw alone may exceed it.",
        ),
    ],
)
def test_the_promise_says_what_holds(rule, promise):
    assert calibrate_threshold(*make(), **OPTIONS[rule]).promise == promise


def test_the_promised_coverage_is_rounded_down():
    confidence = torch.arange(3.0)
    # 2 of 3 are accepted, which a fourth is with probability 2 / 4; with 6 of them it is 4 / 7 = 0.571428...
    assert "at least 50 %" in calibrate_threshold(confidence, torch.zeros(3), coverage=0.6).promise
    assert "at least 57.14 %" in calibrate_threshold(torch.arange(6.0), torch.zeros(6), coverage=0.6).promise
    assert "at least 85.71 %" in calibrate_threshold(torch.arange(6.0), torch.zeros(6), coverage=1.0).promise


def test_losses_between_0_and_1_are_called_losses():
    confidence, wrong = make()
    found = calibrate_threshold(confidence, wrong * 0.5, risk=0.02)
    assert "at most 2 % is the mean loss of the answered samples" in found.promise
    found = calibrate_threshold(confidence, wrong * 0.5, risk=0.02, kind="generalized", rule="conformal")
    assert "at most 2 % is the mean loss of all samples, those not answered counting 0" in found.promise


@pytest.mark.parametrize("rule", ["empirical", "sgr", "fixed_sequence", "rcps", "conformal"])
def test_a_target_that_no_threshold_meets_answers_nothing_and_says_why(rule, recwarn):
    found = calibrate_threshold(torch.full((500,), 0.9), torch.ones(500), **OPTIONS[rule])
    assert (found.threshold, found.coverage, found.risk, found.bound) == (math.inf, 0.0, 0.0, None)
    assert found.promise.startswith("Nothing is answered: on these 500 calibration samples, no threshold ")
    assert found.promise.endswith("of at most 5 %.")
    assert not recwarn.list


@every_rule
@pytest.mark.parametrize("answers", [True, False])
def test_a_threshold_survives_strict_json(rule, answers):
    confidence, wrong = make() if answers else (torch.full((500,), 0.9), torch.ones(500))
    found = calibrate_threshold(confidence, wrong, **OPTIONS[rule])
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert CalibratedThreshold.from_dict(json.loads(text)) == found


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1), st.integers(1, 10**9))
def test_every_finite_number_survives_strict_json(threshold, share, samples):
    kept = CalibratedThreshold(threshold, "sgr", "selective", share, 0.9, samples, share, share, share, "Holds.")
    assert CalibratedThreshold.from_dict(json.loads(json.dumps(kept.to_dict(), allow_nan=False))) == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "its version is 2, and this release reads 1"),
        ({"version": None}, "its version is None"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"threshold": -math.inf}, "threshold is -inf"),
        ({"threshold": True}, "threshold is True"),
        ({"rule": "guess"}, "rule is 'guess'"),
        ({"rule": ["sgr"]}, r"rule is \['sgr'\]"),
        ({"kind": None}, "kind is None"),
        ({"target": 5}, "target is 5"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": 10.5}, "samples is 10.5"),
        ({"coverage": -0.1}, "coverage is -0.1"),
        ({"risk": "0.1"}, "risk is '0.1'"),
        ({"bound": 2}, "bound is 2"),
        ({"promise": ""}, "promise is ''"),
        ({"temperature": 1}, "'temperature' is unknown"),
    ],
)
def test_a_damaged_file_is_refused_with_the_entry(change, message):
    values = calibrate_threshold(*make(100), risk=0.1).to_dict()
    with pytest.raises(ConfigurationError, match=f"not a calibrated threshold: {message}.*; calibrate again"):
        CalibratedThreshold.from_dict({**values, **change})


@pytest.mark.parametrize("name", ["version", "threshold", "target", "samples", "coverage", "bound"])
@pytest.mark.parametrize("digits", [400, 5000])
def test_an_integer_without_end_is_damage_and_no_other_error(name, digits):
    values = calibrate_threshold(*make(100), risk=0.1).to_dict()
    for huge in (10**digits, -(10**digits)):
        with pytest.raises(ConfigurationError, match=f"not a calibrated threshold: .*{name} is") as refused:
            CalibratedThreshold.from_dict({**values, name: huge})
        assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("level", "written"),
    [
        (0.95, "95"),
        (0.57, "57"),
        (0.99999999, "99.9999"),
        (0.9999999, "99.9999"),
        (0.999, "99.9"),
        (1 / 3, "33.3333"),
        (1e-9, "0.0000001"),
    ],
)
def test_a_promise_claims_no_more_than_it_was_calibrated_with(level, written):
    options = {"kind": "generalized", "confidence_level": level}
    found = calibrate_threshold(torch.rand(500), torch.zeros(500), risk=0.123456789, **options)
    assert found.promise.startswith(f"With probability at least {written} % over the draw")
    assert "at most 12.3457 % of all samples" in found.promise
    rounded_up = calibrate_threshold(torch.rand(500), torch.zeros(500), risk=0.1234561, **options)
    assert "at most 12.3457 % of all samples" in rounded_up.promise


@pytest.mark.parametrize("name", ["version", "threshold", "promise", "bound"])
def test_a_missing_entry_is_named(name):
    values = calibrate_threshold(*make(100), risk=0.1).to_dict()
    del values[name]
    with pytest.raises(ConfigurationError, match="version is None" if name == "version" else f"'{name}' is missing"):
        CalibratedThreshold.from_dict(values)


@pytest.mark.parametrize("values", [None, [], "inf", 0.5])
def test_what_is_no_mapping_is_refused(values):
    with pytest.raises(ConfigurationError, match="not a mapping"):
        CalibratedThreshold.from_dict(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either risk or coverage as the target, got risk=None and coverage=None"),
        ({"risk": 0.1, "coverage": 0.5}, "Give either risk or coverage"),
        ({"risk": 0.1, "rule": "coverage"}, "rule='coverage' needs a coverage as its target"),
        ({"coverage": 0.1, "rule": "sgr"}, "rule='sgr' needs a risk as its target"),
        ({"risk": 0.1, "rule": "rcsp"}, "rule='rcsp' is not one of .* Did you mean 'rcps'"),
        ({"risk": 0.1, "kind": "joint"}, "kind='joint' is not one of"),
        ({"risk": 0.1, "rule": "sgr"}, "rule='sgr' needs a confidence_level"),
        ({"risk": 0.1, "rule": "empirical", "confidence_level": 0.9}, "leave confidence_level=0.9 out"),
        ({"coverage": 0.5, "confidence_level": 0.9}, "rule='coverage' promises nothing with a probability"),
        ({"risk": 0.1, "rule": "conformal"}, "rule='conformal' bounds the generalized risk, got kind='selective'"),
        (
            {"risk": 0.1, "rule": "sgr", "kind": "generalized", "confidence_level": 0.9},
            "rule='sgr' bounds the selective risk, got kind='generalized'",
        ),
        ({"risk": 0.1, "confidence_level": 95}, r"confidence_level=95 is outside \(0, 1\)"),
        ({"risk": 0.1, "confidence_level": 1.0}, r"confidence_level=1.0 is outside \(0, 1\)"),
        ({"risk": 5}, r"risk=5 is outside \[0, 1\]; give a fraction"),
        ({"coverage": 0}, r"coverage=0 is outside \(0, 1\]"),
        ({"risk": 0.01, "confidence_level": 0.95}, "needs at least 528 samples by the rule 'sgr', .* 100 were given"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(options, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        calibrate_threshold(*make(100), **options)
    assert "\n" not in str(refused.value)


def test_no_samples_are_refused():
    with pytest.raises(ConfigurationError, match="There are no samples"):
        calibrate_threshold(torch.empty(0), torch.empty(0), risk=0.1)
