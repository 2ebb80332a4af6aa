"""Rules for thresholds: what they choose, how many samples they need, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.risk_coverage import risk_coverage_summary
from lightning_efficient.functional.thresholds import (
    conformal_threshold,
    coverage_threshold,
    empirical_threshold,
    fixed_sequence_threshold,
    needed_samples,
    rcps_threshold,
    sgr_threshold,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "selective_metrics.npz")
RULES = {
    "coverage": lambda *samples: coverage_threshold(*samples, coverage=0.6),
    "empirical": lambda *samples: empirical_threshold(*samples, risk=0.3),
    "empirical, generalized": lambda *samples: empirical_threshold(*samples, risk=0.2, kind="generalized"),
    "sgr": lambda *samples: sgr_threshold(*samples, risk=0.3, delta=0.1),
    "fixed_sequence": lambda *samples: fixed_sequence_threshold(*samples, risk=0.3, delta=0.1),
    "rcps": lambda *samples: rcps_threshold(*samples, risk=0.2, delta=0.1),
    "conformal": lambda *samples: conformal_threshold(*samples, risk=0.2),
}
every_rule = pytest.mark.parametrize("rule", RULES)
rows = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1)), min_size=25, max_size=60)


def tensors(pairs):
    scores, errors = zip(*pairs, strict=True)
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(errors)


def make(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(samples, generator=generator)
    return confidence, torch.rand(samples, generator=generator) < 0.4 * (1 - confidence) ** 3


def upper(errors, samples, delta):
    return 1.0 if errors == samples else stats.beta.isf(delta, errors + 1, samples - errors)


# what the rules choose


@every_rule
@given(pairs=rows)
def test_a_choice_tells_what_its_threshold_does(rule, pairs):
    scores, errors = tensors(pairs)
    choice = RULES[rule](scores, errors)
    accepted = scores >= choice.threshold
    assert choice[1:4] == (accepted.sum(), errors[accepted].sum(), len(pairs))
    assert math.isinf(choice.threshold) == (choice.accepted == 0)
    assert choice.threshold == math.inf or choice.threshold in scores


@every_rule
@given(pairs=rows, random=st.randoms())
def test_the_order_of_the_samples_does_not_matter(rule, pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    assert RULES[rule](*tensors(pairs)) == RULES[rule](*tensors(shuffled))


@every_rule
@given(pairs=rows)
def test_an_increasing_map_of_the_scores_keeps_the_choice(rule, pairs):
    scores, errors = tensors(pairs)
    assert RULES[rule](scores, errors)[1:] == RULES[rule](scores**3 - 5, errors)[1:]


@every_rule
def test_a_summary_made_before_gives_the_same(rule):
    confidence, wrong = make(500)
    assert RULES[rule](risk_coverage_summary(confidence, wrong)) == RULES[rule](confidence, wrong)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_give_the_float32_choice(rule, dtype):
    confidence, wrong = make(3000)
    half = confidence.to(dtype)
    choice = RULES[rule](half, wrong)
    assert choice == RULES[rule](half.float(), wrong)
    assert (half >= choice.threshold).sum() == (half.float() >= choice.threshold).sum() == choice.accepted


@every_rule
def test_a_threshold_compares_right_with_float32_scores(rule):
    confidence, wrong = make(2000)
    choice = RULES[rule](confidence, wrong)
    assert (confidence >= choice.threshold).sum() == choice.accepted
    assert (confidence == choice.threshold).sum() == 1


@given(rows, st.floats(0.01, 1))
def test_coverage_is_the_smallest_achievable_that_reaches_the_target(pairs, coverage):
    scores, errors = tensors(pairs)
    enough = [share for t in scores if (share := (scores >= t).double().mean().item()) >= coverage - 1e-12]
    choice = coverage_threshold(scores, errors, coverage=coverage)
    assert choice.accepted / choice.samples == min(enough)


@pytest.mark.parametrize("score", ["msp", "msp_r2", "const"])
@pytest.mark.parametrize(("kind", "golden"), [("selective", "cov_at_selrisk"), ("generalized", "cov_at_genrisk")])
def test_the_empirical_rule_reaches_the_golden_coverages(score, kind, golden):
    scores, errors = torch.from_numpy(GOLDEN[f"m_score_{score}"]), torch.from_numpy(GOLDEN["m_err"])
    choices = [empirical_threshold(scores, errors, risk=risk, kind=kind) for risk in GOLDEN["m_rho"]]
    found = [choice.accepted / choice.samples for choice in choices]
    np.testing.assert_allclose(found, GOLDEN[f"m_ref_{score}__{golden}"], rtol=1e-12)


@given(rows, st.floats(0.1, 0.9), st.floats(0.05, 0.5))
def test_rcps_accepts_as_long_as_the_limit_at_every_higher_threshold_meets_the_target(pairs, risk, delta):
    scores, errors = tensors(pairs)
    assume(len(pairs) >= needed_samples("rcps", risk, delta))
    best = (math.inf, None)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        bound = upper(errors[scores >= threshold].sum().item(), len(pairs), delta)
        if bound > risk:
            break
        best = (threshold, pytest.approx(bound, rel=1e-10))
    choice = rcps_threshold(scores, errors, risk=risk, delta=delta)
    assert (choice.threshold, choice.bound) == best


@given(rows, st.floats(0.05, 0.9))
def test_conformal_accepts_as_long_as_the_corrected_risk_meets_the_target(pairs, risk):
    scores, errors = tensors(pairs)
    losses = errors * 0.5
    met = [t for t in scores.tolist() if (losses[scores >= t].sum().item() + 1) / (len(pairs) + 1) <= risk]
    assert conformal_threshold(scores, losses, risk=risk).threshold == min(met, default=math.inf)


@given(rows, st.floats(0.2, 0.9), st.floats(0.05, 0.5))
def test_sgr_finds_a_boundary_where_the_next_sample_would_exceed_the_target(pairs, risk, delta):
    scores, errors = tensors(pairs)
    assume(len(pairs) >= needed_samples("sgr", risk, delta))
    budget = math.ceil(math.log2(len(pairs)))

    def bound_at(rank):
        accepted = scores >= scores.sort(descending=True).values[rank - 1]
        return upper(errors[accepted].sum().item(), accepted.sum().item(), delta / budget)

    choice = sgr_threshold(scores, errors, risk=risk, delta=delta)
    low, high = next(rank for rank in range(2, 100) if upper(0, rank, delta / budget) <= risk) - 1, len(pairs)
    none = low
    while low < high:
        middle = math.ceil((low + high) / 2)
        low, high = (middle, high) if bound_at(middle) <= risk else (low, middle - 1)
    if low == none:
        assert choice.threshold == math.inf
    else:
        assert choice.threshold == scores.sort(descending=True).values[low - 1]
        assert choice.bound == pytest.approx(bound_at(low), rel=1e-10)
        assert choice.bound <= risk


@given(rows, st.floats(0.1, 0.9), st.floats(0.05, 0.5), st.sampled_from([0.0, 0.25, 0.7, 1.0]))
def test_a_fixed_sequence_ends_before_the_first_limit_above_the_target(pairs, risk, delta, start):
    scores, errors = tensors(pairs)
    needed = needed_samples("fixed_sequence", risk, delta)
    assume(len(pairs) >= needed)
    best = (math.inf, None)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        accepted = scores >= threshold
        count = accepted.sum().item()
        if count < max(needed, math.ceil(start * len(pairs) - 1e-9)):
            continue
        bound = upper(errors[accepted].sum().item(), count, delta)
        if bound > risk:
            break
        best = (threshold, pytest.approx(bound, rel=1e-10))
    choice = fixed_sequence_threshold(scores, errors, risk=risk, delta=delta, start=start)
    assert (choice.threshold, choice.bound) == best


def test_a_fixed_sequence_that_starts_later_is_not_ended_by_an_early_error():
    confidence, wrong = torch.arange(1000.0), torch.arange(1000) == 950
    assert fixed_sequence_threshold(confidence, wrong, risk=0.02, delta=0.1, start=0.0).accepted == 0
    assert fixed_sequence_threshold(confidence, wrong, risk=0.02, delta=0.1, start=0.5).accepted == 1000


# how many samples they need


@pytest.mark.parametrize(
    ("rule", "risk", "delta", "needed"),
    [
        ("rcps", 0.01, 0.1, 230),
        ("rcps", 0.01, 0.05, 299),
        ("rcps", 0.005, 0.1, 460),
        ("rcps", 0.005, 0.05, 598),
        ("rcps", 0.02, 0.1, 114),
        ("rcps", 0.02, 0.05, 149),
        ("rcps", 1.0, 0.05, 1),
        ("fixed_sequence", 0.01, 0.05, 299),
        ("conformal", 0.01, None, 99),
        ("conformal", 0.3, None, 3),
        ("conformal", 1.0, None, 1),
        ("coverage", 0.5, None, 1),
        ("empirical", 0.01, None, 1),
    ],
)
def test_needed_samples_are_those_of_the_design(rule, risk, delta, needed):
    assert needed_samples(rule, risk, delta) == needed


@pytest.mark.parametrize("rule", ["sgr", "fixed_sequence", "rcps", "conformal"])
@given(risk=st.floats(0.02, 0.6), delta=st.floats(0.01, 0.4))
def test_with_the_needed_samples_and_no_error_something_is_accepted(rule, risk, delta):
    delta = None if rule == "conformal" else delta
    rules = {"sgr": sgr_threshold, "fixed_sequence": fixed_sequence_threshold, "rcps": rcps_threshold}
    choose = rules.get(rule, conformal_threshold)
    options = {"risk": risk} if delta is None else {"risk": risk, "delta": delta}
    needed = needed_samples(rule, risk, delta)
    for size in (needed, needed + 1, 2 * needed):
        assert choose(torch.arange(float(size)), torch.zeros(size), **options).accepted > 0
    if needed > 1:
        with pytest.raises(ConfigurationError, match=f"needs at least {needed} samples .* and {needed - 1} were given"):
            choose(torch.arange(needed - 1.0), torch.zeros(needed - 1), **options)


def test_one_sample_fewer_than_sgr_needs_has_a_limit_above_the_target():
    size = needed_samples("sgr", 0.01, 0.05)
    limits = [upper(0, n, 0.05 / math.ceil(math.log2(n))) for n in (size - 1, size)]
    assert limits[1] <= 0.01 < limits[0]


def test_too_few_samples_are_told_with_the_number_needed():
    message = "risk=0.01 at a confidence of 0.95 needs at least 299 samples by the rule 'rcps', even if none is wrong, "
    with pytest.raises(ConfigurationError, match=message + "and 100 were given; use more samples"):
        rcps_threshold(*make(100), risk=0.01, delta=0.05)


# targets that nothing meets, and bad inputs


@every_rule
def test_where_all_are_wrong_only_a_coverage_is_met(rule):
    choice = RULES[rule](torch.rand(100), torch.ones(100))
    if rule == "coverage":
        assert choice.accepted == choice.errors == 60
    elif rule in ("sgr", "fixed_sequence", "empirical"):
        assert choice == (math.inf, 0, 0.0, 100, None)
    else:
        assert choice.errors <= 0.2 * 100


@every_rule
def test_where_scores_are_constant_all_or_nothing_is_accepted(rule):
    constant = torch.full((200,), 0.7)
    right = RULES[rule](constant, torch.zeros(200))
    assert right.accepted == 200
    assert right.threshold == constant[0].item()
    if rule != "coverage":
        assert RULES[rule](constant, torch.ones(200)) == (math.inf, 0, 0.0, 200, None)


@every_rule
def test_no_samples_are_refused(rule):
    with pytest.raises(ConfigurationError, match="There are no samples to choose a threshold on"):
        RULES[rule](torch.empty(0), torch.empty(0))


@every_rule
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_place(rule, value):
    confidence, wrong = make(100)
    confidence[[17, 40]] = value
    with pytest.raises(ConfigurationError, match=r"2 .*(index|sample) 17"):
        RULES[rule](confidence, wrong)


@pytest.mark.parametrize("rule", ["sgr", "fixed_sequence", "rcps"])
def test_losses_between_0_and_1_are_refused_by_rules_that_count_errors(rule):
    losses = torch.tensor([0.0, 0.25] * 50)
    message = f"rule={rule!r} counts errors, so every loss must be 0 or 1, got 0.25"
    with pytest.raises(ConfigurationError, match=message):
        RULES[rule](torch.rand(100), losses)
    with pytest.raises(ConfigurationError, match=f"rule={rule!r} counts errors"):
        RULES[rule](risk_coverage_summary(torch.arange(100.0), losses))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *s: coverage_threshold(*s, coverage=80), r"coverage=80 is outside \(0, 1\]"),
        (lambda *s: empirical_threshold(*s, risk=-0.1), r"risk=-0.1 is outside \[0, 1\]"),
        (lambda *s: empirical_threshold(*s, risk=0.1, kind="joint"), "kind='joint' is not one of"),
        (lambda *s: rcps_threshold(*s, risk=0.0, delta=0.05), r"risk=0.0 is outside \(0, 1\]"),
        (lambda *s: rcps_threshold(*s, risk=0.05, delta=95), r"delta=95 is outside \(0, 1\)"),
        (lambda *s: sgr_threshold(*s, risk=2, delta=0.05), r"risk=2 is outside \(0, 1\]"),
        (lambda *s: fixed_sequence_threshold(*s, risk=0.1, delta=0.1, start=25), r"start=25 is outside \[0, 1\]"),
        (lambda *s: conformal_threshold(*s, risk=math.nan), r"outside \(0, 1\]"),
        (lambda *s: needed_samples("rcsp", 0.1, 0.1), "Did you mean 'rcps'"),
        (lambda *s: needed_samples("rcps", 0.1), "rule='rcps' needs a delta"),
        (lambda *s: rcps_threshold(s[0], s[1][:5], risk=0.1, delta=0.1), "must share one shape"),
    ],
)
def test_targets_out_of_range_are_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call(*make(100))
